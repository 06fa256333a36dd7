-- job_submit.lua: images named in HPCIMG_CONTAINER go into the job's comment.
--
--     JobSubmitPlugins=lua        in slurm.conf on the slurmctld host
--
-- For sbatch only: srun and salloc do not send their environment. What is written in
-- --comment, or later by scontrol update, is checked for all of them. Put this file and
-- hpcimg.lua beside slurm.conf. It runs within slurmctld, under its locks.

-- Bring a batch job's images while it is pending, by burst_buffer.lua. Root's jobs may not have that,
-- and a job that asks for a burst buffer of its own keeps it.
local STAGE_IN = false

-- Let a job prefer nodes that have had its first image, by the features that `hpcimg features` sets.
-- Only with SchedulerParameters=ignore_prefer_validation: Slurm refuses a feature that it does not
-- know. A job that names features itself, as a constraint or a preference, keeps to those.
local PREFER = false

local CONSEQUENCE = "the job goes on, its container images were not checked or not asked for"

-- Loaded for the jobs that ask for images only, and anew for each of them: a change is in
-- force at once, and it takes less than a millisecond.
local function load_hpcimg()
    local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
    for _, directory in ipairs({ here or "/etc/slurm", "/etc/slurm", "/etc/hpcimg" }) do
        local path = directory .. "/hpcimg.lua"
        local file = io.open(path)
        if file then
            file:close()
            return dofile(path)
        end
    end
    error("hpcimg.lua is not in " .. (here or "/etc/slurm") .. " nor in /etc/hpcimg", 0)
end

-- Whether there may be something of ours in it: few comments have any of these.
local function mentions_image(text)
    local small = text and text:lower()
    return small and (small:find("/", 1, true) or small:find("container", 1, true)
        or small:find("hpcimg", 1, true))
end

-- The references in a comment, without their names.
local function references_in(hpcimg, comment)
    local found = {}
    for _, text in ipairs(hpcimg.read(comment)) do
        table.insert(found, text:match("^[A-Za-z_][A-Za-z0-9_]*=(.*)$") or text)
    end
    return found
end

-- What burst_buffer.lua reads, or nil where there is nothing to fetch.
local function stage_in(images)
    local words = {}
    for _, image in ipairs(images) do
        -- What is on a mounted file system is on all nodes already.
        local mounted = image:find("^/") or image:find("^file:") or image:find("^oci[:-]")
            or image:find("^docker%-archive:")
        if not mounted then
            table.insert(words, "container:" .. image)
        end
    end
    return words[1] and "#BB_LUA " .. table.concat(words, " ")
end

-- The node feature of an image, as hpcimg/slurm/features.py names it.
local function feature(image)
    local name = "hpcimg_"
    for _, factor in ipairs({ 31, 131 }) do
        local number = 0
        for at = 1, #image do
            number = (number * factor + image:byte(at)) % 4294967291
        end
        name = name .. string.format("%08x", number)
    end
    return name
end

-- Bring the comment of job_desc in order. references may be nil.
local function check(job_desc, references, on_submit)
    local comment, extra = job_desc.comment, job_desc.extra
    if not (references or mentions_image(comment) or mentions_image(extra)) then
        return slurm.SUCCESS
    end
    local hpcimg = load_hpcimg()
    local merged, problem = hpcimg.merge(comment, references, extra)
    if not merged then
        slurm.log_user("%s", problem)
        return slurm.ERROR
    end
    if merged ~= (comment or "") then
        job_desc.comment = merged
    end
    local images = on_submit and (STAGE_IN or PREFER) and references_in(hpcimg, merged) or {}
    local is_staged = STAGE_IN and job_desc.script and job_desc.user_id ~= 0
    if is_staged and (job_desc.burst_buffer or "") == "" then
        job_desc.burst_buffer = stage_in(images)
    end
    local has_none = (job_desc.prefer or "") == "" and (job_desc.features or "") == ""
    if PREFER and images[1] and has_none then
        job_desc.prefer = feature(images[1])
    end
    return slurm.SUCCESS
end

local function submit(job_desc)
    -- To look into the environment that srun and salloc do not send costs a line of log each.
    local environment = job_desc.script and job_desc.environment
    return check(job_desc, environment and environment["HPCIMG_CONTAINER"], true)
end

-- An error in here or in hpcimg.lua must not refuse the jobs of the whole site.
local function guarded(hook, job_desc)
    local ok, result = pcall(hook, job_desc)
    if ok then
        return result
    end
    slurm.log_error("hpcimg: %s: %s", tostring(result), CONSEQUENCE)
    return slurm.SUCCESS
end

function slurm_job_submit(job_desc, _part_list, _submit_uid)
    return guarded(submit, job_desc)
end

-- Slurm 22.05 keeps the message for slurmctld's log, and scontrol says "Unspecified error".
function slurm_job_modify(job_desc, _job_rec, _part_list, _modify_uid)
    return guarded(check, job_desc)
end
