"""Whole conversions: real mksquashfs, and what it makes read back."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import platform
import stat
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest

from hpcimg.convert import pick_format, programs
from hpcimg.convert.image import Work, convert
from hpcimg.errors import (
    Damaged,
    HpcimgError,
    Interrupted,
    MissingTool,
    NodeError,
    NoRoom,
    NotAnImage,
    TooLarge,
    WrongArchitecture,
)  # fmt: skip
from hpcimg.formats import identify
from tests.parts import layers
from tests.parts.daemon import missing_commands, wait_until
from tests.parts.layers import (
    TIME,
    converted,
    file,
    folder,
    layer,
    link,
    special,
    symlink,
    unpack,
    whiteout,
    zstd,
)  # fmt: skip

pytestmark = pytest.mark.skipif(bool(layers.missing()), reason=layers.missing() or "-")
ROOT = Path(__file__).resolve().parents[2]


def refused(path: Path, error: type[HpcimgError], *data: bytes, config: str = "{}") -> str:
    """Return what is said of an image that cannot be converted."""
    with pytest.raises(error) as caught:
        converted(path, data, config=config)
    assert str(caught.value).isprintable()
    return str(caught.value)


def fake(folder_: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put programs of the test's own before the machine's."""
    for name, script in scripts.items():
        path = folder_ / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setattr(programs, "PATH", f"{folder_}:{programs.PATH}")


# What comes out


@pytest.mark.parametrize("format", ["sif", "squashfs"])
def test_a_whole_image(tmp_path: Path, format: str) -> None:
    odd = b"new\nline \xff".decode(errors="surrogateescape")
    long = f"{'d' * 200}/{'e' * 255}"
    path = converted(
        tmp_path / "image",
        [
            layer(
                folder("usr", mode=0o711), file("usr/run", b"run", mode=0o4755), file(odd, b"1"),
                file("gone"), file("big", b"0123456789" * 100_000), link("hard", "usr/run"),
                special("null", tarfile.CHRTYPE), special("pipe", tarfile.FIFOTYPE),
            ),
            layer(file(long, b"2"), symlink("soft", "/x" * 300), whiteout("gone")),
        ],
        format=format,
    )  # fmt: skip
    with path.open("rb") as image:
        expected = (format, platform.machine() if format == "sif" else "")
        assert identify(image.fileno(), "it") == expected
    tree = unpack(path)
    assert stat.S_IMODE(tree.stat().st_mode) == 0o755
    assert oct((tree / "usr").stat().st_mode) == "0o40711"
    run = (tree / "usr/run").stat()
    assert (run.st_size, int(run.st_mtime), run.st_nlink) == (3, TIME, 2)
    assert run.st_ino == (tree / "hard").stat().st_ino
    assert (tree / odd).read_bytes() == b"1"
    assert (tree / long).read_bytes() == b"2"
    assert (tree / "big").read_bytes() == b"0123456789" * 100_000
    assert os.readlink(tree / "soft") == "/x" * 300
    assert stat.S_ISFIFO((tree / "pipe").stat().st_mode)
    assert not (tree / "gone").exists()
    assert not (tree / "null").exists()


@pytest.mark.parametrize("compression", ["lz4", "xz", "gzip", "gzip:1", "zstd", "zstd:3"])
def test_compressions(tmp_path: Path, compression: str) -> None:
    path = converted(tmp_path / "image", [layer(file("a", b"1"))], compression=compression)
    assert (unpack(path) / "a").read_bytes() == b"1"
    code = {"gzip": 1, "xz": 4, "lz4": 5, "zstd": 6}[compression.partition(":")[0]]
    assert path.read_bytes()[20] == code


def test_layers_packed_in_all_ways(tmp_path: Path) -> None:
    data = [
        layer(file("a", b"low"), file("b", b"1")),
        layer(file("a", b"middle"), file("c", b"2"), pack=bytes),
        layer(file("a", b"high"), pack=zstd if not missing_commands("zstd") else bytes),
        b"",
    ]
    tree = unpack(converted(tmp_path / "image", data))
    assert [(tree / name).read_bytes() for name in "abc"] == [b"high", b"1", b"2"]


def test_a_layer_with_a_path_twice_begins_the_image_again(tmp_path: Path) -> None:
    noise = os.urandom(3_000_000)
    data = layer(file("a", noise), file("d/x", noise), file("a", b"2"), file("d", b"3"))
    tree = unpack(converted(tmp_path / "image", [data, layer(file("top", b"4"))], format="sif"))
    assert [(tree / name).read_bytes() for name in ("a", "d", "top")] == [b"2", b"3", b"4"]


