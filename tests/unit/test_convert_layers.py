"""Reading layers: how they are packed, how archives are written, and all that is wrong."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import io
import lzma
import os
import random
import shutil
import subprocess
import tarfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcimg import programs
from hpcimg.convert import layers, sparse
from hpcimg.convert.layers import Layer, Reader
from hpcimg.convert.tar import DIRECTORY, FILE, Member, members
from hpcimg.errors import HpcimgError, MissingTool, NotAnImage, TooLarge
from tests.parts.layers import TIME, directory, file, link, opened, symlink, tar, zstd

needs_zstd = pytest.mark.skipif(not shutil.which("zstd"), reason="not installed here: zstd")
NOISE = random.Random(1).randbytes(3_000_000)


def read(data: bytes, *, diff_id: str = "", most_bytes: int = 0) -> list[tuple[Member, bytes]]:
    """Return the members of a layer with their content."""
    with opened(data) as (descriptor,):
        layer = Layer(lambda: descriptor, len(data), "layer 2 of docker://x", diff_id, most_bytes)
        reader = Reader(layer, lambda _read: None)
        found = []
        try:
            for member in members(reader):
                if member.segments is None:
                    content = b"".join(reader.copy(member.size))
                else:
                    content = b"".join(sparse.content(member.segments, member.size, reader))
                found.append((member, content))
            reader.check_digest()
        finally:
            reader.close()
        return found


def names(data: bytes) -> list[bytes]:
    return [member.name for member, _ in read(data)]


def refused(
    data: bytes,
    error: type[HpcimgError] = NotAnImage,
    *,
    diff_id: str = "",
    most_bytes: int = 0,
) -> str:
    """Return why a layer is refused."""
    with pytest.raises(error) as caught:
        read(data, diff_id=diff_id, most_bytes=most_bytes)
    assert "layer 2 of docker://x" in caught.value.what
    assert len(str(caught.value)) < 500
    return caught.value.why


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    """Return an archive with other bytes in its first header, and the checksum that fits."""
    header = bytearray(data[:512])
    header[offset : offset + len(new)] = new
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


# Packing


@pytest.fixture(params=["zlib", "isal.isal_zlib"])
def gunzip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gzip libraries: Python's own, and the faster one."""
    monkeypatch.setattr(layers, "gzip", importlib.import_module(request.param))


