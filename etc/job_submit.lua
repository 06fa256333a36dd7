-- job_submit.lua: images named in HPCIMG_CONTAINER go into the job's comment.
--
--     JobSubmitPlugins=lua        in slurm.conf on the slurmctld host
--
-- For sbatch only: srun and salloc do not send their environment. --comment, also when set
-- later by scontrol update, is checked for all of them. Put this file and hpcimg.lua next
-- to slurm.conf. It runs within slurmctld, under its locks.

local CONSEQUENCE = "the job goes on; its container images were neither checked nor added"

-- Loaded only for jobs that request images, once for each of them: changes take
-- effect at once, and it takes less than a millisecond.
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

-- Whether a text may concern hpcimg: few comments contain any of these.
local function mentions_image(text)
    local small = text and text:lower()
    return small and (small:find("/", 1, true) or small:find("container", 1, true)
        or small:find("hpcimg", 1, true))
end

-- Check the comment of job_desc and add references, which may be nil.
local function check(job_desc, references)
    local comment, extra = job_desc.comment, job_desc.extra
    if not (references or mentions_image(comment) or mentions_image(extra)) then
        return slurm.SUCCESS
    end
    local merged, problem = load_hpcimg().merge(comment, references, extra)
    if not merged then
        slurm.log_user("%s", problem)
        return slurm.ERROR
    end
    if merged ~= (comment or "") then
        job_desc.comment = merged
    end
    return slurm.SUCCESS
end

local function submit(job_desc)
    -- Reading the environment of srun and salloc, which do not send it, would log a line each.
    local environment = job_desc.script and job_desc.environment
    return check(job_desc, environment and environment["HPCIMG_CONTAINER"])
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
