"""The documentation works as written, and is complete."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hpcimg import errors
from hpcimg.cli import main as cli
from hpcimg.config import load as config
from hpcimg.config.keys import KEYS, NAMED
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.reference import Reference
from tests.parts import docblocks, images
from tests.parts.daemon import TIMEOUT_S
from tests.parts.docblocks import EXAMPLE_REGISTRY, EXAMPLE_WEB, PAGES, ROOT, Block
from tests.parts.node import Node
from tests.parts.ociimages import make_layer, push_image
from tests.parts.parents import Parent
from tests.parts.registry import Registry
from tests.parts.webfaults import Slow
from tests.parts.webserver import WebServer

DOCS = ROOT / "docs"
MAN_1, MAN_5 = ROOT / "man/man1/hpcimg.1", ROOT / "man/man5/hpcimg.conf.5"
CHECKED = {"console", "slurm", "sh", "ini", "slurm.conf", "nginx", "fstab", "python", "text"}
SIZES = {"samtools": 24 << 20, "bwa": 48 << 20}
NODE_NAME = "node17"
_MARK = "\x1e"

needs_images = pytest.mark.skipif(images.missing() != "", reason=images.missing())


class World:
    """A node, servers and a shared directory, under the names that the documentation uses."""

    def __init__(self, directory: Path, web: WebServer, registry: Registry) -> None:
        directory.chmod(0o755)  # the unprivileged account reads in it
        self.node = Node(directory, f"[registry {registry.host}]\ninsecure = yes\n")
        shared = directory / "shared"
        shared.mkdir()
        # Longest first: some contain others.
        self._real = {
            EXAMPLE_WEB: web.url(),
            EXAMPLE_REGISTRY: registry.host,
            "/var/cache/hpcimg": str(self.node.cache),
            "/shared/images": str(shared),
            "/run/hpcimg": str(self.node.state),
            "/etc/hpcimg": str(directory),
            "/usr/lib/hpcimg": str(ROOT),
        }

    def real(self, text: str) -> str:
        """Replace the documentation's addresses and paths by the test's."""
        for name, place in self._real.items():
            text = text.replace(name, place)
        return text

    def shown(self, text: str) -> str:
        """Replace the test's addresses and paths by the documentation's."""
        names = {place: name for name, place in self._real.items()}
        # In one pass: a place may be part of a name, as that of a checkout in /hpcimg is.
        places = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return re.sub(rf"(?<![\w.-])(?:{places})", lambda found: names[found[0]], text)

    def sh(self, script: str) -> str:
        """Run a script as an administrator would; return all of its output."""
        environment = {
            "PATH": f"{ROOT}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HPCIMG_CONF": str(self.node.conf),
            "SLURMD_NODENAME": NODE_NAME,
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            ["sh"],
            input=script,
            env=environment,
            cwd=self.node.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout


@pytest.fixture(scope="module")
def files() -> Iterator[dict[str, bytes]]:
    """The files on the documentation's web server."""
    with tempfile.TemporaryDirectory() as directory:
        made = {}
        for name, size in SIZES.items():
            image = images.make_sif(Path(directory) / name, {"a": b"b"}, size_bytes=size)
            made[f"/{name}.sif"] = image.read_bytes()
        other = images.make_sif(Path(directory) / "other", {"a": b"b"}, arch="s390x")
        made["/s390x.sif"] = other.read_bytes()
        made["/index.html"] = b"<!doctype html><p>Hello"
        yield made


@pytest.fixture
def docs_web(files: dict[str, bytes], web: WebServer) -> WebServer:
    for path, data in files.items():
        web.put(path, data, etag='"1"')
    return web


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """The documentation's registry, with two versions on one base; not started where missing."""
    if Registry.missing():
        yield Registry()
        return
    with Registry() as registry:
        base = make_layer({"usr/lib/base": os.urandom(5 << 20)})
        for tag in ("1.19", "1.20"):
            layers = [base, make_layer({"bin/samtools": os.urandom(1 << 20)})]
            push_image(registry, "bio/samtools", tag, layers)
        yield registry


