"""A file system of an ordinary user's that answers nobody, by FUSE.

Who reads from it waits, and SIGKILL does not end that: the request was taken and is not answered.
It ends when the process that serves it does. A user mounts one where all can see it by fusermount,
which is set-uid root: `mounted` does what that does. Or in a namespace of the user's
own, which others of the user's reach by /proc/PID/root: this file as a program does that.

    /usr/bin/python3 hungmount.py DEVICE DIRECTORY      says its pid when it is mounted
    /usr/bin/python3 hungmount.py FD                    serves what is mounted
"""

import contextlib
import ctypes
import os
import pwd
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MNT_DETACH = 2
_FUSE_INIT = 26
_READ = 1 << 20
_DEVICE = os.makedev(10, 229)  # Linux allocated devices, /dev/fuse
_PYTHON = "/usr/bin/python3"  # which every user may run


def prepare(directory: Path) -> list[str]:
    """Make what a user needs in a directory that all may enter; return the user's command.

    A device that all may open, as distributions have it, and a copy of this. Raises OSError.
    """
    device, program = directory / "fuse", directory / "hungmount.py"
    os.mknod(device, stat.S_IFCHR | 0o666, _DEVICE)
    device.chmod(0o666)
    os.close(os.open(device, os.O_RDWR))
    program.write_text(Path(__file__).read_text())
    program.chmod(0o644)
    return [_PYTHON, str(program), str(device)]


@contextlib.contextmanager
def mounted(directory: Path, uid: int, gid: int | None = None) -> Iterator[Path]:
    """Give a directory below this one with such a file system, for this user alone.

    What was there before is hidden by it. `gid` is the user's group where it is not that of
    this host's accounts. Needs root. Raises OSError where FUSE is not to be had.
    """
    mount = directory / "mount"
    mount.mkdir(exist_ok=True)
    _, program, device = prepare(directory)
    file = os.open(device, os.O_RDWR)
    try:
        gid = pwd.getpwuid(uid).pw_gid if gid is None else gid
        _mount(mount, file, uid, gid)
        argv = [_PYTHON, program, str(file)]
        with subprocess.Popen(argv, pass_fds=[file], user=uid, group=gid, env={}) as process:
            try:
                yield mount
            finally:
                process.kill()
    finally:
        os.close(file)
        ctypes.CDLL(None).umount2(str(mount).encode(), _MNT_DETACH)


def _mount(directory: Path, file: int, uid: int, gid: int) -> None:
    options = f"fd={file},rootmode=40000,user_id={uid},group_id={gid}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.mount(b"hung", str(directory).encode(), b"fuse", 0, options))


def _serve(file: int) -> None:
    """Read requests and answer none, endlessly."""
    _, opcode, unique = struct.unpack_from("<IIQ", os.read(file, _READ))
    assert opcode == _FUSE_INIT
    # struct fuse_init_out of protocol 7.31: without an answer to this one SIGKILL would do.
    answer = struct.pack("<IIIIHHI", 7, 31, 0, 0, 0, 0, 1 << 16) + bytes(40)
    os.write(file, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
    print(os.getpid(), flush=True)
    while True:
        os.read(file, _READ)


def _mount_alone(device: str, directory: str) -> int:
    uid, gid = os.getuid(), os.getgid()
    _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    file = os.open(device, os.O_RDWR)
    _mount(Path(directory), file, 0, 0)
    return file


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    _serve(int(sys.argv[1]) if len(sys.argv) == 2 else _mount_alone(*sys.argv[1:]))