@pytest.fixture(params=["library", "program"])
def unzstd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zstd decompressors: the library, and the program without it."""
    if request.param == "program":
        monkeypatch.setattr(layers, "zstd", None)
    assert layers.zstd or request.param == "program"


PLAIN = tar(file("a", b"1"), file("noise", NOISE), file("zeros", bytes(5_000_000)))


@pytest.mark.usefixtures("gunzip", "unzstd")
@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda data: data, id="plain"),
        pytest.param(gzip.compress, id="gzip"),
        pytest.param(
            lambda data: b"".join(
                gzip.compress(data[at : at + 9999]) for at in range(0, len(data), 9999)
            ),
            id="gzip of many members",
        ),
        pytest.param(lambda data: gzip.compress(data) + bytes(700_000), id="gzip, padded"),
        pytest.param(zstd, id="zstd", marks=needs_zstd),
        pytest.param(
            lambda data: zstd(data, "--long=29"), id="zstd with a large window", marks=needs_zstd
        ),
        pytest.param(
            lambda data: b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd(data[:5000]) + zstd(data[5000:]),
            id="zstd of several frames",
            marks=needs_zstd,
        ),
    ],
)
def test_packing(pack: Callable[[bytes], bytes]) -> None:
    found = read(pack(PLAIN))
    assert [(member.name, member.size) for member, _ in found] == [
        (b"a", 1), (b"noise", len(NOISE)), (b"zeros", 5_000_000),
    ]  # fmt: skip
    assert [content for _, content in found] == [b"1", NOISE, bytes(5_000_000)]


@pytest.mark.usefixtures("gunzip")
def test_gzip_headers_that_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_GZIP_CHUNK", 7)
    plain = tar(file("a", b"1"))
    whole = b""
    for data in (plain[:700], plain[700:]):
        # Each field that RFC 1952 has: what is extra, a name, a comment, a checksum of all that.
        head = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\5\0extraname\0comment\0"
        head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
        whole += head + gzip.compress(data)[10:] + bytes(9)
    assert names(whole) == [b"a"]


@pytest.mark.parametrize(("pack", "name"), [(lzma.compress, "xz"), (bz2.compress, "bzip2")])
def test_packed_as_no_specification_has_it(pack: Callable[[bytes], bytes], name: str) -> None:
    with pytest.raises(NotAnImage, match=f"it is compressed with {name}; "):
        read(pack(PLAIN))


@pytest.mark.usefixtures("gunzip")
@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (gzip.compress(PLAIN)[:-1], "gzip: it is truncated"),
        (gzip.compress(PLAIN)[:2_000_000], "gzip: it is truncated"),
        (gzip.compress(PLAIN) + b"garbage", "gzip: "),
        (
            gzip.compress(PLAIN)[:-8] + b"12345678",
            "gzip: .*(incorrect data check|Incorrect checksum)",
        ),
        (gzip.compress(PLAIN[:2_000_000]), "it ends in the middle of a file"),
        (PLAIN[:2_000_000], "it ends in the middle of a file"),
        (PLAIN[:100], "it ends in the middle of a file"),
        (tar(file("a"))[:512] + bytes(512) + tar(file("b")), "a block of zeros between two files"),
        (tar(file("a"))[:512] + b"x" * 1024, "the checksum"),
        (tar(file("a"))[:512] + tar(file("b")).replace(b"b", b"c", 1), "the checksum"),
    ],
)
def test_damaged(cut: bytes, why: str) -> None:
    """The digest of the layer was right: no other try helps, and none is asked for."""
    with pytest.raises(NotAnImage, match=why):
        read(cut)


@needs_zstd
@pytest.mark.usefixtures("unzstd")
@pytest.mark.parametrize("end", [b"", b"1234"])
def test_damaged_zstd(end: bytes) -> None:
    assert "zstd: " in refused(zstd(PLAIN)[:-4] + end, NotAnImage)


def test_zstd_without_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "zstd", None)
    monkeypatch.setattr(programs, "PATH", "/nowhere")
    with pytest.raises(MissingTool, match="install the program zstd"):
        read(b"\x28\xb5\x2f\xfd")


@pytest.mark.parametrize(
    "data", [b"", gzip.compress(b"", mtime=0), bytes(512), bytes(1024), bytes(99_999)]
)
def test_an_empty_layer(data: bytes) -> None:
    if len(data) % 512:
        data = data[: len(data) // 512 * 512]
    assert names(data) == []


@pytest.mark.parametrize("data", [b"<html>" * 200, NOISE])
def test_no_layer(data: bytes) -> None:
    assert "not a tar archive" in refused(data)


def test_a_layer_that_is_left_ends_what_unpacks() -> None:
    before = threading.active_count()
    with opened(gzip.compress(PLAIN)) as (descriptor,):
        reader = Reader(Layer(lambda: descriptor, len(PLAIN), "x"), lambda _read: None)
        assert reader.read(100)
        reader.close()
    assert threading.active_count() == before


def test_it_unpacks_to_too_much() -> None:
    bomb = gzip.compress(tar(file("a", bytes(5_000_000))))
    assert names(bomb)
    said = refused(bomb, TooLarge, most_bytes=1 << 20)
    assert said == f"its {len(bomb)} bytes unpack to more than {1 << 20}"


@pytest.mark.usefixtures("gunzip")
@pytest.mark.parametrize("pack", [bytes, gzip.compress, pytest.param(zstd, marks=needs_zstd)])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_digest_of_what_is_unpacked(pack: Callable[[bytes], bytes], algorithm: str) -> None:
    data = tar(file("a", b"1"))
    good = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    assert [member.name for member, _ in read(pack(data), diff_id=good)] == [b"a"]
    said = refused(pack(data + bytes(512)), diff_id=good)
    assert said.endswith(f"the image's configuration says {good}")


def test_the_digest_of_what_is_packed() -> None:
    """Some tools state the digest of the compressed layer."""
    packed = gzip.compress(tar(file("a")))
    assert read(packed, diff_id=f"sha256:{hashlib.sha256(packed).hexdigest()}")


def test_the_digest_with_the_zeros_that_a_layer_lost() -> None:
    """skopeo 1.9 and podman 4.3 lose those after the two blocks that end it: zstd:chunked."""
    data = tar(file("a", b"1"))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert len(data) == 10240
    assert read(data[:2048], diff_id=digest)
    assert "its digest is" in refused(data[:1024], diff_id=f"sha256:{'0' * 64}")


@pytest.mark.parametrize("diff_id", ["md5:1", "sha256", "1234"])
def test_a_digest_of_an_unknown_kind(diff_id: str) -> None:
    assert refused(PLAIN, diff_id=diff_id).startswith("its digest is ")


# Names and numbers


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_archive_formats(format: int) -> None:
    long = f"{'d' * 90}/{'e' * 60}/{'f' * 90}" if format != tarfile.USTAR_FORMAT else "d" * 90
    odd = "new\nline\udcff" if format != tarfile.PAX_FORMAT else "ä\n"
    data = tar(
        directory(long, mode=0o2711), file(f"{long}/x", b"1", mode=0o4755), file(odd, b"2"),
        link("hard", f"{long}/x"), symlink("soft", f"/{long}/../y"), format=format,
    )  # fmt: skip
    found = [member for member, _ in read(data)]
    raw = long.encode()
    assert [(member.name, member.target) for member in found] == [
        (raw, b""), (raw + b"/x", b""), (odd.encode(errors="surrogateescape"), b""),
        (b"hard", raw + b"/x"), (b"soft", b"/" + raw + b"/../y"),
    ]  # fmt: skip
    assert [oct(member.mode) for member in found[:2]] == ["0o2711", "0o4755"]
    assert {member.mtime for member in found} == {TIME}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("/a", b"a"), ("./a", b"a"), ("././/a//b/./c", b"a/b/c"), (".", b""), ("./", b""),
        (".a", b".a"), ("a.", b"a."), ("...", b"..."), ("a../b", b"a../b"), ("x/..y", b"x/..y"),
        ("a/..", b""), ("a/../b", b"b"), ("a/b/../../c/./d/..", b"c"),
    ],
)  # fmt: skip
def test_names_become_plain(name: str, plain: bytes) -> None:
    assert names(tar(file(name))) == [plain]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("..", b""), ("../a", b"a"), ("a/../..", b""), ("a/../../b", b"b"), ("/../a", b"a"),
        ("../../a/.wh.b", b"a/.wh.b"),
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_root(name: str, plain: bytes) -> None:
    assert names(tar(file(name))) == [plain]
    [(only, _)] = read(tar(link("a", name)))
    assert only.target == plain
    assert read(tar(symlink("a", name)))  # it is looked up within the image


@pytest.mark.parametrize("name", ["a" * 256, "b/" + "a" * 256, "/".join(["a" * 200] * 21)])
def test_a_path_that_is_too_long_is_refused(name: str) -> None:
    assert "longer than" in refused(tar(file(name)))


def test_a_target_that_is_too_long_is_refused() -> None:
    assert read(tar(symlink("s", "t" * 4095)))
    assert "longer than 4095" in refused(tar(symlink("s", "t" * 4096)))


def test_a_link_to_nowhere_is_refused() -> None:
    assert "s in it leads nowhere" in refused(tar(symlink("s", "")), NotAnImage)


def test_an_old_directory_is_a_file_with_a_slash() -> None:
    ((member, _),) = read(patched(tar(file("x/")), 156, b"\0"))
    assert (member.kind, member.name) == (DIRECTORY, b"x")


def test_a_file_with_a_slash_in_a_newer_archive_is_a_file() -> None:
    ((member, content),) = read(tar(file("x/", b"1")))
    assert (member.kind, member.name, content) == (FILE, b"x", b"1")


def extended(kind: bytes, data: bytes) -> bytes:
    """Return a header that extends the next member."""
    return patched(tar(file("././@LongLink", data))[:-1024], 156, kind)[:1024]


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        # GNU's name goes before that of pax, and ends at a zero byte.
        ([(b"L", b"gnu\0"), (b"x", b"12 path=pax\n")], b"gnu"),
        ([(b"x", b"12 path=pax\n"), (b"L", b"gnu\0")], b"gnu"),
        ([(b"L", b"gnu\0rest\0")], b"gnu"),
        ([(b"L", b"\0")], b"a"),
        # Of two of a kind, the second counts.
        ([(b"L", b"one\0"), (b"L", b"two\0")], b"two"),
        ([(b"x", b"12 path=one\n"), (b"x", b"12 path=two\n")], b"two"),
        ([(b"x", b"12 path=one\n"), (b"x", b"20 mtime=1500000000\n")], b"a"),
        ([(b"x", b"13 =name=pax\n")], b"a"),
    ],
)
def test_several_headers_for_one_member(headers: list[tuple[bytes, bytes]], name: bytes) -> None:
    """As Go reads them, and so umoci, podman and Docker."""
    front = b"".join(extended(kind, data) for kind, data in headers)
    assert names(front + tar(file("a"))) == [name]


@pytest.mark.parametrize(
    ("text", "size"),
    [(b"\0\0\0\0\0\0\0\0\0\x003\0", 3), (b"3\x0077777777\0\0", 3), (b"         3 \0", 3)],
)
def test_numbers_with_something_around(text: bytes, size: int) -> None:
    assert read(patched(tar(file("a", b"123")), 124, text))[0][1] == b"123"[:size]


def test_times_and_sizes_as_binary_numbers() -> None:
    member, content = file("a", b"12345")
    ((read_member, found),) = read(
        patched(tar((member, content)), 124, b"\x80" + (5).to_bytes(11, "big"))
    )
    assert (read_member.kind, found) == (FILE, b"12345")
    for mtime, expected in ((-1, 0), (1 << 40, (1 << 32) - 1)):
        member.mtime = mtime
        assert read(tar((member, content)))[0][0].mtime == expected


@pytest.mark.parametrize(
    ("offset", "new", "why"),
    [
        (124, b"\xff" * 12, "negative"),
        (124, b"-0000000001\0", "negative"),
        (124, b"\x80" + b"\x7f" * 11, "middle of a file"),
        (124, b"0000000000x\0", "number"),
        # Python would take these.
        (124, b"0o1\0        ", "number"),
        (124, b"000000000_1\0", "number"),
        (124, b"         +1\0", "number"),
        (100, b"9999999\0", "number"),
    ],
)
def test_numbers_that_cannot_be(offset: int, new: bytes, why: str) -> None:
    assert why in refused(patched(tar(file("a", b"1")), offset, new), NotAnImage)


def test_members_of_unknown_kinds() -> None:
    assert names(patched(tar(file("label"), file("a")), 156, b"V")) == [b"a"]
    assert "unknown type" in refused(patched(tar(file("a")), 156, b"Z"))


@pytest.mark.parametrize("kind", [b"L", b"K", b"x"])
def test_a_name_of_a_gigabyte_is_not_read(kind: bytes) -> None:
    huge = patched(patched(tar(file("a")), 156, kind), 124, b"10000000000\0")
    assert refused(huge) == f"it has a name or header of {8**10} bytes"


@pytest.mark.parametrize(
    "records",
    [b"12 path=a\n", b"x path=a\n", b"10path=abcd\n", b"0 path=a\n", b"99999999999 a=b\n", b"\0"],
)
def test_pax_records_that_cannot_be(records: bytes) -> None:
    header = patched(tar(file("a", records)), 156, b"x")
    assert refused(header, NotAnImage) == "a pax header cannot be read"


def test_a_zero_byte_in_a_pax_name() -> None:
    header = patched(tar(file("a", b"12 path=a\0b\n")), 156, b"x")
    assert "zero byte" in refused(header[:1024] + tar(file("a")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1600000000.7", 1_600_000_000), ("1600000000.999999999", 1_600_000_000), ("5.", 5),
        ("-0.5", 0), ("-7", 0), (str(1 << 40), (1 << 32) - 1), ("", TIME),
    ],
)  # fmt: skip
def test_times_in_pax_records(text: str, expected: int) -> None:
    """They go before the header's, which may be rounded up: then byte code is older than that."""
    member, content = file("a")
    member.pax_headers = {"mtime": text}
    assert read(tar((member, content), format=tarfile.PAX_FORMAT))[0][0].mtime == expected