@pytest.fixture
def world(docs_web: WebServer, registry: Registry) -> Iterator[World]:
    directory = Path(tempfile.mkdtemp(prefix="docs-", dir="/tmp"))
    yield World(directory, docs_web, registry)
    shutil.rmtree(directory)


def all_blocks(*languages: str) -> list[Any]:
    found = [block for page in PAGES for block in docblocks.blocks(page, *languages)]
    return [pytest.param(b, id=f"{b.page.stem}-{b.line}") for b in found]


# Blocks


def pages_with_console_blocks() -> list[Any]:
    found = [page for page in PAGES if docblocks.blocks(page, "console")]
    return [pytest.param(page, id=page.stem) for page in found]


@needs_images
@pytest.mark.parametrize("page", pages_with_console_blocks())
def test_console_blocks_do_what_they_show(page: Path, world: World) -> None:
    needs_registry(*docblocks.blocks(page, "console"))
    for block in docblocks.blocks(page, "console"):
        run_console_block(block, world)


def needs_registry(*blocks: Block) -> None:
    """Skip a test of blocks that name the registry where there is none."""
    if Registry.missing() and any(EXAMPLE_REGISTRY in block.text for block in blocks):
        pytest.skip(Registry.missing())


def run_console_block(block: Block, world: World) -> None:
    """Run the commands in one shell; compare what each prints, and that none fails silently."""
    wanted = docblocks.commands(block)
    # The exit code is printed behind each command and put back for the next.
    behind = f"code=$?; printf '{_MARK}%s{_MARK}' $code; (exit $code)"
    script = "\n".join(f"{world.real(command.text)}\n{behind}" for command in wanted)
    pieces = world.sh(script).split(_MARK)
    outputs, codes = pieces[0::2], pieces[1::2]
    where = f"{block.page.name}:{block.line}"
    assert len(codes) == len(wanted), f"{where}: {pieces[-1]}"
    following = [command.text for command in wanted[1:]] + [""]
    for command, output, code, next_text in zip(wanted, outputs, codes, following, strict=False):
        assert code == "0" or next_text == "echo $?" or "hpcimg: " in command.output, (
            f"{where}: {command.text!r} ended with {code}: {output}"
        )
        shown, real = command.output, world.shown(output)
        assert docblocks.matches(shown, real), (
            f"{where}: {command.text}\nshown:\n{shown}\nreal:\n{real}"
        )


def test_every_block_has_a_language_that_something_checks() -> None:
    languages = {block.values[0].language for block in all_blocks()}
    assert languages <= CHECKED


@needs_images
@pytest.mark.parametrize("block", all_blocks("slurm"))
def test_a_batch_script_gets_the_variables_that_it_uses(block: Block, world: World) -> None:
    needs_registry(block)
    assert block.text.startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)
    task = world.node.stage(1, world.real(docblocks.comment(block.text)))
    assert task.code == 0, task.printed
    used = set(re.findall(r"\$\{?(HPCIMG_\w+)", block.text))
    assert used
    assert used <= set(task.exports)


@pytest.mark.parametrize("block", all_blocks("sh"))
def test_shell_blocks_are_shell(block: Block) -> None:
    subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("block", all_blocks("ini"))
def test_ini_blocks_are_configurations(block: Block, tmp_path: Path) -> None:
    (tmp_path / "hpcimg.conf").write_text(block.text)
    config.load(str(tmp_path / "hpcimg.conf"))


@pytest.mark.parametrize("block", all_blocks("slurm.conf"))
def test_slurm_conf_blocks_agree_with_the_example(block: Block) -> None:
    example = (ROOT / "etc/slurm.conf.example").read_text().splitlines()
    assert set(block.text.splitlines()) <= set(example)


@pytest.mark.parametrize("block", all_blocks("nginx"))
def test_nginx_blocks_are_of_the_mirror(block: Block) -> None:
    mirror = (ROOT / "etc/nginx/hpcimg-mirror.conf").read_text()
    assert block.text in mirror


@pytest.mark.parametrize("block", all_blocks("python"))
def test_python_blocks_compile(block: Block) -> None:
    ast.parse(block.text)


