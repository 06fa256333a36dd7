"""What `--container-image` of pyxis names, as Slurm hands it to Prolog. Imports nothing."""

# Of srun that makes an allocation, sbatch and salloc; not of srun within a job.
VARIABLE = "SPANK__SLURM_SPANK_OPTION_pyxis_container_image"
FORMAT = "squashfs"  # enroot takes no other, whatever the site's format is
_SCHEME = "docker://"


def reference(value: str) -> str:
    """Return the reference that an option's value stands for, "" for what enroot opens itself.

    pyxis takes `[docker://][USER@][REGISTRY#]IMAGE[:TAG]`, files by a path, and what its own
    import may know besides.
    """
    if not value or value.startswith(("/", ".")):
        return ""
    if "://" not in value:
        return _SCHEME + value
    return value if value.startswith(_SCHEME) else ""
