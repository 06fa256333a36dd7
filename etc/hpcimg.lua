-- hpcimg.lua: what a job may write to ask for container images.
--
-- cli_filter.lua and job_submit.lua, in the same directory as this file, load it for
-- each job that asks for an image. It holds no state and calls nothing of Slurm's,
-- and it finds the same mistakes as hpcimg does on the node, only earlier.
-- A site that has such a script of its own calls merge() from there.
--
-- For Lua 5.1 to 5.4: Slurm embeds whichever it was built with.

-- The aliases in hpcimg.conf: submit hosts do not read that file, and without this
-- list every bare word is taken for a forgotten "docker://".
local ALIASES = {
    -- "samtools",      -- [alias] samtools = docker://biocontainers/samtools:1.19
    -- "bio/*",         -- [alias] bio/* = docker://biocontainers/*
}

-- The [static NAME] sections in hpcimg.conf: schemes of the site's own.
local STATIC = {
    -- "pages",
}

local MAX_IMAGES = 32
local MAX_NAME = 64
local MAX_URI = 1024
-- Slurm's own limit. Past it, Slurm speaks of a "Pathname of a file, directory or other
-- parameter too long", which tells nobody that the images are meant.
local MAX_COMMENT = 1024
local MARK = "container:"
local SCHEMES = { "https", "http", "file", "oras", "docker", "library", "shub", "s3", "swift" }
for _, name in ipairs(STATIC) do
    table.insert(SCHEMES, name)
end
local PATH_SCHEMES = { "oci", "oci-archive", "docker-archive" }

-- Spelled out, since %a, %w and %s follow the locale of the process.
local SPACE = "[ \t\n\v\f\r]"
local TOKEN = "[^ \t\n\v\f\r;]+"
local SCHEME = "^([A-Za-z][A-Za-z0-9+.-]*):(.*)$"
local NAMED = "^([A-Za-z_][A-Za-z0-9_]*)=(.*)$"
local ALMOST_NAMED = "^([A-Za-z0-9_.-]+)=(.*)$"
-- What would need quoting in a shell, in JSON or in a task prolog's line.
local FORBIDDEN = "[^A-Za-z0-9%-._~:/?#%[%]@!&()*+,;=%%]"

local M = {}

local function contains(list, item)
    for _, each in ipairs(list) do
        if each == item then
            return true
        end
    end
    return false
end

-- A user's text as it may go to a terminal and a log.
local function shown(text)
    if #text > 200 then
        text = text:sub(1, 200) .. "..."
    end
    local escaped = text:gsub("[^\32-\126]", function(byte)
        return string.format("\\x%02x", byte:byte())
    end)
    return "'" .. escaped .. "'"
end

local function no_reference(text, why, meant)
    local hint = meant and "; did you mean " .. meant or ""
    return shown(text) .. " is not a reference to an image: " .. why .. hint
end

-- Levenshtein distance. The caller bounds the lengths.
local function distance(a, b)
    local row = {}
    for j = 0, #b do
        row[j] = j
    end
    for i = 1, #a do
        local diagonal = row[0]
        row[0] = i
        for j = 1, #b do
            local replaced = diagonal + (a:byte(i) == b:byte(j) and 0 or 1)
            diagonal = row[j]
            row[j] = math.min(replaced, row[j] + 1, row[j - 1] + 1)
        end
    end
    return row[#b]
end

local function nearest_scheme(scheme)
    if #scheme > 16 then
        return nil
    end
    -- In three letters two mistakes are another word: ftp is not a misspelled http.
    local best, best_distance = nil, #scheme > 3 and 3 or 2
    for _, known in ipairs(SCHEMES) do
        local d = distance(scheme, known)
        if d < best_distance then
            best, best_distance = known, d
        end
    end
    return best
end

local function is_alias(text)
    for _, alias in ipairs(ALIASES) do
        local prefix = alias:match("^(.*/)%*$")
        if text == alias or (prefix and #text > #prefix and text:sub(1, #prefix) == prefix) then
            return not text:match("/%*$")
        end
    end
    return false
end

-- Whether user:password@ stands before the host. A digest (ubuntu:22.04@sha256:...) is
-- none, nor is Enroot's user without a password (docker://user@registry#image).
local function has_password(address)
    local user = address:gsub("@sha%d+:.*", ""):match("^([^/]*)@")
    return user ~= nil and user:find(":", 1, true) ~= nil
end

local PASSWORD = "an address with user:password@ in it is refused: comments are public, and so is"
    .. " a password in one; leave it out, and change it, since others may have read it"

local function check_path(text, path)
    if path:sub(1, 1) ~= "/" then
        return no_reference(text, "the path is not absolute", "file:///" .. path)
    end
    if path:sub(-1) == "/" then
        return shown(text) .. " names a directory: name the image file in it"
    end
    if (path .. "/"):find("/%.%.?/") then
        return shown(text) .. " is not a plain path: it has . or .. in it; write the path out"
    end
    return nil
end

local function check_address(text, scheme, rest)
    if scheme == "file" then
        return check_path(text, rest)
    end
    local host, path = rest:match("^([^/]*)/?(.*)$")
    local is_web = scheme == "http" or scheme == "https"
    -- For a web server the user alone may be a token.
    if has_password(rest) or (is_web and host:find("@", 1, true)) then
        return PASSWORD
    end
    if host == "" or (is_web and path == "") then
        return no_reference(text, "it names no image, something is missing after the //")
    end
    return nil
end

-- An image of a scheme that takes no //.
local function check_path_scheme(text, scheme, rest)
    local meant = scheme .. ":/" .. rest:gsub("^[./]+", "")
    if rest:sub(1, 2) == "//" then
        return no_reference(text, "this scheme takes no //", meant)
    end
    if rest:sub(1, 1) ~= "/" then
        return no_reference(text, "the path is not absolute", meant)
    end
    return nil
end

local function check_bare(text)
    if has_password(text) then
        return PASSWORD
    end
    local ending = text:lower():match("%.([a-z]+)$") or ""
    local is_file = contains({ "sif", "simg", "img", "sqsh", "squashfs" }, ending)
    if is_file or text:find("^%.%.?/") or text:find("^~") then
        return shown(text) .. " is a relative path: each node would look for it in another"
            .. " directory; write the absolute path"
    end
    local is_plausible = text:find("^[A-Za-z0-9]") and not text:find("://", 1, true)
    return no_reference(
        text,
        "it has no scheme and is no alias of this site",
        is_plausible and "docker://" .. text or nil
    )
end

-- Check one URI, path or alias. Returns nil, or the sentence that refuses it.
local function check_uri(text)
    if text == "" then
        return MARK .. " is followed by nothing; write " .. MARK .. "URI without a space"
    end
    if #text > MAX_URI then
        return "a reference of " .. #text .. " characters is too long: " .. MAX_URI
            .. " is the limit; it begins " .. shown(text:sub(1, 60))
    end
    local wrong = text:match(FORBIDDEN)
    if wrong then
        local hint = wrong == "$" and "; a variable is not replaced there, write it out" or ""
        local why = "it holds characters that no address has: " .. shown(wrong)
        return no_reference(text, why .. hint)
    end
    if is_alias(text) then
        return nil
    end
    if text:sub(1, 1) == "/" then
        return check_path(text, text)
    end
    local written, rest = text:match(SCHEME)
    local scheme = written and written:lower()
    if contains(PATH_SCHEMES, scheme) then
        return check_path_scheme(text, scheme, rest)
    end
    local slashes = rest and rest:sub(1, 2) == "//"
    if contains(SCHEMES, scheme) then
        if slashes then
            return check_address(text, scheme, rest:sub(3))
        end
        local address = rest:gsub("^/", "")
        if has_password(address) then
            return PASSWORD
        end
        local start = scheme == "file" and "file:///" or scheme .. "://"
        return no_reference(text, "the // is missing", start .. address)
    end
    if not slashes then
        return check_bare(text)
    end
    if has_password(rest:sub(3)) then
        return PASSWORD
    end
    local near = nearest_scheme(scheme)
    return no_reference(text, written .. ":// is not known", near and near .. ":" .. rest)
end

-- Check what follows "container:". Returns the name or nil, and nil or what is wrong.
local function check_image(text)
    local name, uri = text:match(NAMED)
    if name then
        if #name > MAX_NAME then
            return name, "a name of " .. #name .. " characters is too long: " .. MAX_NAME
                .. " is the limit"
        end
        return name, check_uri(uri)
    end
    local almost, reference = text:match(ALMOST_NAMED)
    if almost then
        -- The name becomes the end of HPCIMG_IMAGE_<NAME>.
        local meant = almost:gsub("[^A-Za-z0-9_]", "_"):gsub("^%d", "_%0")
        return nil, check_uri(reference) or no_reference(
            text, "a name has letters, digits and _ only", meant .. "=" .. reference
        )
    end
    return nil, check_uri(text)
end

--- Add references to a job's comment and check every image that it then asks for.
--
-- comment and references may be nil; references are separated by white space or ";".
-- What else is in the comment stays as it is, and an image that it already asks for is
-- not added again. Time is linear in the length of both.
-- Returns the comment, or nil and a sentence for the user.
function M.merge(comment, references)
    comment = comment or ""
    local seen, names, count = {}, {}, 0

    -- Returns whether the image is a new one, or nil and what is wrong with it.
    local function ask(text)
        if seen[text] then
            return false
        end
        local name, problem = check_image(text)
        if problem then
            return nil, problem
        end
        if name and names[name] then
            return nil, "two images have the name " .. shown(name) .. "; give each one its own"
        end
        count = count + 1
        if count > MAX_IMAGES then
            return nil, "more than " .. MAX_IMAGES .. " images in one job"
        end
        seen[text] = true
        if name then
            names[name] = true
        end
        return true
    end

    for token in comment:gmatch(TOKEN) do
        if token:sub(1, #MARK) == MARK then
            local _, problem = ask(token:sub(#MARK + 1))
            if problem then
                return nil, "hpcimg: in the job's comment: " .. problem
            end
        end
    end

    local added = {}
    for token in (references or ""):gmatch(TOKEN) do
        local text = token:sub(1, #MARK) == MARK and token:sub(#MARK + 1) or token
        local new, problem = ask(text)
        if problem then
            return nil, "hpcimg: in HPCIMG_CONTAINER: " .. problem
        end
        if new then
            table.insert(added, MARK .. text)
        end
    end
    if #added == 0 then
        return comment
    end
    -- A site that splits comments at ";" must find its own last word as it was.
    local separator = comment:find(";", 1, true) and not comment:find(SPACE) and ";" or " "
    if comment ~= "" and comment:sub(-1):find(TOKEN) then
        comment = comment .. separator
    end
    comment = comment .. table.concat(added, separator)
    if #comment > MAX_COMMENT then
        return nil, "hpcimg: in HPCIMG_CONTAINER: with these images the job's comment has "
            .. #comment .. " characters, and " .. MAX_COMMENT .. " is Slurm's limit; name fewer"
            .. " images, or ask for aliases"
    end
    return comment
end

return M
