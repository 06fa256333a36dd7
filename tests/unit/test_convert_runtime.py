"""The files that runtimes expect in a converted image, and a real runtime that uses them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.parts import docblocks, layers
from tests.parts.daemon import PATH, missing_commands
from tests.parts.layers import converted, directory, file, layer, symlink, unpack, whiteout

pytestmark = pytest.mark.skipif(bool(layers.missing()), reason=layers.missing() or "-")

# What runtimes find

CONFIG = {
    "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), ""),
    "os": "linux",
    "config": {
        "Env": [
            "PATH=/opt/bin:/bin", "QUOTES=a'b\"c `id` $(id) $HOME \\", "LINES=1\n2", "bad-name=x",
            "NAME\nx=1", "GREETING=hello", "NONE",
        ],
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
        directory("tmp", mode=0o700), file("singularity", b"the image's own"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("image") / "image"
    return unpack(converted(path, [data, layer(whiteout("root"))], config=json.dumps(CONFIG)))


def sh(script: str, *arguments: str, **environment: str) -> str:
    """Return the output of a script."""
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
        # Dockerfiles take the entry point of the image below away like this.
        ({"Entrypoint": [""], "Cmd": ["echo", "cmd"]}, [], "cmd\n"),
        ({"Entrypoint": [""]}, ["echo", "x"], "x\n"),
        # Docker takes text for one word, and null for an empty one.
        ({"Entrypoint": "echo", "Cmd": [None, "x"]}, [], " x\n"),
        ({"Cmd": "date", "Entrypoint": ["echo"]}, [], "date\n"),
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


def test_variables_that_no_shell_takes(tmp_path: Path) -> None:
    """They are stored where no shell reads them."""
    names = ["spring.profiles.active", "chrome:path", "A-B", "1A", "a b", "é", "$(id)"]
    config = {"config": {"Env": [*(f"{name}=1" for name in names), "=x", "OK=2"]}}
    tree = unpack(converted(tmp_path / "image", [layer(file("a"))], config=json.dumps(config)))
    assert (tree / "etc/environment").read_text().splitlines() == [
        *(f"{name}=1" for name in names), "OK=2",
    ]  # fmt: skip
    script = (tree / ".singularity.d/env/10-docker2singularity.sh").read_text()
    assert "".join(script.splitlines()[1:]) == '[ -n "${OK:-}" ] || export OK=2'
    assert json.loads((tree / ".singularity.d/oci-config.json").read_text()) == config


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("null", ""),
        ("1", "1"),
        ('{"a": [2]}', '{"a": [2]}'),
        ('"\\udc00x"', "\N{REPLACEMENT CHARACTER}x"),
    ],
)
def test_labels_that_are_no_text(tmp_path: Path, label: str, shown: str) -> None:
    config = f'{{"config": {{"Labels": {{"a": {label}, "b": "c"}}}}}}'
    tree = unpack(converted(tmp_path / "image", [layer(file("a"))], config=config))
    labels = json.loads((tree / ".singularity.d/labels.json").read_text())
    assert labels == {"a": shown, "b": "c"}


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
        "PATH=/opt/bin:/bin\nQUOTES=a'b\"c `id` $(id) $HOME \\\nbad-name=x\nGREETING=hello\n"
    )
    rc = (tree / "etc/rc").read_text()
    assert "cd -- '/data dir'" in rc
    assert sh(rc.replace("/data dir", str(tmp_path / "data dir")), "x") == "<x>"
    # Apptainer has its own, and leaves the image's alone.
    sif = converted(tmp_path / "x.sif", [layer(file("etc/environment", b"own"))], format="sif")
    assert (unpack(sif) / "etc/environment").read_bytes() == b"own"


# The real one


@pytest.mark.skipif(
    bool(missing_commands("apptainer")), reason=missing_commands("apptainer") or "-"
)
@pytest.mark.usefixtures("mksquashfs")
@pytest.mark.parametrize("format", ["sif", "squashfs"])
def test_apptainer_takes_it(open_directory: Path, format: str) -> None:
    if missing := missing_commands("busybox"):
        pytest.skip(missing)
    busybox = Path(shutil.which("busybox", path=PATH) or "").read_bytes()
    config = json.dumps({"config": {"Env": ["A=1"], "Entrypoint": ["/bin/echo"], "Cmd": ["cmd"]}})
    data = layer(
        file("bin/busybox", busybox, mode=0o755), symlink("bin/sh", "busybox"),
        symlink("bin/echo", "busybox"),
    )  # fmt: skip
    path = converted(open_directory / "image", [data], format=format, config=config)
    path.chmod(0o644)
    home = open_directory / "home"
    home.mkdir()
    home.chmod(0o777)
    # As users do. As root it wants all that root may do, which not every host gives.
    ordinary: dict[str, Any] = {}
    if os.geteuid() == 0:
        ordinary = {"user": "nobody", "group": "nogroup", "extra_groups": []}

    def apptainer(*arguments: str) -> str:
        argv = ["apptainer", "--silent", *arguments]
        environment = {"PATH": PATH, "HOME": str(home)}
        done = subprocess.run(
            argv, capture_output=True, text=True, cwd=home, env=environment, **ordinary, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert apptainer("run", str(path)) == "cmd\n"
    assert apptainer("run", str(path), "a", "b") == "a b\n"
    assert apptainer("exec", str(path), "sh", "-c", 'echo "$A"') == "1\n"
    assert "export A=1" in apptainer("inspect", "-e", str(path))
    if format == "sif":
        assert "*System" in apptainer("sif", "list", str(path))


# Recipes of the manual, which have a program samtools in the image


def recipe(beginning: str) -> str:
    """Return the block of the users' page that begins so."""
    blocks = docblocks.blocks(docblocks.ROOT / "docs/howto-users.md", "sh")
    [text] = [block.text for block in blocks if block.text.startswith(beginning)]
    return text


