"""Random comments, configuration files and environments.

HPCIMG_LONG=1 (`make test-long`) tries 100,000 comments and as many files.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcimg import reference
from hpcimg.config import files as conffiles
from hpcimg.config import keys
from hpcimg.config import load as config
from hpcimg.errors import ConfigError, HpcimgError, NotFound
from hpcimg.site import policy
from hpcimg.slurm import comment, prolog, warm
from hpcimg.worker import monitor, protocol
from tests.parts.node import EPILOG, PROLOG, ROOT, TASK_PROLOG, Node
from tests.reference_cases import INVALID, VALID
from tests.unit.test_conffiles import TEXTS
from tests.unit.test_task_prolog import environment, looked_in

LONG = bool(os.environ.get("HPCIMG_LONG"))
MANY = settings(
    max_examples=100_000 if LONG else 2000,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
HOOK_RUNS = 300 if LONG else 20
MESSAGE_MAX = 4096
EXAMPLE = (ROOT / "etc" / "hpcimg.conf.example").read_text()
pytestmark = pytest.mark.timeout(7200 if LONG else 300)

ODD_NUMBERS = [
    "", "0", "-1", "²", "\u0661", "1 2", "../../x", "/", "1" * 300, "1;id", "$(id)", "\n", "\udcff",
    "*", "99999999999999999999", "4294967296", "x" * 5000,
]  # fmt: skip
REFUSED = [text for text, _ in INVALID if len(text) < 5000]
# What has a meaning to somebody on the way: parsers, shells, terminals, C.
PIECES = st.one_of(
    st.sampled_from(
        [
            "container:", "=", ":", "/", "//", "://", "@", "#", "?", "%", "%n", "..", "/../", "/./",
            ";", " ", "\t", "\n", "\r", "\x0b", "\x0c", "\x1b[2J", "\x7f", "\x85", "\u2028",
            "\u202e", "\udcff", "\xa0", "$(id)", "`id`", "${HOME}", "'", '"', "\\", "*", "[", "]",
            "[::1]", "~", "sha256:", "0" * 64, "²", "\u0661", "\ufeff", "x" * 2000, "docker", "oci",
            "file", "HTTPS", "print ", "export ", "exit 0", "{}", "-", "_", "1", "\U0001f600",
            "ß", "İ", "Container", "container=", ",container:", '{"container":', '"}', "docker://",
        ]
    ),
    st.text(max_size=8),
)  # fmt: skip
TOKENS = st.sampled_from([*VALID, *(text for text, _ in INVALID)])


@st.composite
def mutated(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """Return a text with parts cut out, put in, and taken from another."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, min(len(text), 2000)))
        end = min(len(text), begin + draw(st.sampled_from([0, 0, 1, 2, 8])))
        text = text[:begin] + draw(PIECES | texts.map(lambda other: other[:40])) + text[end:]
    return text


COMMENTS = st.lists(
    st.one_of(mutated(TOKENS).map("container:".__add__), mutated(TOKENS), PIECES), max_size=4
).map(" ".join)


def as_environment(text: str) -> str:
    """Return a text as Python has it from the environment: any bytes but zero."""
    return os.fsdecode(text.encode("utf-8", "surrogatepass").replace(b"\0", b""))


def check_message(error: HpcimgError) -> None:
    """Check that it is safe for a terminal and for a line of the task prolog."""
    message = str(error)
    assert message.isprintable(), message
    assert 10 < len(message) <= MESSAGE_MAX, message


# Comments


@MANY
@given(text=COMMENTS.map(as_environment))
def test_a_comment(text: str) -> None:
    conf = config.load(os.devnull)
    wanted = comment.read(text)
    assert len(wanted.problem) <= MESSAGE_MAX
    for name, written in wanted.images:
        assert not name or (name.isascii() and f"x{name}".isidentifier())
        try:
            found = policy.parse(conf, written)
        except HpcimgError as error:
            check_message(error)
            continue
        assert reference.ALLOWED.issuperset(found.address + found.uri)
        if len(found.address) <= reference.MAX_LENGTH:
            assert reference.parse(found.address) == found, "its spelling is not the canonical one"


