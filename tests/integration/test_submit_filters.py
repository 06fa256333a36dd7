"""The Lua files of the submit side, under each Lua that is installed here, without Slurm."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcimg import reference, schemes
from hpcimg.slurm import comment as comments
from hpcimg.slurm import features
from tests.comment_cases import ASKS, INNOCENT, LINKS, MISSED, PROBLEMS
from tests.parts.daemon import TIMEOUT_S
from tests.reference_cases import INVALID, VALID

ETC = Path(__file__).parents[2] / "etc"
# Slurm embeds the one that it was built with: 5.1 in Debian 12, 5.4 in others.
INTERPRETERS = [name for name in ("lua5.1", "lua5.3", "lua5.4", "lua") if shutil.which(name)]

# As much of Slurm as the files use. Every answer is printed in hex, one a line.
STUB = """
slurm = { SUCCESS = 0, ERROR = -1 }
local said = {}
local function say(...) table.insert(said, string.format(...)) end
slurm.log_error = say
slurm.log_user = say
local function answer(value)
    print((tostring(value):gsub(".", function(c) return ("%02x"):format(c:byte()) end)))
end
-- The host's own /etc/slurm and /etc/hpcimg are none of a test's business.
local open = io.open
io.open = function(path) return path:sub(1, #DIRECTORY) == DIRECTORY and open(path) or nil end
"""

JOB_HOOKS = {
    "submit": "slurm_job_submit(job, {}, 1000)",
    "modify": "slurm_job_modify(job, {}, {}, 1000)",
}


def quoted(text: str | None) -> str:
    """Return a Lua literal for any text."""
    if text is None:
        return "nil"
    return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'


class Lua:
    """One interpreter, and a directory with the files as a site has them beside slurm.conf."""

    def __init__(self, command: str, directory: Path) -> None:
        self.command = command
        self.directory = directory
        for name in ("hpcimg.lua", "cli_filter.lua", "job_submit.lua"):
            shutil.copy(ETC / name, directory)

    def run(self, code: str, env: Mapping[str, str] | None = None) -> list[str]:
        """Run code after the stub; return what it passed to answer()."""
        code = f"DIRECTORY = {quoted(str(self.directory))}\n{STUB}\n{code}"
        result = subprocess.run(
            [self.command, "-"],
            input=code.encode(),
            env=dict(env or {}),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert result.returncode == 0, result.stderr.decode()
        return [bytes.fromhex(line).decode() for line in result.stdout.decode().splitlines()]

    def load(self, name: str) -> str:
        return f"dofile({quoted(str(self.directory / name))})\n"

    def merge(self, *pairs: tuple[str | None, str | None]) -> list[str]:
        """Return the merged comment or the message for each comment and references."""
        code = f"local hpcimg = {self.load('hpcimg.lua')}"
        for comment, references in pairs:
            code += "do local merged, problem = "
            code += f"hpcimg.merge({quoted(comment)}, {quoted(references)})\n"
            code += "answer(merged or problem) end\n"
        return self.run(code)

    def read(self, comments: Sequence[str]) -> list[dict[str, Any]]:
        """Return what each comment asks for."""
        code = f"local hpcimg = {self.load('hpcimg.lua')}"
        code += "local function all(list) answer(#list)"
        code += " for _, text in ipairs(list) do answer(text) end end\n"
        for comment in comments:
            code += f"do local wanted = hpcimg.read({quoted(comment)})\n"
            code += "all(wanted) all(wanted.links)\n"
            code += (
                "answer(wanted.problem or '') answer(wanted.missed and wanted.missed.right or '')"
            )
            code += " end\n"
        lines = iter(self.run(code))
        return [
            {
                "images": [next(lines) for _ in range(int(next(lines)))],
                "links": [next(lines) for _ in range(int(next(lines)))],
                "problem": next(lines),
                "missed": next(lines),
            }
            for _ in comments
        ]

    def cli(
        self,
        references: str | None = None,
        *,
        pyxis: str | None = None,
        option: str | None = None,
        **options: str | None,
    ) -> tuple[int, str, str]:
        """Call the cli_filter; return its status, the comment after it and the messages.

        `pyxis` is in the environment, `option` is what --container-image has where pyxis is.
        """
        named = {"HPCIMG_CONTAINER": references, "PYXIS_CONTAINER_IMAGE": pyxis}
        env = {name: value for name, value in named.items() if value is not None}
        fields = ", ".join(f"{name} = {quoted(value)}" for name, value in options.items())
        code = self.load("cli_filter.lua")
        code += f"local options = {{ {fields} }}\n"
        if option is not None:
            code += f"options.spank = {{ pyxis = {{ ['container-image'] = {quoted(option)} }} }}\n"
        code += "answer(slurm_cli_pre_submit(options, 0)) answer(options.comment)\n"
        status, comment, said = self.run(code + "answer(table.concat(said, '|'))", env)
        return int(status), comment, said

    def job(
        self,
        references: str | None = None,
        *,
        comment: str | None = None,
        batch: bool = True,
        hook: str = "submit",
    ) -> tuple[int, str, str]:
        """Call the job_submit plugin likewise."""
        fields = f"comment = {quoted(comment)}"
        if batch:
            fields += f", script = '', environment = {{ HPCIMG_CONTAINER = {quoted(references)} }}"
        code = self.load("job_submit.lua") + f"local job = {{ {fields} }}\n"
        code += f"answer({JOB_HOOKS[hook]}) answer(job.comment)\n"
        status, after, said = self.run(code + "answer(table.concat(said, '|'))")
        return int(status), after, said


@pytest.fixture(params=INTERPRETERS or ["lua"])
def lua(request: pytest.FixtureRequest, tmp_path: Path) -> Lua:
    if not INTERPRETERS:
        pytest.skip("no lua here: install lua5.4")
    return Lua(request.param, tmp_path)


# The grammar


def test_valid_references_pass_unchanged(lua: Lua) -> None:
    comments = [f"container:{text}" for text in VALID]
    assert lua.merge(*((comment, None) for comment in comments)) == comments


@pytest.mark.parametrize("place", ["comment", "environment"])
def test_invalid_references_are_refused_with_a_hint(lua: Lua, place: str) -> None:
    texts = [f"container:{text}" for text, _ in INVALID]
    pairs = [(text, None) if place == "comment" else (None, text) for text in texts]
    wrong = {
        text: message
        for (text, hint), message in zip(INVALID, lua.merge(*pairs), strict=True)
        if hint.lower() not in message.lower()
    }
    assert wrong == {}


def test_messages_are_one_printable_line_and_tell_no_password(lua: Lua) -> None:
    messages = lua.merge(*((f"container:{text}", None) for text, _ in INVALID))
    assert [m for m in messages if not m.isascii() or not m.isprintable() or len(m) > 2500] == []
    assert [m for m in messages if "user:password" in m and "example" in m] == []


def test_bare_file_names_are_no_forgotten_docker_images(lua: Lua) -> None:
    for message in lua.merge(("container:image.sif", None), ("container:dir/image.SIF", None)):
        assert "write the absolute path" in message


def test_a_variable_is_not_replaced_in_a_comment(lua: Lua) -> None:
    [message] = lua.merge(("container:$HOME/image.sif", None))
    assert "a variable is not replaced there" in message


def test_aliases_of_the_site(lua: Lua) -> None:
    path = lua.directory / "hpcimg.lua"
    head = "local ALIASES = {"
    assert head in path.read_text()
    path.write_text(path.read_text().replace(head, head + '"samtools", "bio/*",'))
    comments = ["container:samtools", "container:x=samtools", "container:bio/samtools:1.19"]
    assert lua.merge(*((comment, None) for comment in comments)) == comments
    for text in ("bio", "bio/", "bio/*", "samtools:1", "biology/x"):
        [message] = lua.merge((f"container:{text}", None))
        assert f"did you mean docker://{text}" in message


def test_schemes_of_the_site(lua: Lua) -> None:
    path = lua.directory / "hpcimg.lua"
    [message] = lua.merge(("container:pages://lab/samtools:1", None))
    assert "pages:// is not known" in message
    head = "local STATIC = {"
    assert head in path.read_text()
    path.write_text(path.read_text().replace(head, head + '"pages",'))
    comment = "container:pages://lab/samtools:1"
    assert lua.merge((comment, None)) == [comment]


def test_the_same_lists_as_on_the_node() -> None:
    text = (ETC / "hpcimg.lua").read_text()

    def listed(name: str) -> list[str]:
        [found] = re.findall(rf"^local {name} = {{(.*)}}$", text, re.MULTILINE)
        return re.findall(r'"([^"]*)"', found)

    rows = schemes.SCHEMES.items()
    assert listed("SCHEMES") == [name for name, row in rows if row.slashes]
    assert listed("PATH_SCHEMES") == [name for name, row in rows if not row.slashes]
    assert sorted(listed("REGISTRY_SCHEMES")) == sorted(n for n, row in rows if row.in_registry)
    assert listed("IMAGE_SCHEMES") == list(comments.IMAGE_SCHEMES)
    assert listed("MANAGERS") == list(comments.MANAGERS)
    assert listed("ENDINGS") == list(comments.ENDINGS) == list(reference.ENDINGS)


# Comments


def as_lua_says(comment: str) -> dict[str, Any]:
    """Return what the node's parser makes of a comment, in the form of `Lua.read`."""
    found = comments.read(comment)
    images = [f"{name}={text}" if name else text for name, text in found.images]
    return {
        "images": images,
        "links": found.links,
        "problem": found.problem,
        "missed": found.missed[1],
    }


def test_a_comment_is_for_lua_what_it_is_on_the_node(lua: Lua) -> None:
    cases = [case for case, _ in (*ASKS, *LINKS, *MISSED, *PROBLEMS)] + INNOCENT
    found = lua.read(cases)
    wrong = {}
    for case, said in zip(cases, found, strict=True):
        right = as_lua_says(case)
        for what in ("images", "links"):
            said[what] = list(dict.fromkeys(said[what]))
        if {**said, "problem": bool(said["problem"])} != {
            **right,
            "problem": bool(right["problem"]),
        }:
            wrong[case] = (said, right)
    assert wrong == {}


def test_random_comments_are_for_lua_what_they_are_on_the_node(lua: Lua) -> None:
    choose = random.Random(20)
    words = [
        "container", "Container", "contaner", "image", ":", "=", " ", ";", ",", '"', "'",
        "(", ")", "{", "}", "[", "]", "\\", "docker://ubuntu:22.04", "oras://h/i", "/a.sif", "x",
        "tool=", "ubuntu:22.04", "?", "-", "|", '{"container":', '"a":', '"container": "/b.sif"}',
        "null", "1", "image.sif", "https://h/x", "hpcimg:links=nextflow", "hpcimg:link", "Hpcimg:",
    ]  # fmt: skip
    cases = [
        "".join(choose.choice(words) for _ in range(choose.randint(1, 9))) for _ in range(4000)
    ]
    wrong = {}
    for case, said in zip(cases, lua.read(cases), strict=True):
        right = as_lua_says(case)
        for what in ("images", "links"):
            said[what] = list(dict.fromkeys(said[what]))
        right["problem"] = said["problem"] = bool(said["problem"]) or bool(right["problem"])
        if said != right:
            wrong[case] = (said, right)
    assert wrong == {}


@pytest.mark.parametrize(("comment", "right"), MISSED)
def test_what_is_nearly_ours_is_refused(lua: Lua, comment: str, right: str) -> None:
    [answer] = lua.merge((comment, None))
    assert f"did you mean container:{right}" in answer


@pytest.mark.parametrize(
    ("comment", "references", "merged"),
    [
        (None, "docker://a", "container:docker://a"),
        ("", "docker://a", "container:docker://a"),
        ("two words", "docker://a", "two words container:docker://a"),
        ("two words", "", "two words"),
        ("two words", " ; ", "two words"),
        (None, None, ""),
        ("trailing ", "docker://a", "trailing container:docker://a"),
        ("site=1;user=2", "docker://a", "site=1;user=2;container:docker://a"),
        ("site=1;", "/a x=/b", "site=1;container:/a;container:x=/b"),
        ("site=1; words", "/a", "site=1; words container:/a"),
        (None, "/a /b;x=/c\n\t/d", "container:/a container:/b container:x=/c container:/d"),
        (None, "container:/a", "container:/a"),
        # already asked for: srun in a job, sbatch in a job, both plugins
        ("container:/a", "/a", "container:/a"),
        ("w;container:x=/a;w", "x=/a /b", "w;container:x=/a;w;container:/b"),
        (None, "/a /a", "container:/a"),
        ("container:/a container:/a", None, "container:/a container:/a"),
        # no business of ours
        ("  odd   spacing\x0b;;", None, "  odd   spacing\x0b;;"),
        ("acontainer:x containers: x:container:x", None, None),
        # an object of JSON stays one
        ('{"wpps":1}', "/a x=/b", '{"wpps":1,"container":["/a","x=/b"]}'),
        (" { } ", "/a", ' { "container":"/a"} '),
        ('{"container":"/a", "b":[1]}', "/a", None),
        ('{"container":"/a", "b":[1]}', "/b", '{"container":["/a","/b"], "b":[1]}'),
        ('{"container": {"x":"/a"}}', "/b", '{"container": ["x=/a","/b"]}'),
        ('{"container":null}', "/b", '{"container":"/b"}'),
        ('{"container":[]}', "/b", '{"container":"/b"}'),
        ('{"broken":1', "/b", '{"broken":1 container:/b'),
        # spelled otherwise, and in the environment
        ("Container:/a", "/a", None),
        (None, '"container:/a" Container=/b', "container:/a container:/b"),
        ("ctrl\x01\x1b[2J ünïcode $HOME `id`", "/a", "{} container:/a"),
    ],
)
def test_merge(lua: Lua, comment: str | None, references: str | None, merged: str | None) -> None:
    expected = comment if merged is None else merged.replace("{}", comment or "")
    assert lua.merge((comment, references)) == [expected]


@pytest.mark.parametrize(
    ("comment", "references", "message"),
    [
        ("container: samtools", None, "write container:URI without a space"),
        ("Container:ubuntu:22.04", None, "did you mean docker://ubuntu:22.04"),
        ('{"container":1}', "/a", "in the job's comment: the value of container"),
        ('{"container":["/a","ubuntu"]}', None, "did you mean docker://ubuntu"),
        ("words container:ubuntu:22.04", None, "did you mean docker://ubuntu:22.04"),
        ("x;container:ubuntu;y", None, "did you mean docker://ubuntu"),
        ("container:x=/a container:x=/b", None, "two images have the name 'x'"),
        ("container:x=/a", "x=/b", "two images have the name 'x'"),
        (None, "/a ubuntu", "in HPCIMG_CONTAINER: 'ubuntu' is not a reference"),
        ("container:ubuntu", "/a", "in the job's comment: 'ubuntu' is not a reference"),
        ("w" * 1000, "docker://ubuntu", "1026 characters, and 1024 is Slurm's limit"),
        (" ".join(f"container:/{n}" for n in range(33)), None, "more than 32 images"),
        (" ".join(f"container:/{n}" for n in range(32)), "/32", "more than 32 images"),
    ],
)
def test_refused(lua: Lua, comment: str | None, references: str | None, message: str) -> None:
    [answer] = lua.merge((comment, references))
    assert message in answer


def test_thirty_two_images_are_not_too_many(lua: Lua) -> None:
    comment = " ".join(f"container:/{n}" for n in range(32))
    assert lua.merge((comment, "/0 /31")) == [comment]


def test_a_comment_of_the_greatest_length_passes(lua: Lua) -> None:
    words = "w" * 998
    assert lua.merge((words, "docker://ubuntu")) == [f"{words} container:docker://ubuntu"]


@pytest.mark.parametrize(
    "piece",
    [
        ";",
        " ",
        ";a",
        "container:",
        "container:;",
        "container:/a ",
        "a=",
        "/",
        "@:",
        "\x01",
        '"',
        "'(",
        'container"',
        ",container:",
        '{"container":',
        "[",
        "docker://",
        "%25",
        "a.",
    ],
)
def test_long_hostile_comments_take_no_time(lua: Lua, piece: str) -> None:
    """slurmctld answers nobody while a comment is being read: 10 s here are for slow hosts."""
    long = piece * (65536 // len(piece))
    pairs = [(long, None), (long + " x", "/a"), (None, long), ("container:" + long, "x=" + long)]
    assert len(lua.merge(*pairs)) == 4


# The plugins


def test_cli_filter_adds_the_environment_to_the_comment(lua: Lua) -> None:
    status = lua.cli("x=docker://a", type="sbatch", comment="words")
    assert status == (0, "words container:x=docker://a", "")
    assert lua.cli("/a", type="salloc") == (0, "container:/a", "")
    assert lua.cli("/a", type="srun", jobid="unset") == (0, "container:/a", "")


def test_cli_filter_adds_what_pyxis_reads_from_the_environment(lua: Lua) -> None:
    word = "container:PYXIS_CONTAINER_IMAGE=docker://registry.example.org#lab/x:1"
    image = "registry.example.org#lab/x:1"
    assert lua.cli(pyxis=image, type="sbatch") == (0, word, "")
    assert lua.cli("/a", pyxis=f"docker://{image}", type="srun", comment="w", option="unset") == (
        0, f"w container:/a {word}", "",
    )  # fmt: skip
    assert lua.cli(pyxis=image, type="sbatch", comment=word) == (0, word, "")
    assert lua.cli(pyxis=image, type="sbatch", comment='{"a":1}')[1] == (
        '{"a":1,"container":"' + word.removeprefix("container:") + '"}'
    )
    # The option comes first, enroot opens files by itself, and says what is wrong with the rest.
    assert lua.cli(pyxis=image, type="sbatch", comment="w", option="ubuntu") == (0, "w", "")
    for other in ("", "/x.sqsh", "./x.sqsh", "dockerd://x", "Ubuntu", "a b"):
        assert lua.cli(pyxis=other, type="sbatch", comment="w") == (0, "w", "")


def test_cli_filter_refuses(lua: Lua) -> None:
    status, comment, said = lua.cli("ubuntu:22.04", type="sbatch", comment="words")
    assert (status, comment) == (-1, "words")
    assert "did you mean docker://ubuntu:22.04" in said
    status, _, said = lua.cli(type="sbatch", comment="100%d container:~/x.sif")
    assert status == -1
    assert "write the absolute path" in said


def test_cli_filter_leaves_steps_of_a_job_alone(lua: Lua) -> None:
    assert lua.cli("ubuntu", type="srun", jobid="17") == (0, "nil", "")


def test_job_submit_adds_the_environment_to_the_comment(lua: Lua) -> None:
    status = lua.job("x=docker://a", comment="words")
    assert status == (0, "words container:x=docker://a", "")
    assert lua.job("/a", comment="container:/a") == (0, "container:/a", "")
    assert lua.job(batch=False, comment="container:/a") == (0, "container:/a", "")
    assert lua.job() == (0, "nil", "")


def test_job_submit_refuses(lua: Lua) -> None:
    status, comment, said = lua.job("ubuntu:22.04", comment="words")
    assert (status, comment) == (-1, "words")
    assert "did you mean docker://ubuntu:22.04" in said


def test_job_modify_checks_a_new_comment_and_adds_nothing(lua: Lua) -> None:
    assert lua.job("/a", comment="words", hook="modify") == (0, "words", "")
    assert lua.job("/a", hook="modify") == (0, "nil", "")
    status, _, said = lua.job(comment="container:ubuntu", hook="modify")
    assert status == -1
    assert "did you mean docker://ubuntu" in said


@pytest.mark.parametrize("content", [None, "", "syntax error", "error('x')", "return {}"])
def test_without_the_grammar_jobs_go_on(lua: Lua, content: str | None) -> None:
    path = lua.directory / "hpcimg.lua"
    path.unlink()
    if content is not None:
        path.write_text(content)
    for status, comment, said in (
        lua.cli("/a", type="sbatch", comment="w"),
        lua.job("/a", comment="w"),
        lua.job(comment="container:/a", hook="modify"),
    ):
        assert status == 0
        assert comment in ("w", "container:/a")
        assert said.startswith("hpcimg: ")
        assert "the job goes on" in said
    # Jobs without images do not even see a message.
    assert lua.cli(type="sbatch", comment="w") == (0, "w", "")
    assert lua.job(comment="w") == (0, "w", "")


def test_all_functions_that_slurm_asks_for(lua: Lua) -> None:
    code = lua.load("cli_filter.lua") + lua.load("job_submit.lua")
    code += "answer(slurm_cli_setup_defaults({}, true)) answer(slurm_cli_post_submit(0, 1, 2))"
    assert lua.run(code) == ["0", "0"]


# What a site can switch on in job_submit.lua

URI = "docker://registry.example.org/lab/x:1"


def submitted(lua: Lua, *switches: str, comment: str, **fields: str) -> tuple[str, str]:
    """Submit a batch job of an ordinary user; return its burst buffer and its preference."""
    path = lua.directory / "job_submit.lua"
    for switch in switches:
        assert f"local {switch} = false" in path.read_text()
        path.write_text(path.read_text().replace(f"{switch} = false", f"{switch} = true"))
    job = {"comment": quoted(comment), "script": "''", "user_id": "1000", "environment": "{}"}
    job.update(fields)
    code = lua.load("job_submit.lua")
    code += f"local job = {{ {', '.join(f'{name} = {value}' for name, value in job.items())} }}\n"
    code += f"assert({JOB_HOOKS['submit']} == 0)"
    burst_buffer, prefer = lua.run(code + "answer(job.burst_buffer) answer(job.prefer)")
    return burst_buffer, prefer


def test_nothing_is_switched_on(lua: Lua) -> None:
    assert submitted(lua, comment=f"container:{URI}") == ("nil", "nil")


@pytest.mark.parametrize(
    ("comment", "fields", "expected"),
    [
        (f"container:{URI}", {}, f"#BB_LUA container:{URI}"),
        (f"container:/x.sif container:b={URI}", {}, f"#BB_LUA container:{URI}"),
        ("container:/x.sif container:oci:/y:1 container:file:///z.sif", {}, "nil"),
        (f"container:{URI}", {"user_id": "0"}, "nil"),
        (f"container:{URI}", {"script": "nil"}, "nil"),
        (f"container:{URI}", {"burst_buffer": "'#DW jobdw'"}, "#DW jobdw"),
        ("nothing of ours", {}, "nil"),
    ],
)
def test_what_is_brought_early(
    lua: Lua, comment: str, fields: dict[str, str], expected: str
) -> None:
    assert submitted(lua, "STAGE_IN", comment=comment, **fields) == (expected, "nil")


def test_what_is_preferred(lua: Lua) -> None:
    comment = f"container:a={URI} container:/y.sif"
    assert submitted(lua, "PREFER", comment=comment) == ("nil", features.name_of(URI))


@pytest.mark.parametrize("name", ["features", "prefer"])
def test_what_the_user_wants_goes_first(lua: Lua, name: str) -> None:
    fields = {name: "'gpu'"}
    _, prefer = submitted(lua, "PREFER", comment=f"container:{URI}", **fields)
    assert prefer == ("gpu" if name == "prefer" else "nil")