def run_recipe(text: str, image: Path) -> str:
    environment = {"PATH": PATH, "HOME": "/", "USER": "nobody", "HPCIMG_IMAGE": str(image)}
    done = subprocess.run(
        ["sh", "-eu"], input=text, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_samtools(path: Path, format: str) -> Path:
    busybox = Path(shutil.which("busybox", path=PATH) or "").read_bytes()
    says = b'#!/bin/sh\nprintf \'%s|\' samtools "$@" "${A-}" "${B-}" "${C-}"\n'
    data = layer(
        file("bin/busybox", busybox, mode=0o755), symlink("bin/sh", "busybox"),
        symlink("bin/printf", "busybox"), file("bin/samtools", says, mode=0o755),
        file("etc/passwd"), file("etc/group"),
    )  # fmt: skip
    config = {"config": {"Env": ["PATH=/bin", "A=it's", "B='quoted'", "C=$HOME:x=y"]}}
    return converted(path, [data], format=format, config=json.dumps(config))


def missing_fuse(*programs: str) -> str:
    if missing := missing_commands("busybox", *programs):
        return missing
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return ""


@pytest.mark.skipif(bool(missing_fuse("ch-run")), reason=missing_fuse("ch-run") or "-")
def test_charliecloud_takes_it_with_its_variables(tmp_path: Path) -> None:
    image = with_samtools(tmp_path / "image", "squashfs")
    said = run_recipe(recipe("variables="), image)
    # Charliecloud takes a pair of single quotes away.
    assert said == "samtools|--version|it's|quoted|$HOME:x=y|"


@pytest.mark.skipif(
    bool(missing_fuse("ch-run", "squashfuse", "fusermount")),
    reason=missing_fuse("ch-run", "squashfuse", "fusermount") or "-",
)
def test_squashfuse_takes_what_is_in_a_sif(tmp_path: Path) -> None:
    image = with_samtools(tmp_path / "image", "sif")
    assert run_recipe(recipe("root="), image).startswith("samtools|--version|")


@pytest.mark.skipif(
    bool(missing_commands("apptainer")), reason=missing_commands("apptainer") or "-"
)
def test_the_recipe_for_apptainer(open_directory: Path) -> None:
    if missing := missing_commands("busybox"):
        pytest.skip(missing)
    image = with_samtools(open_directory / "image", "sif")
    image.chmod(0o644)
    assert run_recipe(recipe("apptainer"), image).startswith("samtools|--version|it's|")