@pytest.mark.parametrize("text", ["x", "1e9", "nan", "inf", ".5", "+1", "1.x", "9" * 19, "1 2"])
def test_times_that_cannot_be(text: str) -> None:
    member, content = file("a")
    member.pax_headers = {"mtime": text}
    why = refused(tar((member, content), format=tarfile.PAX_FORMAT), NotAnImage)
    assert why == "a time in a pax header is malformed"


def test_an_archive_without_its_end() -> None:
    data = tar(file("a", b"1"), file("b", b"22"))
    end = 3 * 512 + 2
    for cut in (data[:end], data[: end + 100], data[:2048], data[:2560], data[:3072] + b"x" * 512):
        assert [(m.name, content) for m, content in read(cut)] == [(b"a", b"1"), (b"b", b"22")]
    assert "middle of a file" in refused(data[: end - 1], NotAnImage)


PREFIX = b"opt/software/" + b"x" * 100


@pytest.mark.parametrize(
    ("magic", "prefix", "name"),
    [
        (b"ustar\x0000", PREFIX, PREFIX + b"/a"),
        # What Docker wrote with an old Go.
        (b"ustar  \0", PREFIX, PREFIX + b"/a"),
        (b"ustar  \0", b"1234/x", b"1234/x/a"),
        # Times, as GNU tar has them.
        (b"ustar  \0", b"13026177174\x0013026177174\0", b"a"),
        (b"ustar  \0", b"\x80" + b"\1" * 11 + bytes(12), b"a"),
        (b"ustar  \0", b"\xffnot ASCII", b"a"),
        (b"", PREFIX, b"a"),
    ],
)
def test_what_is_in_front_of_a_name(magic: bytes, prefix: bytes, name: bytes) -> None:
    data = tar(file("a", b"1"))
    assert names(patched(patched(data, 257, magic.ljust(8, b"\0")), 345, prefix)) == [name]


