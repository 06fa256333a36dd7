"""Asking whether an image is one that the site trusts: its SIF signatures, or a program's word.

Runs in the process without rights. Nothing but the exit code of what it starts is believed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import NamedTuple

from hpcimg import plainfile, programs
from hpcimg.convert import RUNTIMES
from hpcimg.errors import HpcimgError, MissingTool, NodeError, NotAllowed
from hpcimg.image import formats

_SIGNATURE = 0x4005
_GROUP = 0x0FFFFFFF  # what is no flag in a descriptor's group
_KEYRING_MAX = 64 << 20
_PACKET = 0x80  # is set in the first byte of all that OpenPGP has: RFC 9580, section 4.2


class Work(NamedTuple):
    """One file to ask about.

    `how` is "sif" or a program's path. `keyring` is a file of OpenPGP public keys as
    Apptainer keeps it, "" for its global one alone. `file` is open, to be read, and may be opened
    again by /proc/self/fd. `source` is the manifest's digest of a converted image. `directory` is
    an empty one; what is left in it is for the caller to remove.
    """

    uri: str
    how: str
    keyring: str
    file: int
    source: str
    directory: str


def verify(work: Work) -> None:
    """Return where the image is trusted. Raises NotAllowed where not, NodeError, MissingTool."""
    if work.how == "sif":
        _check_signatures(work)
    else:
        argv = [work.how, work.uri, *filter(None, [work.source])]
        _run(work, argv, programs.environment(HOME=work.directory))


def check_ready(how: str, keyring: str) -> None:
    """Look for what `verify` needs on this node, as who calls. Raises NodeError, MissingTool."""
    if how != "sif":
        if not os.path.isfile(how) or not os.access(how, os.X_OK, effective_ids=True):
            raise _broken(how, "the account that fetches cannot run it")
        return
    _find_runtime()
    if keyring:
        _read_keyring(keyring)


def _check_signatures(work: Work) -> None:
    program = _find_runtime()
    head = os.pread(work.file, formats.SIF_HEADER.size, 0)
    if head[32:42] != formats.SIF_MAGIC:
        raise NotAllowed.unverified(work.uri, "it is not a SIF file, so nobody can have signed it")
    if _has_unsigned_parts(work.file, head):
        raise NotAllowed.unverified(work.uri, "it has parts that belong to no signed group")
    keys = f"{work.directory}/keys"
    os.mkdir(keys, 0o700)
    if work.keyring:  # a copy: it has to belong to who verifies
        content = _read_keyring(work.keyring)
        descriptor = os.open(f"{keys}/pgp-public", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
    names = ("APPTAINER_KEYSDIR", "SINGULARITY_KEYSDIR", "SINGULARITY_SYPGPDIR")
    environment = programs.environment(HOME=work.directory, **dict.fromkeys(names, keys))
    # Local: no key server is asked, which has keys of everybody.
    argv = [program, "--silent", "verify", "--local", f"/proc/self/fd/{work.file}"]
    _run(work, argv, environment)


def _find_runtime() -> str:
    program = programs.find(*RUNTIMES)
    if not program:
        raise MissingTool(
            "signatures cannot be verified on this node",
            why="it has neither Apptainer nor Singularity",
            do="Administrators: install one of them, or change [policy] verify.",
        )
    return program


def _read_keyring(path: str) -> bytes:
    """Return the site's keyring. Raises NodeError where it cannot be read, or is none."""
    try:
        content = plainfile.read(path, most=_KEYRING_MAX)
    except (OSError, ValueError) as error:
        raise NodeError(
            "[policy] keyring cannot be read",
            why=str(error),
            do=f"The account that fetches (uid {os.geteuid()}) has to be able to read it.",
        ) from None
    if content and content[0] < _PACKET:
        raise NodeError(
            "[policy] keyring is not a keyring",
            why="it is text, such as a key that was exported with --armor",
            do="Administrators: `apptainer key import` makes a keyring of it.",
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
    """Tell whether there is something in no group: it is groups that are signed.

    A runtime would use an overlay, or a root file system, that is in none. Apptainer 1.4 looks
    for this, too; it is not left to the release at hand.
    """
    fields = formats.SIF_HEADER.unpack(head)  # `formats.identify` has looked at the numbers
    total, offset = fields[8], fields[9]
    raw = os.pread(file, total * formats.SIF_DESCRIPTOR.size, offset)
    return any(
        used and kind != _SIGNATURE and not group & _GROUP
        for kind, used, _, group, *_ in formats.SIF_DESCRIPTOR.iter_unpack(raw)
    )