@pytest.fixture
def quiet_node(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node that can fetch nothing."""

    def fetch(order: protocol.Fetch, *_: object) -> None:
        raise NotFound(f"there is nothing at {order.uri}")

    monkeypatch.setattr(monitor, "fetch", fetch)
    made = Node(memory)
    for name, value in made.environment(1).items():
        monkeypatch.setenv(name, value)
    return made


@settings(MANY, max_examples=MANY.max_examples // 4)
@given(text=COMMENTS.map(as_environment))
def test_a_prolog(text: str, quiet_node: Node) -> None:
    job = quiet_node.state / "jobs" / "1"
    for name in ("task", "record.json"):
        (job / name).unlink(missing_ok=True)
    os.environ["SLURM_JOB_COMMENT"] = text
    assert warm.main("prolog", environ=dict(os.environ)) in (0, warm.LONG_WAY)
    assert prolog.main() == 0
    wanted = comment.read(text)
    is_ours = bool(wanted.images or wanted.problem or wanted.missed[0])
    assert (job / "task").exists() == is_ours
    if is_ours:
        said, code, end = (job / "task").read_text().split("\n")
        assert said.startswith("print hpcimg: ")
        assert said.isprintable()
        assert len(said) <= MESSAGE_MAX
        assert (code, end) == ("exit 1", "")
        record = json.loads((job / "record.json").read_bytes())
        assert record["class"] == "user", record
        assert len(record["images"]) <= comment.MAX_IMAGES
    assert not quiet_node.leftovers()


@pytest.mark.parametrize("job", ODD_NUMBERS)
@pytest.mark.parametrize("uid", ODD_NUMBERS)
def test_a_prolog_with_odd_numbers(
    job: str, uid: str, quiet_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_COMMENT", "container:/no/such.sif")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_JOB_UID", uid)
    assert warm.main("prolog", environ=dict(os.environ)) in (0, warm.LONG_WAY)
    assert prolog.main() == 0


# Configuration files

VALUES = st.one_of(
    st.sampled_from(
        [
            "9" * 400, "1e9", "-1", "0", "", "%", "100%", "101%", "0x10", "1.5.5G", "nan", "inf",
            "1Z", "²G", "\u0661s", "/", "//", "/a/../b", "/%n", "relative", "/" + "a" * 5000, "yes",
            "sif", "https://", "https://u:p@h/", "*", "[", "/a\n /b", "/a\\", "=", "\x00", "\udcff",
            "syslog",
        ]
    ),
    st.text(max_size=12),
)  # fmt: skip
HEADS = st.sampled_from(
    ["[cache]", "[state]", "[registry ghcr.io]", "[registry ]", "[static x]", "[static]", "[alias]",
     "[static docker]", "[DEFAULT]", "[]", "[", "[stage", "[slurm]  ", " [log]", "[policy];"]
)  # fmt: skip
NAMES = st.sampled_from(
    [
        *(key.name for key in keys.KEYS),
        "insecure",
        "auth_file",
        "shared",
        "url",
        "x/*",
        "",
        "PATH",
    ]
)


@st.composite
def changed_examples(draw: st.DrawFn) -> str:
    """Return hpcimg.conf.example with keys set, lines lost, doubled, moved and put in."""
    lines = EXAMPLE.splitlines()
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 6)):
            case 0 | 1:
                name, equals, _ = lines[at].removeprefix("#").partition("=")
                lines[at] = f"{name}{equals}{draw(VALUES)}"
            case 2:
                lines[at] = lines[at].removeprefix("#")
            case 3:
                lines.insert(at, draw(HEADS))
            case 4:
                lines.insert(at, f"{draw(NAMES)} = {draw(VALUES)}")
            case 5:
                lines.append(lines.pop(at))
            case _:
                lines[at] = draw(mutated(st.just(lines[at])))
    return "\n".join(lines)


@MANY
@given(text=st.one_of(changed_examples(), changed_examples(), TEXTS, st.text(max_size=60)))
def test_a_configuration(text: str, memory: Path) -> None:
    main = memory / "hpcimg.conf"
    main.write_bytes(text.encode("utf-8", "surrogatepass"))
    files = conffiles.read_files(str(main))
    cache, state = conffiles.directories(files)
    try:
        loaded = config.load(str(main))
        config.settings(str(main))
    except ConfigError as error:
        check_message(error)
        return
    # What the short way and the task prolog read is what configparser reads.
    assert (loaded.cache_path, loaded.state_path) == (cache, state)
    asked, node = conffiles.raw_value(files, "stage", "registries_conf"), conffiles.node_name()
    assert loaded.registries_conf == (asked or conffiles.DEFAULT_REGISTRIES).replace("%n", node)


@settings(MANY, max_examples=1000 if LONG else 30)
@given(text=st.one_of(changed_examples(), TEXTS))
def test_what_the_task_prolog_reads(
    text: str, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (memory / "hpcimg.conf").write_bytes(text.encode("utf-8", "surrogatepass"))
    monkeypatch.setenv("SLURMD_NODENAME", environment(memory)["SLURMD_NODENAME"])
    with contextlib.suppress(ConfigError):
        loaded = config.load(str(memory / "hpcimg.conf"))
        assert looked_in(["/bin/sh"], memory) == f"{loaded.state_path}/jobs/7"


# Hooks as slurmd runs them


def hostile_environment(node: Node, choose: random.Random) -> dict[str, str]:
    """Return an environment in which a few things are wrong, on the way to no network."""
    fields = node.environment(1, f"container:{choose.choice(['/no/such.sif', *REFUSED])}")
    names = [
        "SLURM_JOB_ID", "SLURM_JOB_UID", "SLURMD_NODENAME", "SLURM_JOB_COMMENT", "PYTHONPATH",
        "PYTHONHOME", "PYTHONSTARTUP", "PATH", "IFS", "ENV", "LC_ALL", "HOME", "TMPDIR",
    ]  # fmt: skip
    for _ in range(choose.randint(1, 3)):
        name = choose.choice(names)
        if choose.random() < 0.25:
            fields.pop(name, None)
        else:
            fields[name] = choose.choice(ODD_NUMBERS)
    return fields


def test_hooks_in_hostile_environments(node: Node) -> None:
    """Whatever slurmd's environment is, the node is not drained."""
    seed = int(os.environ.get("HPCIMG_FUZZ_SEED") or random.SystemRandom().randrange(10**6))
    choose = random.Random(seed)
    for _ in range(HOOK_RUNS):
        env = hostile_environment(node, choose)
        for hook in (PROLOG, TASK_PROLOG, EPILOG):
            done = subprocess.run([hook], env=env, capture_output=True, timeout=60, check=False)
            where = f"HPCIMG_FUZZ_SEED={seed}: {hook.name} {env} {done}"
            assert done.returncode in ((0, 1) if hook == TASK_PROLOG else (0,)), where
            assert b"Traceback" not in done.stderr + done.stdout, where
