-- hpcimg.lua: the syntax in which jobs request container images.
--
-- cli_filter.lua and job_submit.lua, in the same directory as this file, load it for
-- each job that requests an image. It keeps no state, calls no Slurm functions, and
-- detects the same mistakes as hpcimg does on the node, only earlier. A site with
-- such a script of its own calls merge() from it.
--
-- For Lua 5.1 to 5.4: Slurm embeds whichever it was built with.

-- The aliases in hpcimg.conf: submit hosts do not read that file, and without this
-- list every bare word is treated as a forgotten "docker://".
local ALIASES = {
    -- "samtools",      -- [alias] samtools = docker://biocontainers/samtools:1.19
    -- "bio/*",         -- [alias] bio/* = docker://biocontainers/*
}

-- The [static NAME] sections in hpcimg.conf: schemes that the site defines.
local STATIC = {
    -- "pages",
}

local MAX_IMAGES = 32
local MAX_NAME = 64
local MAX_URI = 1024
-- Slurm's own limit. Beyond it, Slurm reports "Pathname of a file, directory or other
-- parameter too long", which does not tell users that the images are the cause.
local MAX_COMMENT = 1024
local MAX_SHOWN = 200
local MAX_MESSAGE = 1000
local MAX_NESTED = 64
local KEY = "container"
local MARK = KEY .. ":"
local OURS = "hpcimg"
local LINKS = OURS .. ":links="
-- Workflow managers that links can be requested for.
local MANAGERS = { "cwltool", "miniwdl", "nextflow", "snakemake" }
local SCHEMES = { "https", "http", "file", "oras", "docker", "library", "shub", "s3", "swift" }
for _, name in ipairs(STATIC) do
    table.insert(SCHEMES, name)
end
local PATH_SCHEMES = { "oci", "oci-archive", "docker-archive" }
local REGISTRY_SCHEMES = { "docker", "oras" }
-- Schemes used only for container images.
local IMAGE_SCHEMES = { "docker://", "oras://", "library://", "shub://" }
-- A bare name with one of these is meant as a file, not as a forgotten docker://.
local ENDINGS = { ".sif", ".simg", ".img", ".sqsh", ".sqfs", ".squashfs" }

-- Spelled out, since %a, %w and %s follow the locale of the process.
local SPACE = "[ \t\n\v\f\r]"
local TOKEN = "[^ \t\n\v\f\r;]+"
local SCHEME = "^([A-Za-z][A-Za-z0-9+.-]*):(.*)$"
local NAMED = "^([A-Za-z_][A-Za-z0-9_]*)=(.*)$"
local ALMOST_NAMED = "^([A-Za-z0-9_.-]+)=(.*)$"
local QUOTE = "^[\"'`\\]"
local QUOTE_OR_OPEN = "^[\"'`\\%(%[{<]"
local CLOSING = { [")"] = "(", ["]"] = "[", ["}"] = "{", [">"] = "<" }
-- Characters that would need quoting in a shell, in JSON or in a line of the task prolog.
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

local function lower(text)
    return (text:gsub("[A-Z]", function(letter)
        return string.char(letter:byte() + 32)
    end))
end

local function starts_with(text, beginning)
    return text:sub(1, #beginning) == beginning
end

-- A text without the characters at its ends that match a pattern.
local function stripped(text, pattern)
    local from, to = 1, #text
    while from <= to and text:find(pattern, from) do
        from = from + 1
    end
    while to >= from and text:find(pattern, to) do
        to = to - 1
    end
    return text:sub(from, to)
end

local function cut(text, length)
    return #text > length and text:sub(1, length) .. "..." or text
end

local function printable(text)
    return (text:gsub("[^\32-\126]", function(byte)
        return string.format("\\x%02x", byte:byte())
    end))
end

-- A user's text, made safe for a terminal and a log.
local function shown(text)
    return "'" .. printable(cut(text, MAX_SHOWN)) .. "'"
end

local function no_reference(text, why, meant)
    local hint = meant and "; did you mean " .. cut(meant, MAX_SHOWN) or ""
    return shown(text) .. " is not a reference to an image: " .. why .. hint
end

local function has_ending(text)
    for _, ending in ipairs(ENDINGS) do
        if lower(text:sub(-#ending)) == ending then
            return true
        end
    end
    return false
end

-- References

local function is_alias(text)
    for _, alias in ipairs(ALIASES) do
        local prefix = alias:match("^(.*/)%*$")
        if text == alias or (prefix and #text > #prefix and starts_with(text, prefix)) then
            return not text:match("/%*$")
        end
    end
    return false
end

-- Whether user:password@ precedes the host. A digest (ubuntu:22.04@sha256:...) is not one,
-- nor is enroot's user without a password (docker://user@registry#image).
local function has_password(address)
    local user = address:gsub("@sha%d+:.*", ""):match("^([^/]*)@")
    return user ~= nil and user:find(":", 1, true) ~= nil
end

local PASSWORD = "an address with user:password@ in it is refused: comments are public, and so is"
    .. " a password in one; leave it out, and change it, since others may have read it"

-- Whether a path contains . or .., including %2e%2e and ..;x.
local function has_dots(path)
    for _ = 0, 3 do
        for part in path:gmatch("[^/\\]+") do
            part = part:match("^[^;]*")
            if part == "." or part == ".." then
                return true
            end
        end
        path = path:gsub("%%(%x%x)", function(hex)
            return string.char(tonumber(hex, 16))
        end)
    end
    return false
end

local function not_plain(text, what)
    return shown(text) .. " is not a plain " .. what .. ": it has . or .. in it;"
        .. " write the path out"
end

-- Check the path of a scheme; the name of an image in layers may follow it.
local function check_path(text, scheme, rest)
    local path = scheme == "file" and rest or rest:match("^[^:]*")
    if path:sub(1, 1) ~= "/" then
        local start = scheme == "file" and "file:///" or scheme .. ":/"
        return no_reference(text, "the path is not absolute", start .. rest:gsub("^[./]+", ""))
    end
    if ("/" .. path .. "/"):find("/%.%.?/") then
        return not_plain(text, "path")
    end
    if not path:find("[^/]") or (scheme == "file" and path:sub(-1) == "/") then
        return shown(text) .. " names a directory: name the image file in it"
    end
    return nil
end

-- Return what is wrong with HOST[:PORT], or nil.
local function wrong_host(host)
    local name, port = host:match("^(%[[0-9A-Fa-f:.]+%]):?([0-9]*)$")
    if not name then
        name, port = host:match("^([A-Za-z0-9._-]+):?([0-9]*)$")
    end
    if not name or name:find("^[.-]") or name:find("..", 1, true) then
        return cut(host, MAX_SHOWN) .. " is not a host"
    end
    if port ~= "" and (#port > 5 or tonumber(port) < 1 or tonumber(port) > 65535) then
        return port .. " is not a port"
    end
    local last = name:gsub("%.$", ""):match("[^.]*$")
    -- Some programs treat 127.1 and 2130706433 as addresses.
    if last:find("^[0-9]+$") or last:find("^0[xX]%x*$") then
        local is_dotted = name:find("^[0-9]+%.[0-9]+%.[0-9]+%.[0-9]+$")
        for part in name:gmatch("[^.]+") do
            is_dotted = is_dotted and #part <= 3 and tonumber(part) < 256 and not part:find("^0.")
        end
        if not is_dotted then
            return name .. " is not an IPv4 address in dotted decimal"
        end
    end
    return nil
end

local function wrong_repository(repository)
    if repository == "" then
        return "there is no image after the host"
    end
    for part in (repository .. "/"):gmatch("([^/]*)/") do
        if not part:find("^[a-z0-9][a-z0-9._-]*$") or not part:find("[a-z0-9]$")
            or part:find("..", 1, true)
        then
            if repository:find("[A-Z]") then
                return "the names of images are in lower case"
            end
            return (part == "" and "//" or cut(part, MAX_SHOWN))
                .. " cannot be part of an image's name"
        end
    end
    return nil
end

-- Return what is wrong with [USER@][HOST#|HOST/]REPOSITORY[:TAG][@DIGEST], or nil.
local function wrong_name(rest, hub)
    if rest:find("?", 1, true) then
        return "the name of an image has no ? in it"
    elseif rest:find(",", 1, true) then
        return "it has a comma in it; write " .. MARK .. " before each image, and a space"
    end
    local before, after = rest:match("^([^@]*)@(.*)$")
    if before and after:find("#", 1, true) and not before:find("/", 1, true) then
        rest = after
    end
    local host, path = rest:match("^([^#/]*)#(.*)$")
    if host == "" then
        return "it names no image, there is no host before the #"
    end
    if not host then
        local slash
        host, slash, path = rest:match("^([^/]*)(/?)(.*)$")
        if slash == "" then
            local only = host:gsub("@sha256:.*", ""):gsub("^[^@]*@", ""):match("^[^:]*")
            if only:find(".", 1, true) or only == "localhost" then
                return only .. " is a registry and names no image. In a script, sbatch treats #"
                    .. " and everything after it as a comment: write / instead"
            end
        end
        if hub and (slash == "" or not (host:find("[.:%[]") or host == "localhost")) then
            host, path = "docker.io", rest
        end
    end
    local wrong = wrong_host(host)
    if wrong then
        return wrong
    end
    local name, at, digest = path:match("^([^@]*)(@?)(.*)$")
    local repository, colon, tag = name:match("^([^:]*)(:?)(.*)$")
    wrong = wrong_repository(repository)
    if wrong then
        return wrong
    end
    if colon ~= "" and (#tag > 128 or not tag:find("^[A-Za-z0-9_][A-Za-z0-9._-]*$")) then
        return tag == "" and "the tag after the : is missing"
            or cut(tag, MAX_SHOWN) .. " is not a tag"
    end
    if at ~= "" and not (#digest == 71 and digest:find("^sha256:[0-9a-f]+$")) then
        return "a digest is @sha256: and 64 digits of 0-9 and a-f"
    end
    return nil
end

local function check_address(text, scheme, rest)
    if scheme == "file" then
        return check_path(text, scheme, rest)
    end
    local host, path = rest:match("^([^/?#]*)/?([^?#]*)")
    local in_registry, is_web = contains(REGISTRY_SCHEMES, scheme), scheme:find("^https?$")
    local bare = in_registry and not rest:find("[/#]")
    -- For a web server the user alone may be a token.
    local user = rest:match("^([^/]*)@")
    local is_user = user and not in_registry
    if in_registry and user and not bare then
        is_user = not rest:find("^[^/@:]*@[^/@]*#") and not rest:find("^[^/@]*@sha256:")
    end
    if has_password(rest) or is_user then
        return PASSWORD
    end
    if (host == "" and not rest:find("^#")) or (is_web and path == "") then
        local meant = in_registry and rest:match("^/+(.+)$")
        return no_reference(
            text,
            "it names no image, something is missing after the //",
            meant and scheme .. "://" .. meant
        )
    end
    if has_dots(rest:match("^[^?]*")) then
        return not_plain(text, "address")
    end
    local wrong = nil
    if in_registry then
        wrong = wrong_name(rest, scheme == "docker")
    elseif is_web then
        wrong = wrong_host(host)
    end
    return wrong and no_reference(text, wrong)
end

local function check_bare(text)
    if has_password(text) then
        return PASSWORD
    end
    if has_ending(text) or text:find("^%.%.?/") or text:find("^~") then
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
        local why = "it contains characters that no address has: " .. shown(wrong)
        return no_reference(text, why .. hint)
    end
    if is_alias(text) then
        return nil
    end
    if text:sub(1, 1) == "/" then
        return check_path(text, "file", text)
    end
    local written, rest = text:match(SCHEME)
    local scheme = written and lower(written)
    local slashes = rest and rest:sub(1, 2) == "//"
    if contains(PATH_SCHEMES, scheme) then
        if slashes then
            local meant = scheme .. ":/" .. rest:gsub("^/+", "")
            return no_reference(text, "this scheme takes no //", meant)
        end
        return check_path(text, scheme, rest)
    end
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
    return no_reference(
        text,
        cut(written, MAX_NAME) .. ":// is not known; known are " .. table.concat(SCHEMES, "://, ")
            .. "://"
    )
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

-- Words, read as in hpcimg/slurm/comment.py; tests/comment_cases.py tests both.

-- A text without surrounding quotes and brackets.
local function unquoted(text)
    text = text:gsub(QUOTE_OR_OPEN .. "+", "")
    local extra = {}
    for closing, opening in pairs(CLOSING) do
        extra[closing] = select(2, text:gsub("%" .. closing, ""))
            - select(2, text:gsub("%" .. opening, ""))
    end
    local to = #text
    while to > 0 do
        local last = text:sub(to, to)
        if (extra[last] or 0) > 0 then
            extra[last] = extra[last] - 1
        elseif not last:find("[\"'`\\,]") then
            break
        end
        to = to - 1
    end
    return text:sub(1, to)
end

-- The name, or nil, and the reference in what follows the mark.
local function split_name(text)
    local name, rest = text:match(NAMED)
    if name then
        return name, unquoted(rest)
    end
    return nil, text
end

local function image_of(text)
    local name, reference = split_name(text)
    return name and name .. "=" .. reference or reference
end

-- The position after the : or = at `at`, possibly preceded by quotes, or nil.
local function colon(text, at)
    local _, last = text:find(QUOTE .. "*[:=]", at)
    return last and last + 1
end

-- What follows the mark, or nil if the piece does not begin with one.
local function after_mark(piece)
    local body = piece:gsub(QUOTE_OR_OPEN .. "+", "")
    local at = lower(body:sub(1, #KEY)) == KEY and colon(body, #KEY + 1)
    return at and unquoted(body:sub(at))
end

-- Whether this can only be a reference: a URI, a path, a file, NAME:TAG.
local function is_image(text)
    local _, reference = split_name(text)
    if reference:sub(1, 1) == "/" then
        return reference:find("[A-Za-z0-9]") ~= nil
    end
    local head, rest = reference:match("^([^:]*):(.*)$")
    if head and rest:sub(1, 1) == "/" and head:find("^[A-Za-z+.-][A-Za-z0-9+.-]*$") then
        return true
    end
    if has_ending(reference) then
        return true
    end
    return head ~= nil and head:find("^[A-Za-z]") ~= nil and rest:find("^[A-Za-z0-9]") ~= nil
end

-- Split a word where a comma, | or & precedes the mark, and add the pieces to a list.
local function add_pieces(pieces, word)
    local small, begin = lower(word), 1
    local at, last = small:find(KEY, 1, true)
    while at do
        local start = at
        while start > begin and word:find(QUOTE_OR_OPEN, start - 1) do
            start = start - 1
        end
        if start > begin and word:find("^[,|&]", start - 1) and colon(word, last + 1) then
            if start - 1 > begin then
                table.insert(pieces, word:sub(begin, start - 2))
            end
            begin = start
        end
        at, last = small:find(KEY, last + 1, true)
    end
    table.insert(pieces, word:sub(begin))
end

local function is_key(name)
    name = lower(name)
    return contains({ "image", "images", "img", "comment", "uri", "url" }, name)
        or name:find(KEY, 1, true)
end

-- Whether a word begins with the key, or has one wrong letter or two in the wrong place.
local function is_like_key(word)
    -- "contained" is an ordinary word.
    if starts_with(word, KEY) or #word > #KEY + 1 or not word:find("[rs]$") then
        return starts_with(word, KEY)
    end
    local missing, more = KEY, 0
    for letter in word:gmatch(".") do
        local at = missing:find(letter, 1, true)
        if at then
            missing = missing:sub(1, at - 1) .. missing:sub(at + 1)
        else
            more = more + 1
        end
    end
    return #missing <= 1 and more <= 1
end

-- The reference in a near miss, or nil.
local function nearly(piece)
    local small, at = lower(piece), nil
    for _, scheme in ipairs(IMAGE_SCHEMES) do
        local found = small:find(scheme, 1, true)
        at = found and (not at or found < at) and found or at
    end
    if at and not piece:sub(1, at - 1):find("://", 1, true) then
        local before = stripped(piece:sub(1, at - 1), QUOTE_OR_OPEN)
        -- Whatever is between the key and the scheme: container>docker://x
        if before == "" or before:find("[:=,|&]$") or starts_with(lower(before), KEY) then
            local uri, name = unquoted(piece:sub(at)), before:match("^(.*)=$")
            if name and (name .. "="):find(NAMED) and not is_key(name) then
                return name .. "=" .. uri
            end
            return uri
        end
    end
    local body = piece:gsub("^[\"'`\\%(%[{<-]+", "")
    local key = body:match("^[A-Za-z0-9_-]*")
    local value = is_like_key(lower(key)) and colon(body, #key + 1)
    if value and is_image(unquoted(body:sub(value))) then
        return unquoted(body:sub(value))
    end
    local inner = small:find(MARK, 1, true)
    if inner and inner > 1 and piece:find("^[:=]", inner - 1) then
        local after = unquoted(piece:sub(inner + #MARK))
        return is_image(after) and after or nil
    end
    return nil
end

local function look_at_other(piece, wanted)
    local right = not wanted.missed and nearly(piece)
    if right then
        wanted.missed = { written = unquoted(piece), right = right }
    end
end

-- Read a word that requests links; return whether it is one.
local function read_links(piece, wanted)
    local body = unquoted(piece)
    local key, listed = lower(body):match("^([^=]*)=?(.*)$")
    if not starts_with(key, OURS .. ":link") then
        return false
    end
    local some, unknown = false, nil
    for name in listed:gmatch("[^,]+") do
        some = true
        unknown = unknown or not contains(MANAGERS, name) and name or nil
        table.insert(wanted.links, name)
    end
    if key .. "=" ~= LINKS or not some or unknown then
        local why = unknown and "no workflow manager " .. unknown:sub(1, 40) .. " is known"
            or "it asks for no links"
        wanted.problem = wanted.problem or body:sub(1, 60) .. ": " .. why .. "; write " .. LINKS
            .. " and, with commas, some of " .. table.concat(MANAGERS, " ")
    end
    return true
end

local function read_words(text, wanted)
    local pieces, number = {}, 1
    for word in text:gmatch(TOKEN) do
        add_pieces(pieces, word)
    end
    while pieces[number] do
        local piece, following = pieces[number], pieces[number + 1] or ""
        local is_ours = starts_with(piece, MARK)
        local bare, asked = lower(stripped(piece, QUOTE)), nil
        number = number + 1
        if bare == KEY and following:find("^[:=]") then -- container : URI
            piece, following = piece .. following, pieces[number + 1] or ""
            number = number + 1
            asked = after_mark(piece)
            if asked and asked ~= "" and not is_image(asked) then
                asked = "?"
            end
        else
            asked = after_mark(piece)
        end
        if not asked then
            if not read_links(piece, wanted) then
                look_at_other(piece, wanted)
            end
        elseif asked == "" then
            asked = unquoted(following)
            if not after_mark(following) and is_image(asked) then
                table.insert(wanted, image_of(asked))
                number = number + 1
            elseif is_ours then
                table.insert(wanted, "")
            end
        elseif asked:find("[A-Za-z0-9/$~=\128-\255]") then
            table.insert(wanted, image_of(asked))
        end
    end
end

-- JSON (RFC 8259), for comments that are an object

local BLANKS = "^[ \t\r\n]*"
local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local ESCAPE = "\\(.)([0-9A-Fa-f]?[0-9A-Fa-f]?[0-9A-Fa-f]?[0-9A-Fa-f]?)"
local WORDS = { ["true"] = "v", ["false"] = "v", null = "n" }

local function utf8_char(code)
    if code < 0x80 then
        return string.char(code)
    elseif code < 0x800 then
        return string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
    end
    return string.char(
        0xE0 + math.floor(code / 4096), 0x80 + math.floor(code / 64) % 64, 0x80 + code % 64
    )
end

local function unescaped(text)
    return (text:gsub(ESCAPE, function(letter, hex)
        return letter == "u" and utf8_char(tonumber(hex, 16)) or (ESCAPES[letter] or letter) .. hex
    end))
end

local function is_number(word)
    local whole, rest = word:match("^%-?([0-9]+)(.*)$")
    rest = rest and rest:gsub("^%.[0-9]+", ""):gsub("^[eE][+-]?[0-9]+", "")
    return rest == "" and (whole == "0" or whole:sub(1, 1) ~= "0")
end

-- Parse the value that begins at a position; nil if it is malformed. `plain` is the text with its escapes
-- masked, so that a string ends at the next quote, and a backslash is an error.
-- Returns its kind ("[", "{", "s" for a string, "n" for null, "v" for any other), its position and the one
-- after it, the text of a string, and the members of a list or an object, each with its key.
local function json_value(text, plain, from)
    local kind, at = plain:match("^([%[{])[ \t\r\n]*()", from)
    if not kind then
        local to = plain:match('^"[^"\\\1-\31]*"()', from)
        if to then
            return { kind = "s", from = from, to = to, text = unescaped(text:sub(from + 1, to - 2)) }
        end
        local word
        word, to = plain:match("^([A-Za-z0-9+.-]+)()", from)
        kind = word and (WORDS[word] or (is_number(word) and "v"))
        return kind and { kind = kind, from = from, to = to }
    end
    local value = { kind = kind, from = from, members = {} }
    local sign
    sign, value.to = plain:match("^([%]}])()", at)
    sign = sign or ","
    while sign == "," do
        local key = kind == "{" and json_value(text, plain, at)
        if kind == "{" then
            at = key and key.text and plain:match(BLANKS .. ":[ \t\r\n]*()", key.to)
        end
        local member = at and json_value(text, plain, at)
        if not member then
            return nil
        end
        member.key = key and key.text
        table.insert(value.members, member)
        sign, value.to, at = plain:match(BLANKS .. "([,%]}])()[ \t\r\n]*()", member.to)
    end
    return sign == (kind == "{" and "}" or "]") and value or nil
end

-- The object that a whole comment is, or nil.
local function json_object(text)
    local from = text:match(BLANKS .. "(){")
    if not from or select(2, text:gsub("[{%[]", "")) > MAX_NESTED then
        return nil
    end
    local plain = text:gsub(ESCAPE, function(letter, hex)
        local valid = letter:find('["\\/bfnrt]') or (letter == "u" and #hex == 4)
        return valid and "__" .. hex or nil
    end)
    local object = json_value(text, plain, from)
    return object and plain:find(BLANKS .. "$", object.to) and object
end

local function without_mark(text)
    text = stripped(text, "^ ")
    return starts_with(text, MARK) and text:sub(#MARK + 1) or text
end

-- Add the images that the value of the key requests to a list; only strings do.
local function add_value(value, wanted)
    for _, each in ipairs(value.members or (value.kind ~= "n" and { value }) or {}) do
        local name, text = value.kind == "{" and each.key or "", each.text
        if not text then
            wanted.problem = "the value of container in the JSON object is neither text, nor a"
                .. " list or an object of texts"
        elseif name ~= "" then
            table.insert(wanted, image_of(name .. "=" .. without_mark(text)))
        else
            local count = #wanted
            for word in text:gmatch(TOKEN) do
                table.insert(wanted, image_of(without_mark(word)))
            end
            if #wanted == count then
                table.insert(wanted, "")
            end
        end
    end
end

local function is_our_pair(pair)
    return lower(pair.key) == KEY
end

-- What a text of the job requests: images as NAME=REFERENCE or REFERENCE, `missed` for the
-- first near miss, `problem` for an error, `links` for the workflow managers that it
-- requests links for.
function M.read(text)
    local wanted = { links = {} }
    -- Word processors insert typographic quotes.
    text = (text or ""):gsub("\226\128[\152\153\156\157]", '"')
    local has_key = lower(text):find(KEY, 1, true)
    if not has_key and not text:find("/", 1, true) and not lower(text):find(OURS, 1, true) then
        return wanted
    end
    local object = has_key and json_object(text)
    if not object then
        read_words(text, wanted)
        return wanted
    end
    for _, pair in ipairs(object.members) do
        if is_our_pair(pair) then
            add_value(pair, wanted)
        elseif pair.text and is_like_key(lower(pair.key)) then
            look_at_other(pair.key .. ":" .. pair.text, wanted)
        elseif pair.text then
            read_words(pair.text, wanted)
        end
    end
    return wanted
end

-- Adding to a comment

local function quoted(list)
    local text = '"' .. table.concat(list, '","') .. '"'
    return #list == 1 and text or "[" .. text .. "]"
end

-- The comment with more images in it, and otherwise unchanged.
local function with_images(comment, added)
    local object = json_object(comment)
    if object then
        local ours
        for _, pair in ipairs(object.members) do
            ours = is_our_pair(pair) and pair or ours
        end
        if not ours then
            local comma, close = object.members[1] and "," or "", object.to - 1
            return comment:sub(1, close - 1) .. comma .. '"' .. KEY .. '":' .. quoted(added)
                .. comment:sub(close)
        end
        local all = {}
        add_value(ours, all)
        for _, each in ipairs(added) do
            table.insert(all, each)
        end
        return comment:sub(1, ours.from - 1) .. quoted(all) .. comment:sub(ours.to)
    end
    -- A site that splits comments at ";" must find its own last word unchanged.
    local separator = comment:find(";", 1, true) and not comment:find(SPACE) and ";" or " "
    local between = comment ~= "" and comment:sub(-1):find(TOKEN) and separator or ""
    return comment .. between .. MARK .. table.concat(added, separator .. MARK)
end

local function refused(where, problem)
    return nil, cut(printable("hpcimg: in " .. where .. ": " .. problem), MAX_MESSAGE)
end

--- Add references to a job's comment and check every image that it then requests.
--
-- comment, references and extra (the value of --extra) may be nil; references are separated
-- by white space or ";". The rest of the comment is unchanged, and an image that the job
-- already requests is not added again. The time is linear in the lengths.
-- Returns the comment, or nil and a sentence for the user.
function M.merge(comment, references, extra)
    comment = comment or ""
    local seen, names, count = {}, {}, 0

    -- Returns whether the image is new, or nil and what is wrong with it.
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

    for _, place in ipairs({ { "the job's comment", comment }, { "--extra", extra } }) do
        local wanted = M.read(place[2])
        local problem = wanted.problem
        for _, text in ipairs(wanted) do
            problem = problem or select(2, ask(text))
        end
        local missed = wanted.missed
        if missed and not problem then
            problem = select(2, check_image(missed.right))
                or shown(missed.written) .. " requests no image; did you mean " .. MARK
                    .. cut(missed.right, MAX_SHOWN)
        end
        if problem then
            return refused(place[1], problem)
        end
    end

    local added = {}
    for token in (references or ""):gmatch(TOKEN) do
        local text = image_of(unquoted(after_mark(token) or token))
        local new, problem = ask(text)
        if problem then
            return refused("HPCIMG_CONTAINER", problem)
        end
        if new then
            table.insert(added, text)
        end
    end
    if #added == 0 then
        return comment
    end
    local merged = with_images(comment, added)
    if #merged > MAX_COMMENT then
        return refused(
            "HPCIMG_CONTAINER",
            "with these images the job's comment has " .. #merged .. " characters, and "
                .. MAX_COMMENT .. " is Slurm's limit; name fewer images, or ask for aliases"
        )
    end
    return merged
end

return M