@needs_images
def test_the_example_of_a_source_fetches(docs_web: WebServer, tmp_path: Path) -> None:
    (block,) = docblocks.blocks(DOCS / "adding-a-source.md", "python")
    module: dict[str, Any] = {}
    exec(compile(block.text, block.page, "exec"), module)
    answer = f'{{"url": "{docs_web.url("/bwa.sif")}", "size": {SIZES["bwa"]}, "sha256": "12ab"}}'
    docs_web.put("/bwa", answer.encode())
    reference = Reference("catalog", docs_web.url("/bwa").removeprefix("http://"))
    settings = Settings(2, 30.0, 5.0, 5.0, insecure=True, networks=("127.0.0.1",))
    parent = Parent()
    target = tmp_path / "image"
    with target.open("w+b") as file:
        sink = Sink(file.fileno(), parent)
        assert module["fetch"](reference, sink, validator="", settings=settings) is False
        assert module["fetch"](reference, sink, validator="12ab", settings=settings) is True
    assert target.stat().st_size == SIZES["bwa"]
    assert parent.said[0] == ("offer", Offer("12ab", SIZES["bwa"], "12ab"))


@needs_images
def test_status_looks_as_shown_while_jobs_are_held(world: World, docs_web: WebServer) -> None:
    (shown,) = [
        command
        for block in docblocks.blocks(DOCS / "howto-operate.md", "text")
        if "In progress" in block.text
        for command in docblocks.commands(block)
    ]
    node, samtools = world.node, f"container:{docs_web.url('/samtools.sif')}"
    node.prolog(4710, samtools)
    node.epilog(4710)
    node.prolog(4711, samtools)
    node.prolog(4712, f"container:{docs_web.url('/samtolls.sif')}")
    docs_web.script("/bwa.sif", [Slow(12 << 20)])
    prolog = node.start_prolog(4713, f"container:{docs_web.url('/bwa.sif')}")
    output = ""
    while prolog.poll() is None and " MiB/s" not in output:
        output = world.shown(world.sh("hpcimg status"))
    prolog.communicate(timeout=TIMEOUT_S)
    assert docblocks.shape(shown.output) == docblocks.shape(output), output


@needs_images
def test_a_hook_may_be_wrapped_to_set_certificates_and_proxies(
    files: dict[str, bytes], world: World
) -> None:
    (block,) = [
        block
        for block in docblocks.blocks(DOCS / "howto-install.md", "sh")
        if "REQUESTS_CA_BUNDLE" in block.text
    ]
    with WebServer(tls=True) as web:
        web.put("/bwa.sif", files["/bwa.sif"])
        wrapper, bundle = Path(world.real("/etc/hpcimg/wrapper")), "/etc/hpcimg/authorities.pem"
        assert bundle in block.text
        Path(world.real(bundle)).write_bytes(web.certificate.read_bytes())
        wrapper.write_text(world.real(block.text.replace(".example.org\n", "127.0.0.1\n")))
        wrapper.chmod(0o755)
        environment = world.node.environment(1, f"container:{web.url('/bwa.sif')}")
        subprocess.run([str(wrapper)], env=environment, check=True)
        assert world.node.task(1).code == 0, world.node.log()


@pytest.mark.parametrize("installed", [True, False])
def test_a_wrapper_that_is_on_every_node(installed: bool, world: World) -> None:
    blocks = docblocks.blocks(DOCS / "howto-install.md", "sh")
    wrappers = [block for block in blocks if "hook=" in block.text]
    paths = [world.node.directory / "prolog", world.node.directory / "task-prolog"]
    for path, block in zip(paths, wrappers, strict=True):
        path.write_text(world.real(block.text) if installed else block.text)
        path.chmod(0o755)
    environment = world.node.environment(1, "container:/no/such.sif")
    subprocess.run([paths[0]], env=environment, check=True)
    task = subprocess.run([paths[1]], env=environment, capture_output=True, text=True, check=False)
    if installed:
        assert task.returncode == 1
        assert "there is no file /no/such.sif" in task.stdout
    elif not Path("/usr/lib/hpcimg").exists():
        assert (task.returncode, task.stdout) == (0, "")


