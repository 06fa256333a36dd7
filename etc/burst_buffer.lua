-- burst_buffer.lua: fetch a job's images into the site tier before the job starts.
--
--     BurstBufferType=burst_buffer/lua   in slurm.conf, with this file beside it
--
-- Slurm calls slurm_bb_data_in while a job is pending and starts the job when it returns. It
-- fetches the images in the script's #BB_LUA lines, which job_submit.lua (with STAGE_IN) writes
-- from the comment, so that users change nothing. It runs as SlurmUser on the slurmctld host,
-- which must mount the site tier. See docs/how-images-travel.md.

-- The command that fetches, as a user who may write to the site tier. In /etc/sudoers.d/hpcimg:
--     slurm ALL=(root) NOPASSWD: /usr/bin/hpcimg prefetch *
local COMMAND = "sudo -n /usr/bin/hpcimg prefetch"
-- Whether to hold a job whose image cannot be fetched, with the reason in squeue. Otherwise the job
-- starts and fails with Prolog's message in its output.
local HOLD = false

local MAX_IMAGES = 32
local MAX_URI = 1024
local MARK = "container:"
-- A reference with any other character is ignored. None of these ends a quoted word in the shell.
local FORBIDDEN = "[^A-Za-z0-9%-._~:/?#%[%]@!&()*+,;=%%]"

-- The references in the script's directives. Users can write these lines themselves.
local function references(path)
    local found, seen = {}, {}
    local script = io.open(path)
    if not script then
        return found
    end
    for line in script:lines() do
        for word in (line:match("^#BB_LUA%s+(.*)") or ""):gmatch("%S+") do
            local uri = word:sub(1, #MARK) == MARK and word:sub(#MARK + 1) or ""
            local fits = uri ~= "" and #uri <= MAX_URI and not uri:find(FORBIDDEN)
            if fits and not seen[uri] and #found < MAX_IMAGES then
                seen[uri] = true
                table.insert(found, uri)
            end
        end
    end
    script:close()
    return found
end

-- Fetch the images. Returns the exit code and the last line of output.
local function prefetch(uris)
    local words = {}
    for _, uri in ipairs(uris) do
        table.insert(words, "'" .. uri .. "'")
    end
    local command = COMMAND .. " -- " .. table.concat(words, " ") .. " 2>&1 </dev/null; echo $?"
    local pipe = io.popen(command)
    local lines = {}
    for line in pipe:lines() do
        table.insert(lines, line)
    end
    pipe:close()
    local code = tonumber(table.remove(lines) or "")
    return code or 127, lines[#lines] or ""
end

local function data_in(job, script)
    local uris = references(script)
    if #uris == 0 then
        return slurm.SUCCESS, ""
    end
    local code, said = prefetch(uris)
    slurm.log_info("hpcimg: job %s: prefetch of %d ended with %d: %s", job, #uris, code, said)
    -- 10 to 19: the image cannot be fetched. Other failures may have gone away when the job starts.
    if HOLD and code >= 10 and code < 20 then
        return slurm.ERROR, said
    end
    return slurm.SUCCESS, ""
end

-- An error in here must not hold the jobs of the whole site.
function slurm_bb_data_in(job, script, ...)
    local ok, result, said = pcall(data_in, tostring(job), script)
    if ok then
        return result, said
    end
    slurm.log_error("hpcimg: burst_buffer.lua: %s", tostring(result))
    return slurm.SUCCESS, ""
end

-- Slurm requires all of its functions. These have nothing to do for an image.
for _, name in ipairs({
    "job_process", "job_teardown", "setup", "paths", "pre_run", "post_run", "data_out",
}) do
    _G["slurm_bb_" .. name] = function()
        return slurm.SUCCESS
    end
end

function slurm_bb_pools()
    return slurm.SUCCESS, '{"pools": []}'
end

function slurm_bb_test_data_in(_job, _script)
    return slurm.SUCCESS, "" -- finished, not in progress
end

function slurm_bb_test_data_out(_job, _script)
    return slurm.SUCCESS, ""
end

function slurm_bb_real_size(_job)
    return slurm.SUCCESS, "0"
end

function slurm_bb_get_status(...)
    return slurm.SUCCESS, "hpcimg fetches images into the site tier"
end
