"""Complete conversions with a real mksquashfs, whose output is read back."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from hpcimg.convert import stream
from hpcimg.convert.image import Work, convert
from hpcimg.convert.stream import header
from hpcimg.convert.tar import FILE, Member
from hpcimg.errors import HpcimgError, NotAnImage, TooLarge, WrongArchitecture  # fmt: skip
from hpcimg.image.formats import identify
from tests.parts import layers
from tests.parts.daemon import missing_commands, wait_until
from tests.parts.layers import (
    TIME,
    converted,
    directory,
    file,
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
    """Return the message about an image that cannot be converted."""
    with pytest.raises(error) as caught:
        converted(path, data, config=config)
    assert str(caught.value).isprintable()
    return str(caught.value)


# What comes out


@pytest.mark.usefixtures("mksquashfs")
@pytest.mark.parametrize("format", ["sif", "squashfs"])
def test_a_whole_image(tmp_path: Path, format: str) -> None:
    odd = b"new\nline \xff".decode(errors="surrogateescape")
    long = f"{'d' * 200}/{'e' * 255}"
    path = converted(
        tmp_path / "image",
        [
            layer(
                directory("usr", mode=0o711), file("usr/run", b"run", mode=0o4755), file(odd, b"1"),
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
def test_compressions(tmp_path: Path, compression: str, mksquashfs: str) -> None:
    path = converted(tmp_path / "image", [layer(file("a", b"1"))], compression=compression)
    assert (unpack(path) / "a").read_bytes() == b"1"
    name = compression.partition(":")[0]
    # 4.3 has no zstd, and gzip takes its place.
    wanted = "gzip" if (mksquashfs, name) == ("4.3", "zstd") else name
    assert path.read_bytes()[20] == {"gzip": 1, "xz": 4, "lz4": 5, "zstd": 6}[wanted]


@pytest.mark.usefixtures("mksquashfs")
def test_layers_packed_in_all_ways(tmp_path: Path) -> None:
    data = [
        layer(file("a", b"low"), file("b", b"1")),
        layer(file("a", b"middle"), file("c", b"2"), pack=bytes),
        layer(file("a", b"high"), pack=zstd if not missing_commands("zstd") else bytes),
        b"",
    ]
    tree = unpack(converted(tmp_path / "image", data))
    assert [(tree / name).read_bytes() for name in "abc"] == [b"high", b"1", b"2"]


@pytest.mark.parametrize("mode", [0o644, 0])
def test_names_of_all_kinds(tmp_path: Path, mksquashfs: str, mode: int) -> None:
    names = [
        "back\\slash", "-dash", "blank ", "\t", "*?[", "#", "a" * 100, "b" * 101, "c" * 255,
        "/".join("d" * (2000 if mksquashfs == "this host's" else 250)), "é", ".wh", "..x",
        "\x7f\x01", '"', "a \" b\\", " ", "\\", "$x `x`", "f 644 0 0 exit",
    ]  # fmt: skip
    files = [file(name, b"x", mode=mode) for name in names]
    path = converted(tmp_path / "image", [layer(*files)])
    argv = ["unsquashfs", "-cat", str(path)]
    for name in names:
        escaped = "".join(f"\\{c}" if c in "\\*?[" else c for c in name)
        assert subprocess.run([*argv, escaped], capture_output=True, check=False).stdout == b"x"


@pytest.mark.parametrize("size", [0, 8**11 - 1, 8**11, 2**50])
@pytest.mark.parametrize("length", [1, 100, 101, 4000])
def test_headers_are_what_another_reader_takes(size: int, length: int) -> None:
    name, target = "n" * length, "t" * length
    data = header(Member(FILE, name.encode(), 0o4711, TIME, size, target.encode()))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.next()
    assert member
    assert (member.name, member.linkname, member.size) == (name, target, size)
    assert (member.mode, member.mtime, member.uid) == (0o4711, TIME, 0)


@pytest.mark.usefixtures("mksquashfs")
def test_a_layer_with_a_path_twice_begins_the_image_again(tmp_path: Path) -> None:
    noise = os.urandom(3_000_000)
    data = layer(file("a", noise), file("d/x", noise), file("a", b"2"), file("d", b"3"))
    tree = unpack(converted(tmp_path / "image", [data, layer(file("top", b"4"))], format="sif"))
    assert [(tree / name).read_bytes() for name in ("a", "d", "top")] == [b"2", b"3", b"4"]


@pytest.mark.parametrize("format", ["sif", "squashfs"])
def test_more_in_a_directory_than_is_packed_from_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """mksquashfs would take minutes for a hundred thousand names in one directory."""
    monkeypatch.setattr(stream, "_WIDEST", 100)
    names = [f"d/{number}" for number in range(200)]
    many = [file(name, name.encode(), mode=0o640) for name in names]
    image = converted(tmp_path / "image", [layer(*many, link("l", "d/7"))], format=format)
    tree = unpack(image)
    assert {name for name in names if (tree / name).read_text() == name} == set(names)
    assert os.path.samefile(tree / "l", tree / "d/7")
    assert [stat.S_IMODE(os.stat(tree / name).st_mode) for name in (".", "d", "l")] == [
        0o755, 0o755, 0o640
    ]  # fmt: skip


def test_progress(tmp_path: Path, mksquashfs: str) -> None:
    told: list[tuple[int, int, int]] = []
    data = [layer(file(name, os.urandom(2_000_000))) for name in "abc"]
    converted(tmp_path / "image", data, tell=lambda *numbers: told.append(numbers))
    assert told == sorted(told)
    done, total, on_disk = told[-1]
    # To be packed apart from being read is half of the way.
    apart = mksquashfs != "this host's"
    assert done == total == sum(map(len, data)) * (2 if apart else 1)
    assert (on_disk > 6_000_000) if apart else (on_disk == 0)


@pytest.mark.usefixtures("mksquashfs")
def test_the_caller_s_files_stay_open_and_may_be_deleted(tmp_path: Path) -> None:
    # What is not root and did not open the file gets no further than /proc/self/fd.
    output = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    with layers.opened(layer(file("a"))) as descriptors:
        convert(
            Work(
                "docker://x",
                "{}",
                (99,),
                descriptors.__getitem__,
                output,
                str(tmp_path),
                "sif",
                "zstd:1",
                0,
            ),
            lambda _done, _total, _disk: None,
        )
        assert os.fstat(descriptors[0]).st_size
    assert identify(output, "it").extension == "sif"
    assert not list(tmp_path.iterdir())
    os.close(output)


# What the converter itself adds


def test_what_is_added_goes_through_links(tmp_path: Path, mksquashfs: str) -> None:
    """Images whose /etc is a link keep what is in it."""
    del mksquashfs
    data = [
        layer(
            directory("usr/etc"), file("usr/etc/passwd", b"root"), symlink("etc", "/usr/etc"),
            symlink("usr/etc/resolv.conf", "../../run/resolv.conf"), symlink("opt", "srv"),
            symlink("var", "missing"),
        ),
        layer(file("top")),
    ]  # fmt: skip
    config = '{"config": {"WorkingDir": "/opt/app/deep", "Env": ["A=1"]}}'
    tree = unpack(converted(tmp_path / "image", data, config=config))
    assert os.readlink(tree / "etc") == "/usr/etc"
    found = {path.name: path.read_bytes() for path in (tree / "usr/etc").iterdir()}
    assert found.pop("rc").startswith(b"#!/bin/sh\n")
    assert found == {"passwd": b"root", "hosts": b"", "resolv.conf": b"", "environment": b"A=1\n"}
    assert (tree / "srv/app/deep").is_dir()
    assert stat.S_IMODE((tree / "missing/tmp").stat().st_mode) == 0o1777


@pytest.mark.usefixtures("mksquashfs")
@pytest.mark.parametrize(
    ("working_dir", "made"),
    [
        ("/work/deep", "work/deep"), ("work", "work"), ("/a/../work/./x/", "work/x"),
        ("../../work", "work"), ("", ""), ("/", ""), ("/usr/bin", ""), ("/file/x", ""),
        ("/loop/x", ""), ("/" + "x" * 256, ""), ("/x" * 3000, ""),
    ],
)  # fmt: skip
def test_the_working_directory_is_there(tmp_path: Path, working_dir: str, made: str) -> None:
    data = layer(directory("usr/bin", mode=0o711), file("file"), symlink("loop", "loop"))
    config = json.dumps({"config": {"WorkingDir": working_dir}})
    tree = unpack(converted(tmp_path / "image", [data], config=config))
    assert stat.S_IMODE((tree / "usr/bin").stat().st_mode) == 0o711
    assert (tree / "file").is_file()
    assert not made or stat.S_IMODE((tree / made).stat().st_mode) == 0o755
    ours = {"usr", "file", "loop", "dev", "etc", "home", "proc", "root", "sys", "tmp", "var"}
    others = {path.name for path in tree.iterdir() if "." not in path.name} - ours
    assert others - {"singularity", "environment"} == set(filter(None, [made.partition("/")[0]]))


# What is refused


def test_layers_that_are_not_those_of_the_configuration(tmp_path: Path) -> None:
    archives = [layers.tar(file(name)) for name in "ab"]
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in archives]
    data = [gzip.compress(archives[0]), archives[1]]

    def config(*diff_ids: str) -> str:
        return json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}})

    converted(tmp_path / "good", data, config=config(*digests))
    converted(tmp_path / "without", data, config=config())
    said = refused(tmp_path / "swapped", NotAnImage, *data, config=config(*digests[::-1]))
    assert f"layer 2 of docker://x cannot be used: its digest is {digests[1]}" in said
    said = refused(tmp_path / "fewer", NotAnImage, *data, config=config(digests[0]))
    assert "it has 2 layers, and its configuration says 1" in said
    # The same where all of it is read twice.
    twice = [layers.tar(file("a"), file("a", b"2"))]
    assert "its digest is" in refused(
        tmp_path / "twice", NotAnImage, *twice, config=config(digests[0])
    )


@pytest.mark.parametrize(
    "config",
    [
        "", "[]", "null", "1", "{", '{"config": []}', "[" * 100_000, '{"config": {"Env": "A=1"}}',
        '{"config": {"Env": [1]}}', '{"config": {"Env": ["A=\\u0000"]}}',
        '{"config": {"Env": ["A=\\ud800"]}}', '{"config": {"Cmd": {"a": 1}}}',
        '{"config": {"Entrypoint": 1}}', '{"config": {"WorkingDir": 1}}',
        '{"config": {"Labels": [1]}}', '{"rootfs": 1}', '{"rootfs": {"diff_ids": [1]}}',
        '{"rootfs": {"diff_ids": ["sha256:1"]}}', '\ufeff{}', '{\0}\0', "{}" + " " * (8 << 20),
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


@pytest.mark.usefixtures("mksquashfs")
def test_a_bad_layer_is_named(tmp_path: Path) -> None:
    good, bad = layer(file("a", b"1")), gzip.compress(os.urandom(5000))
    assert "layer 1 of docker://x" in refused(tmp_path / "a", NotAnImage, bad, good)
    assert "layer 2 of docker://x" in refused(tmp_path / "b", NotAnImage, good, good[:-9])
    too_long = "n" * 300
    assert "nnn" in refused(tmp_path / "c", NotAnImage, layer(file(too_long)))


@pytest.mark.usefixtures("mksquashfs")
def test_too_large(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="docker://x is too large"):
        converted(tmp_path / "image", [layer(file("a", bytes(1_000_000)))], limit=100_000)


def test_lower_layers_are_not_waited_for_while_there_is_something_to_do(tmp_path: Path) -> None:
    """What is converted comes highest first, and is written before the next one is there."""
    noise = os.urandom(5_000_000)
    output = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    data = layer(file("low"), link("to", "low")), layer(file("high", noise), file("low", b"new"))
    asked = []
    with layers.opened(*data) as descriptors:

        def arrive(number: int) -> int:
            asked.append(number)
            if number == 0:
                wait_until(
                    lambda: os.fstat(output).st_size > 1_000_000, timeout_s=30, what="output"
                )
            return descriptors[number]

        sizes = tuple(map(len, data))
        work = Work("docker://x", "{}", sizes, arrive, output, str(tmp_path), "sif", "zstd:1", 0)
        convert(work, lambda *_: None)
    assert asked[:2] == [1, 0]
    os.close(output)
