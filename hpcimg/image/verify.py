"""Checking whether the site trusts an image: by its SIF signatures, or by a program.

Runs in the unprivileged process. Only the exit code of the started program is trusted.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import NamedTuple

from hpcimg import plainfile, programs
from hpcimg.errors import HpcimgError, MissingTool, NodeError, NotAllowed
from hpcimg.image import formats

_SIGNATURE = 0x4005
_GROUP = 0x0FFFFFFF  # masks the flags in a descriptor's group
_KEYRING_MAX = 64 << 20
_PACKET = 0x80  # set in the first byte of any OpenPGP data: RFC 9580, section 4.2


class Work(NamedTuple):
    """One file to check.

    `how` is "sif" or a program's path. `keyring` is a file of OpenPGP public keys in Apptainer's
    format, "" for its global one alone. `file` is open for reading, and may be opened again by
    /proc/self/fd. `source` is the manifest digest of a converted image. `directory` is empty; the
    caller removes what is left in it.
    """

    uri: str
    how: str
    keyring: str
    file: int
    source: str
    directory: str


def verify(work: Work) -> None:
    """Return if the image is trusted. Raises NotAllowed if not, NodeError, MissingTool."""
    if work.how == "sif":
        _check_signatures(work)
    else:
        argv = [work.how, work.uri, *filter(None, [work.source])]
        _run(work, argv, programs.environment(HOME=work.directory))


def check_ready(how: str, keyring: str) -> None:
    """Check, as the caller, that `verify` can work on this node. Raises NodeError, MissingTool."""
    if how != "sif":
        if not os.path.isfile(how) or not os.access(how, os.X_OK, effective_ids=True):
            raise _broken(how, "the unprivileged account cannot run it")
        return
    _find_runtime()
    if keyring:
        _read_keyring(keyring)


def _check_signatures(work: Work) -> None:
    program = _find_runtime()
    head = os.pread(work.file, formats.SIF_HEADER.size, 0)
    if head[32:42] != formats.SIF_MAGIC:
        raise NotAllowed.unverified(work.uri, "it is not a SIF file, so it cannot be signed")
    if _has_unsigned_parts(work.file, head):
        raise NotAllowed.unverified(work.uri, "it has parts that belong to no signed group")
    keys = f"{work.directory}/keys"
    os.mkdir(keys, 0o700)
    if work.keyring:  # a copy: it must belong to the account that verifies
        content = _read_keyring(work.keyring)
        descriptor = os.open(f"{keys}/pgp-public", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
    names = ("APPTAINER_KEYSDIR", "SINGULARITY_KEYSDIR", "SINGULARITY_SYPGPDIR")
    environment = programs.environment(HOME=work.directory, **dict.fromkeys(names, keys))
    # --local: do not ask key servers, which have anybody's keys.
    argv = [program, "--silent", "verify", "--local", f"/proc/self/fd/{work.file}"]
    _run(work, argv, environment)


def _find_runtime() -> str:
    program = programs.find(*programs.RUNTIMES)
    if not program:
        raise MissingTool(
            "signatures cannot be verified on this node",
            why="it has neither Apptainer nor Singularity",
            do="Administrators: install one of them, or change [policy] verify.",
        )
    return program


def _read_keyring(path: str) -> bytes:
    """Return the site's keyring. Raises NodeError if it cannot be read, or is not one."""
    try:
        content = plainfile.read(path, most=_KEYRING_MAX)
    except (OSError, ValueError) as error:
        raise NodeError(
            "[policy] keyring cannot be read",
            why=str(error),
            do=f"The unprivileged account (uid {os.geteuid()}) must be able to read it.",
        ) from None
    if content and content[0] < _PACKET:
        raise NodeError(
            "[policy] keyring is not a keyring",
            why="it is text, such as a key that was exported with --armor",
            do="Administrators: convert it with `apptainer key import`.",
        )
    return content


def _run(work: Work, argv: list[str], environment: dict[str, str]) -> None:
    os.lseek(work.file, 0, os.SEEK_SET)
    with programs.listen() as words:
        try:
            done = subprocess.run(
                argv,
                stdin=work.file,
                stdout=subprocess.DEVNULL,
                stderr=words,
                cwd="/",
                env=environment,
                pass_fds=(work.file,),
                preexec_fn=programs.die_with_parent(),
                check=False,
            )
        except OSError as error:
            raise _broken(argv[0], error.strerror or "") from None
        said = programs.last_words(words)
    if done.returncode in (-signal.SIGKILL, -signal.SIGTERM):
        raise _broken(argv[0], f"it was killed by signal {-done.returncode}")
    if done.returncode:
        raise NotAllowed.unverified(
            work.uri,
            f"{os.path.basename(argv[0])} says: {said}"
            if said
            else f"{os.path.basename(argv[0])} refuses it",
        )


def _broken(program: str, why: str) -> HpcimgError:
    return NodeError(f"{program} cannot say whether an image is verified", why=why)


def _has_unsigned_parts(file: int, head: bytes) -> bool:
    """Tell whether any part belongs to no group: signatures cover groups.

    A runtime would use an overlay, or a root file system, without a group. Apptainer 1.4 checks for
    this, too, but older releases do not.
    """
    fields = formats.SIF_HEADER.unpack(head)  # `formats.identify` has checked the numbers
    total, offset = fields[8], fields[9]
    raw = os.pread(file, total * formats.SIF_DESCRIPTOR.size, offset)
    return any(
        used and kind != _SIGNATURE and not group & _GROUP
        for kind, used, _, group, *_ in formats.SIF_DESCRIPTOR.iter_unpack(raw)
    )