# References


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, ROOT / "CHANGELOG.md"):
        for link in docblocks.links(page):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                assert anchor in docblocks.anchors(target), f"{page.name}: {link}"


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`([a-z]+/test_\w+\.py)::(test_\w+)`", (DOCS / "security.md").read_text())
    assert len(named) > 50
    for path, name in named:
        tests = (ROOT / "tests" / path).read_text()
        assert f"\ndef {name}(" in tests, f"{path}::{name}"


def test_the_readme_names_every_page() -> None:
    named = set(docblocks.links(ROOT / "README.md"))
    assert {f"docs/{page.name}" for page in DOCS.iterdir()} <= named


@pytest.mark.parametrize("name", list(dict.fromkeys(key.section for key in KEYS)))
def test_every_key_is_in_the_reference_with_its_default(name: str) -> None:
    table = docblocks.rows(docblocks.section(DOCS / "reference-config.md", f"[{name}]"))
    found = {row[0]: row[1].replace("(empty)", "") for row in table[2:]}
    assert found == {key.name: key.default for key in KEYS if key.section == name}


def test_every_key_is_in_the_man_page_with_its_default() -> None:
    text = MAN_5.read_text()
    found = re.findall(r"^\.It Cm (\w+) No = ?(.*)$|^\.Ss \[(\w+)\]$", text, re.MULTILINE)
    sections = [entry[2] for entry in found]
    here, keys = "", []
    for (name, default, _), section in zip(found, sections, strict=True):
        here = section or here
        if name:
            keys.append((here, name, default))
    known = [(key.section, key.name, key.default) for key in KEYS]
    assert keys[: len(known)] == known
    own = [name for kind in ("registry", "static", "mirror") for name in NAMED[kind][1]]
    assert [name for _, name, _ in keys[len(known) :]] == own
    for name in own:
        assert f"| `{name}` |" in (DOCS / "reference-config.md").read_text()


def test_the_example_configuration_uncommented_is_the_defaults(tmp_path: Path) -> None:
    example = (ROOT / "etc/hpcimg.conf.example").read_text()
    path = tmp_path / "hpcimg.conf"
    path.write_text(re.sub(r"^#(?=\S)", "", example, flags=re.MULTILINE))
    loaded = config.load(str(path))
    listed = config.settings(str(path))
    assert {setting.origin for setting in listed} == {str(path)}
    path.write_text("")
    empty = config.load(str(path))
    assert loaded == empty._replace(fingerprint=loaded.fingerprint)


def test_the_example_configuration_is_what_make_example_writes(tmp_path: Path) -> None:
    done = Node(tmp_path).hpcimg("config", "--example")
    assert done.stdout == (ROOT / "etc/hpcimg.conf.example").read_text()


def test_the_example_configuration_explains_every_key() -> None:
    example = (ROOT / "etc/hpcimg.conf.example").read_text().lower()
    for key in KEYS:
        line = f"# {key.about}.\n#{key.name} = {key.default}".rstrip()
        assert f"{line}\n".lower() in example


def known_errors() -> set[tuple[str, str, str]]:
    def below(cls: type[errors.HpcimgError]) -> list[type[errors.HpcimgError]]:
        return [deeper for sub in cls.__subclasses__() for deeper in [sub, *below(sub)]]

    ours = [cls for cls in below(errors.HpcimgError) if cls.__module__ == errors.__name__]
    return {(str(cls.exit_code), cls.__name__, cls.kind) for cls in ours}


def test_every_exit_code_is_in_the_reference() -> None:
    table = docblocks.rows(docblocks.section(DOCS / "reference-cli.md", "Exit codes"))
    assert {tuple(row[:3]) for row in table if row[0].isdigit() and len(row) == 4} == known_errors()


def test_every_exit_code_is_in_the_man_page() -> None:
    text = MAN_1.read_text().partition(".Sh EXIT STATUS")[2].partition(".El")[0]
    found = set(re.findall(r"\d+", " ".join(re.findall(r"^\.It (.*)$", text, re.MULTILINE))))
    assert found == {"0", "1", "2", "130", "141"} | {code for code, _, _ in known_errors()}


