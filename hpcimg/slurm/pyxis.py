"""The images given to `--container-image` and PYXIS_CONTAINER_IMAGE of pyxis, as Prolog gets them.

Loaded only for a job that has either. Imports nothing.
"""

# The option: for an srun that makes an allocation, sbatch and salloc; not for an srun within a job.
VARIABLE = "SPANK__SLURM_SPANK_OPTION_pyxis_container_image"
FORMAT = "squashfs"  # the only one that enroot reads, whatever the site's format
# The name under which the submit filter adds the value of this variable to the comment.
NAME = "PYXIS_CONTAINER_IMAGE"
_SCHEME = "docker://"


def reference(value: str) -> str:
    """Return the reference for an option's value, "" for one that enroot opens itself.

    pyxis accepts `[docker://][USER@][REGISTRY#]IMAGE[:TAG]`, paths of files, and whatever its own
    import supports.
    """
    if not value or value.startswith(("/", ".")):
        return ""
    if "://" not in value:
        return _SCHEME + value
    return value if value.startswith(_SCHEME) else ""


def take_out(images: list[tuple[str, str]], option: str) -> list[str]:
    """Remove pyxis' images from a job's images; return them, and the one in the option."""
    found = [text for name, text in images if name == NAME]
    images[:] = [(name, text) for name, text in images if name != NAME]
    return [text for text in dict.fromkeys(map(reference, [option, *found])) if text]
