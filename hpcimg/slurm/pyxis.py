"""What `--container-image` and PYXIS_CONTAINER_IMAGE of pyxis name, as Slurm hands it to Prolog.

Loaded only for a job that has either. Imports nothing.
"""

# The option: of srun that makes an allocation, sbatch and salloc; not of srun within a job.
VARIABLE = "SPANK__SLURM_SPANK_OPTION_pyxis_container_image"
FORMAT = "squashfs"  # enroot takes no other, whatever the site's format is
# The name under which the submit filter adds to the comment what is in the variable of this name.
NAME = "PYXIS_CONTAINER_IMAGE"
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


def take_out(images: list[tuple[str, str]], option: str) -> list[str]:
    """Remove from a job's images what is pyxis' own; return it, and what the option names."""
    found = [text for name, text in images if name == NAME]
    images[:] = [(name, text) for name, text in images if name != NAME]
    return [text for text in dict.fromkeys(map(reference, [option, *found])) if text]