def test_times_behind_the_prefix_as_star_has_them() -> None:
    data = patched(tar(file("a"), format=tarfile.USTAR_FORMAT), 508, b"tar\0")
    times = b"p" * 131 + b"13026177174 13026177174 "
    assert names(patched(data, 345, times)) == [b"p" * 131 + b"/a"]


# Sparse files


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
def test_sparse_files(tmp_path: Path, options: list[str]) -> None:
    expected = bytearray(1_000_000)
    with (tmp_path / "holes").open("wb") as holes:
        for number in range(40):  # more than a header has room for
            at = 20_480 * number + 4096
            holes.seek(at)
            holes.write(b"%04d" % number * 1024)
            expected[at : at + 4096] = b"%04d" % number * 1024
        holes.truncate(len(expected))
    (tmp_path / "all-hole").touch()
    os.truncate(tmp_path / "all-hole", 500_000)
    (tmp_path / "after").write_bytes(b"behind it")
    argv = ["tar", "-cS", *options, "-C", str(tmp_path), "holes", "all-hole", "after"]
    data = subprocess.run(argv, capture_output=True, check=True).stdout
    assert len(data) < 400_000, "there are no holes on this file system"
    assert [(member.name, content) for member, content in read(data)] == [
        (b"holes", bytes(expected)), (b"all-hole", bytes(500_000)), (b"after", b"behind it"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "records",
    [
        {"GNU.sparse.map": "0,1,0,1", "GNU.sparse.size": "9"},
        {"GNU.sparse.map": "0,9", "GNU.sparse.size": "1"},
        {"GNU.sparse.map": "0", "GNU.sparse.size": "9"},
        {"GNU.sparse.map": "0,-1", "GNU.sparse.size": "9"},
        {"GNU.sparse.map": "0,999", "GNU.sparse.size": "999"},
        {"GNU.sparse.map": "0,1"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
    ],
)
def test_sparse_tables_that_cannot_be(records: dict[str, str]) -> None:
    member, content = file("a", b"x" * 513)
    member.pax_headers = records
    refused(tar((member, content), format=tarfile.PAX_FORMAT), NotAnImage)


def test_a_hole_of_a_petabyte() -> None:
    member, content = file("a")
    member.pax_headers = {"GNU.sparse.map": "", "GNU.sparse.size": str(10**15)}
    refused(tar((member, content), format=tarfile.PAX_FORMAT), TooLarge, most_bytes=10**12)


def test_all_that_tarfile_reads_too(tmp_path: Path) -> None:
    """This machine's own files, as a check against another reader."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add("/etc/alternatives", recursive=True)
        archive.add(str(Path(__file__).parents[1]), arcname="tests", recursive=True)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        expected = [(m.name.encode(), m.mode, m.size) for m in archive]
    # tarfile rounds times in one place and cuts them in the other.
    found = [(m.name, m.mode, m.size) for m, _ in read(packed.getvalue())]
    assert found == expected
