-- cli_filter.lua: images named in HPCIMG_CONTAINER, and that of PYXIS_CONTAINER_IMAGE, go into the
-- job's comment.
--
--     CliFilterPlugins=lua        in slurm.conf on the hosts where jobs are submitted
--
-- For sbatch, srun and salloc. Put this file and hpcimg.lua beside slurm.conf, or
-- hpcimg.lua in /etc/hpcimg where Slurm hands out its own files only ("configless").

local CONSEQUENCE = "the job goes on; its container images were neither checked nor added"

-- Loaded only for jobs that request images: the others work even without hpcimg.lua.
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

-- What pyxis reads from the environment, which Prolog does not see; nil where the option is
-- given, which Prolog sees and which comes first, and for what enroot opens by itself.
local function pyxis_image(options)
    local image = os.getenv("PYXIS_CONTAINER_IMAGE")
    if not image or image == "" or image:find("^[./]") then
        return nil
    end
    local pyxis = (options["spank"] or {})["pyxis"] or {}
    if (pyxis["container-image"] or "unset") ~= "unset" then
        return nil
    end
    image = image:find("://", 1, true) and image or "docker://" .. image
    return image:find("^docker://") and "PYXIS_CONTAINER_IMAGE=" .. image or nil
end

local function pre_submit(options)
    local comment, references = options["comment"], os.getenv("HPCIMG_CONTAINER")
    local extra = options["extra"] -- Slurm has it since 23.02
    local pyxis = pyxis_image(options)
    if not (pyxis or references or mentions_image(comment) or mentions_image(extra)) then
        return slurm.SUCCESS
    end
    -- srun within a job starts a step of it: what was to be staged has been.
    if options["type"] == "srun" and tonumber(options["jobid"] or nil) then
        return slurm.SUCCESS
    end
    local merged, problem = load_hpcimg().merge(comment, references, extra)
    if not merged then
        -- log_user is missing in some releases, and broken in others.
        slurm.log_error("%s", problem)
        return slurm.ERROR
    end
    -- What is wrong with it, enroot says.
    merged = pyxis and load_hpcimg().merge(merged, pyxis, extra) or merged
    if merged ~= (comment or "") then
        options["comment"] = merged
    end
    return slurm.SUCCESS
end

function slurm_cli_pre_submit(options, _offset)
    -- A mistake in here or in hpcimg.lua must not refuse the jobs of the whole site.
    local ok, result = pcall(pre_submit, options)
    if ok then
        return result
    end
    slurm.log_error("hpcimg: %s: %s", tostring(result), CONSEQUENCE)
    return slurm.SUCCESS
end

-- Slurm refuses a script that lacks any of the three functions.
function slurm_cli_setup_defaults(_options, _early)
    return slurm.SUCCESS
end

function slurm_cli_post_submit(_offset, _job_id, _step_id)
    return slurm.SUCCESS
end