def options(name: str) -> list[str]:
    """Return the long options of a subcommand."""
    parser = cli._parser()
    (subparsers,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    actions = subparsers.choices[name]._actions
    return [option for action in actions for option in action.option_strings if option[:2] == "--"]


@pytest.mark.parametrize("name", list(cli._COMMANDS))
def test_every_subcommand_and_option_is_described(name: str) -> None:
    section = docblocks.section(DOCS / "reference-cli.md", name)
    page = MAN_1.read_text()
    assert f"`hpcimg {name}" in section
    assert re.search(rf"^\.It Cm {name}\b", page, re.MULTILINE)
    for option in set(options(name)) - {"--json", "--help"}:
        assert f"`{option}" in section
        assert re.search(rf"^\.It Fl -{option[2:]}\b", page, re.MULTILINE)


def fields(value: object, *, without: tuple[str, ...] = ()) -> set[str]:
    """Return the names of all fields in a JSON value, those of `without` not looked into."""
    if isinstance(value, list):
        return {name for item in value for name in fields(item, without=without)}
    if not isinstance(value, Mapping):
        return set()
    inner = [fields(item, without=without) for name, item in value.items() if name not in without]
    return set(value).union(*inner)


def test_every_json_field_is_described(world: World, docs_web: WebServer) -> None:
    node, url = world.node, docs_web.url("/bwa.sif")
    node.prolog(1, f"container:{docs_web.url('/nothing.sif')}")
    node.prolog(2, f"container:{docs_web.url('/samtools.sif')}")
    (node.directory / "squeue").write_text("#!/bin/sh\n")
    (node.directory / "scontrol").write_text("#!/bin/sh\n")
    for name in ("squeue", "scontrol"):
        (node.directory / name).chmod(0o755)
    node.configure(f"[slurm]\nbin = {node.directory}\n")
    calls = {
        "check": [url, "x"], "stage": [url], "prefetch": [url], "path": [url], "status": [],
        "ls": [], "link": ["--as", "nextflow", str(node.directory / "links")],
        "gc": ["--dry-run"], "config": [], "doctor": [], "explain": ["1"], "history": [],
        "pin": [url], "unpin": [url], "verify": [], "metrics": [], "rm": [url],
        "completion": ["bash"], "hooks": [str(node.directory / "hooks")],
            "features": [],
    }  # fmt: skip
    assert set(calls) == set(cli._COMMANDS)
    for name, arguments in calls.items():
        # What is in a record is described with the files, labels with the metrics.
        without = ("jobs", "counts", "record", "labels", "links")
        found = fields(node.hpcimg_json(name, *arguments), without=without)
        section = docblocks.section(DOCS / "reference-cli.md", name)
        events = docblocks.section(DOCS / "reference-files.md", "Events")
        described = set(re.findall(r"`(\w+)`", section + events))
        assert found - {"version"} <= described, name


def test_every_file_and_its_fields_are_described(world: World, docs_web: WebServer) -> None:
    node, page = world.node, DOCS / "reference-files.md"
    node.prolog(1, f"container:{docs_web.url('/nothing.sif')}")
    node.prolog(2, f"container:{docs_web.url('/samtools.sif')}")
    text = page.read_text()
    for directory in (node.cache, node.state):
        for path in directory.iterdir():
            name = f"{path.name}/" if path.is_dir() else path.name
            assert f"`{name}" in text, name
    described = set(re.findall(r"`(\w+)`", text))
    assert fields(node.record(1)) | fields(node.record(2)) <= described
    for path in (*node.cache.glob("meta/*"), *node.cache.glob("refs/*")):
        assert fields(json.loads(path.read_text())) <= described


# Man pages


@pytest.mark.parametrize("page", sorted(ROOT.glob("man/man?/*")), ids=lambda page: page.name)
def test_man_pages_are_without_mistakes(page: Path) -> None:
    if shutil.which("groff"):
        argv = ["groff", "-mdoc", "-ww", "-Tutf8", "-z", str(page)]
    elif shutil.which("mandoc"):
        argv = ["mandoc", "-Tlint", "-Wwarning", str(page)]
    else:
        pytest.skip("neither groff nor mandoc is installed")
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