def test_progress(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    data = [layer(file(name, os.urandom(2_000_000))) for name in "abc"]
    converted(tmp_path / "image", data, tell=lambda read, total: told.append((read, total)))
    total = sum(map(len, data))
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_the_caller_s_files_stay_open_and_may_be_deleted(tmp_path: Path) -> None:
    # What is not root and did not open the file gets no further than /proc/self/fd.
    output = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    with layers.opened(layer(file("a"))) as descriptors:
        convert(
            Work("docker://x", "{}", descriptors, output, str(tmp_path), "sif", "zstd:1", 0),
            lambda _read, _total: None,
        )
        assert os.fstat(descriptors[0]).st_size
    assert identify(output, "it").extension == "sif"
    assert not list(tmp_path.iterdir())
    os.close(output)


# What runtimes find

CONFIG = {
    "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), ""),
    "os": "linux",
    "config": {
        "Env": ["PATH=/opt/bin:/bin", "QUOTES=a'b\"c `id` $(id) $HOME \\", "LINES=1\n2", "bad-name=x",
                "NAME\nx=1", "GREETING=hello", "NONE"],
        "Entrypoint": ["printf", "<%s>"],
        "Cmd": ["$HOME", "it's", "two\nlines"],
        "WorkingDir": "/data dir",
        "Labels": {"org.example": "ä"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a configuration, unpacked."""
    data = layer(
        file(".singularity.d/runscript", b"the image's own"), file("etc/environment", b"own"),
        symlink("etc/resolv.conf", "../run/resolv.conf"), symlink("var", "elsewhere"),
        folder("tmp", mode=0o700), file("singularity", b"the image's own"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("image") / "image"
    return unpack(converted(path, [data, layer(whiteout("root"))], config=json.dumps(CONFIG)))


def sh(script: str, *arguments: str, **environment: str) -> str:
    """Return what a script says."""
    argv = ["sh", "-euc", script, "sh", *arguments]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout


def test_variables(tree: Path) -> None:
    script = (
        f". {tree}/.singularity.d/env/10-docker2singularity.sh; "
        'printf "%s|" "$PATH" "$QUOTES" "$LINES" "$GREETING"'
    )
    assert sh(script, PATH="/usr/bin:/bin", GREETING="host") == (
        "/opt/bin:/bin|a'b\"c `id` $(id) $HOME \\|1\n2|host|"
    )
    assert sh(script, PATH="/usr/bin:/bin").endswith("|hello|")


def test_libraries_of_the_host(tree: Path) -> None:
    script = f'. {tree}/.singularity.d/env/99-base.sh; echo "$LD_LIBRARY_PATH"'
    assert sh(script) == "/.singularity.d/libs\n"
    assert sh(script, LD_LIBRARY_PATH="/a") == "/a:/.singularity.d/libs\n"


def test_the_run_script(tree: Path) -> None:
    run = f"{tree}/.singularity.d/runscript"
    assert sh(f'"{run}" "$@"') == "<$HOME><it's><two\nlines>"
    assert sh(f'"{run}" "$@"', "a b", "") == "<a b><>"


@pytest.mark.parametrize(
    ("config", "arguments", "said"),
    [
        ({"Cmd": ["echo", "cmd"]}, [], "cmd\n"),
        ({"Cmd": ["echo", "cmd"]}, ["echo", "x"], "x\n"),
        ({"Entrypoint": ["echo"]}, [], "\n"),
        ({}, ["echo", "x"], "x\n"),
        ({}, [], ""),
        ({"Entrypoint": None, "Cmd": None, "Env": None, "Labels": None}, ["echo"], "\n"),
    ],
)
def test_entrypoint_and_cmd(
    tmp_path: Path, config: dict[str, object], arguments: list[str], said: str
) -> None:
    text = json.dumps({"config": config})
    made = unpack(converted(tmp_path / "image", [layer(file("a"))], config=text))
    assert sh(f'"{made}/.singularity.d/runscript" "$@" </dev/null', *arguments) == said


def test_what_is_there_whatever_the_image_has(tree: Path) -> None:
    assert json.loads((tree / ".singularity.d/oci-config.json").read_text()) == CONFIG
    assert json.loads((tree / ".singularity.d/labels.json").read_text()) == {"org.example": "ä"}
    for name in ("etc/hosts", "etc/resolv.conf"):
        assert (tree / name).read_bytes() == b""
        assert not (tree / name).is_symlink()


def test_what_is_there_if_the_image_has_nothing(tree: Path) -> None:
    for name in ("dev", "proc", "sys", "home", "root", ".singularity.d/libs"):
        assert (tree / name).is_dir()
    assert stat.S_IMODE((tree / "tmp").stat().st_mode) == 0o700
    assert os.readlink(tree / "var") == "elsewhere"
    assert (tree / "singularity").read_bytes() == b"the image's own"
    assert os.readlink(tree / "environment") == ".singularity.d/env/90-environment.sh"


def test_what_enroot_reads(tree: Path, tmp_path: Path) -> None:
    assert (tree / "etc/environment").read_text() == (
        "PATH=/opt/bin:/bin\nQUOTES=a'b\"c `id` $(id) $HOME \\\nGREETING=hello\n"
    )
    rc = (tree / "etc/rc").read_text()
    assert "cd -- '/data dir'" in rc
    assert sh(rc.replace("/data dir", str(tmp_path / "data dir")), "x") == "<x>"
    # Apptainer has its own, and leaves the image's alone.
    sif = converted(tmp_path / "x.sif", [layer(file("etc/environment", b"own"))], format="sif")
    assert (unpack(sif) / "etc/environment").read_bytes() == b"own"


# What is refused


@pytest.mark.parametrize(
    "config",
    [
        "", "[]", "null", "1", "{", '{"config": []}', "[" * 100_000, '{"config": {"Env": "A=1"}}',
        '{"config": {"Env": [1]}}', '{"config": {"Env": ["A=\\u0000"]}}',
        '{"config": {"Env": ["A=\\ud800"]}}', '{"config": {"Cmd": {"a": 1}}}',
        '{"config": {"Entrypoint": "sh"}}', '{"config": {"WorkingDir": 1}}',
        '{"config": {"Labels": {"a": 1}}}', '{"config": {"Labels": [1]}}', "{}" + " " * (8 << 20),
        '{"os": "windows"}', '{"os": {}}', '"\ud800"', "NaN",
    ],
    ids=lambda text: text[:40].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_a_configuration_that_cannot_be(tmp_path: Path, config: str) -> None:
    assert "docker://x" in refused(tmp_path / "image", NotAnImage, layer(file("a")), config=config)


def test_another_processor(tmp_path: Path) -> None:
    said = refused(
        tmp_path / "image", WrongArchitecture, layer(file("a")), config='{"architecture": "mips"}'
    )
    assert "built for mips" in said


def test_no_layers(tmp_path: Path) -> None:
    assert "it has no layers" in refused(tmp_path / "image", NotAnImage)


def test_a_bad_layer_is_named(tmp_path: Path) -> None:
    good, bad = layer(file("a", b"1")), gzip.compress(os.urandom(5000))
    assert "layer 1 of docker://x" in refused(tmp_path / "a", NotAnImage, bad, good)
    assert "layer 2 of docker://x" in refused(tmp_path / "b", Damaged, good, good[:-9])
    assert "../x" in refused(tmp_path / "c", NotAnImage, layer(file("../x")))


def test_too_large(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="docker://x is too large"):
        converted(tmp_path / "image", [layer(file("a", bytes(1_000_000)))], limit=100_000)


# The tools


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo mksquashfs version 4.4-git.1", "is 4.4, which reads no archives"),
        ("echo hello", "does not say its version"),
    ],
)
def test_an_old_mksquashfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    fake(tmp_path, monkeypatch, mksquashfs=script)
    said = refused(tmp_path / "image", MissingTool, layer(file("a")))
    assert why in said
    assert "install squashfs-tools 4.5 or newer" in said


def test_no_mksquashfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "PATH", str(tmp_path))
    assert "has no mksquashfs" in refused(tmp_path / "image", MissingTool, layer(file("a")))


@pytest.mark.parametrize(
    ("script", "error", "why"),
    [
        ("echo FATAL ERROR: no threads >&2; exit 1", NodeError, "no threads"),
        (
            "cat >/dev/null; echo Write failed because No space left on device >&2; exit 1",
            NoRoom,
            "",
        ),
        ("yes error | head -c 9999999 >&2; exit 1", NodeError, "error error"),
        ("kill -9 $$", Interrupted, "was killed"),
        ("kill -11 $$", NotAnImage, "it crashed, by signal 11"),
        ("exit 0", NodeError, "it ended with 0"),
    ],
)
def test_mksquashfs_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[HpcimgError], why: str
) -> None:
    first = '[ "$1" != -version ] || { echo mksquashfs version 4.5; exit; }'
    fake(tmp_path, monkeypatch, mksquashfs=f"{first}\n{script}")
    said = refused(tmp_path / "image", error, layer(file("a", os.urandom(3_000_000))))
    assert why in said
    assert len(said) < 900


def test_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (pick_format("sif"), pick_format("squashfs")) == ("sif", "squashfs")
    monkeypatch.setattr(programs, "PATH", str(tmp_path))
    assert pick_format("auto") == "squashfs"
    (tmp_path / "singularity").touch(mode=0o755)
    assert pick_format("auto") == "sif"


def test_the_format_is_picked_without_heavy_imports() -> None:
    program = """
        import sys; sys.path.insert(0, sys.argv[1])
        from hpcimg.convert import pick_format
        pick_format("auto")
        assert not {"json", "subprocess", "ctypes", "tarfile", "zlib"} & set(sys.modules)
    """
    argv = [sys.executable, "-ISc", textwrap.dedent(program), str(ROOT)]
    subprocess.run(argv, check=True)


def test_mksquashfs_ends_when_the_conversion_is_killed(tmp_path: Path) -> None:
    program = """
        import os, sys
        sys.path.insert(0, sys.argv[1])
        from tests.parts.layers import converted, file, layer
        from hpcimg.convert import merge
        from pathlib import Path
        def hang(*_):
            print("ready", flush=True)
            sys.stdin.read()
        merge.Merge.lay = hang
        converted(Path(sys.argv[2]), [layer(file("a"))])
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(ROOT), str(tmp_path / "image")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        commands = [Path(f"/proc/{child}/comm").read_text() for child in children]
        process.kill()
    assert commands == ["mksquashfs\n"]
    wait_until(lambda: not alive(int(children[0])), timeout_s=10, what="mksquashfs to end")


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


# Apptainer in the place of an old mksquashfs


APPTAINER = """
    for last; do :; done
    case "$*" in
        "build --help") echo "$HELP --disable-cache" ;;
        *) layout=${last#oci:}
           echo "$@" >ARGUMENTS
           cp "$layout/index.json" INDEX
           cp -r "$layout/blobs/sha256" BLOBS
           shift $(($# - 2)); echo made >"$1" ;;
    esac
"""


@pytest.mark.parametrize("help", ["", "--mksquashfs-args"])
def test_apptainer_builds_where_mksquashfs_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, help: str
) -> None:
    script = APPTAINER.replace("$HELP", help)
    for name in ("ARGUMENTS", "INDEX", "BLOBS"):
        script = script.replace(name, str(tmp_path / name.lower()))
    fake(tmp_path, monkeypatch, mksquashfs="echo mksquashfs version 4.4", apptainer=script)
    data = layer(file("a"))
    output = tmp_path / "image"
    with pytest.raises(AssertionError):  # the folder is left for the caller to remove
        converted(output, [data], format="sif")
    assert output.read_text() == "made\n"
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith("--silent build --disable-cache")
    assert ("--mksquashfs-args -comp zstd -Xcompression-level 1" in arguments) == bool(help)
    (index,) = json.loads((tmp_path / "index").read_text())["manifests"]
    blobs = tmp_path / "blobs"
    manifest = json.loads((blobs / index["digest"].removeprefix("sha256:")).read_text())
    (described,) = manifest["layers"]
    assert described["mediaType"].endswith(".tar+gzip")
    assert (blobs / described["digest"].removeprefix("sha256:")).read_bytes() == data


def test_apptainer_makes_no_squashfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, mksquashfs="echo mksquashfs version 4.4", apptainer="exit 0")
    assert "4.5 or newer" in refused(tmp_path / "image", MissingTool, layer(file("a")))


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo FATAL: while unpacking layer: gzip: invalid checksum >&2; exit 255", Damaged),
        ("echo FATAL: write: No space left on device >&2; exit 255", NoRoom),
        ("echo FATAL: no user namespaces >&2; exit 255", NodeError),
    ],
)
def test_apptainer_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[HpcimgError]
) -> None:
    fake(tmp_path, monkeypatch, mksquashfs="echo mksquashfs version 4.4", singularity=script)
    with pytest.raises(error):
        converted(tmp_path / "image", [layer(file("a"))], format="sif")


# The real one


@pytest.mark.skipif(
    bool(missing_commands("apptainer")), reason=missing_commands("apptainer") or "-"
)
@pytest.mark.parametrize("format", ["sif", "squashfs"])
def test_apptainer_takes_it(tmp_path: Path, format: str) -> None:
    if missing := missing_commands("busybox"):
        pytest.skip(missing)
    busybox = Path("/bin/busybox").read_bytes()
    config = json.dumps({"config": {"Env": ["A=1"], "Entrypoint": ["/bin/echo"], "Cmd": ["cmd"]}})
    data = layer(
        file("bin/busybox", busybox, mode=0o755), symlink("bin/sh", "busybox"),
        symlink("bin/echo", "busybox"),
    )  # fmt: skip
    path = converted(tmp_path / "image", [data], format=format, config=config)

    def apptainer(*arguments: str) -> str:
        argv = ["apptainer", "--silent", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    assert apptainer("run", str(path)) == "cmd\n"
    assert apptainer("run", str(path), "a", "b") == "a b\n"
    assert apptainer("exec", str(path), "sh", "-c", 'echo "$A"') == "1\n"
    assert "export A=1" in apptainer("inspect", "-e", str(path))
    if format == "sif":
        assert "*System" in apptainer("sif", "list", str(path))
