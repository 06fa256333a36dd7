"""The documentation as tests see it: fenced blocks, tables, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
# A test's own web server and registry stand in for these.
EXAMPLE_WEB = "https://images.example.org"
EXAMPLE_REGISTRY = "registry.example.org"

_BLOCK = re.compile(r"^```([\w.]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block. `language` is the word after the backticks; see CONTRIBUTING.md."""

    page: Path
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A command in a console block, and its output as shown, "" for none."""

    text: str
    output: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in order, of some languages or of all."""
    text = page.read_text()
    found = [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> list[Command]:
    """Return the lines that begin with `$ ` or `# `, each with what follows it."""
    parts = re.split(r"^[$#] ", block.text, flags=re.MULTILINE)
    assert parts[0] == "", f"{block.page}:{block.line} does not begin with a command"
    return [Command(*part.partition("\n")[::2]) for part in parts[1:]]


def comment(script: str) -> str:
    """Return the comment in a batch script's #SBATCH lines."""
    found = re.search(r"^#SBATCH --comment=(.*)$", script, re.MULTILINE)
    return found[1].strip('"') if found else ""


def rows(text: str) -> list[list[str]]:
    """Return the rows of all tables in a text, cell by cell, without their backticks."""
    return [
        [cell.strip().strip("`") for cell in match[1].split("|")] for match in _ROW.finditer(text)
    ]


def section(page: Path, heading: str) -> str:
    """Return the text under a heading, up to the next one of the same or a higher level."""
    text = _BLOCK.sub("", page.read_text())
    found = re.search(
        rf"^(#+) {re.escape(heading)}$\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found, f"{page} has no heading {heading!r}"
    return found[2]


def links(page: Path) -> list[str]:
    """Return the targets of a page's links to other files and headings."""
    text = _BLOCK.sub("", page.read_text())
    return [link for link in _LINK.findall(text) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Return what a link can name after `#`, as GitHub makes it from headings."""
    heads = _HEADING.findall(_BLOCK.sub("", page.read_text()))
    plain = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
    return {head.strip().replace(" ", "-") for head in plain}


def matches(shown: str, real: str) -> bool:
    """Tell whether the output matches what is shown, where `…` stands for any text.

    White space is not compared: the widths of columns follow the values in them.
    """
    words = " ".join(shown.split())
    pattern = ".*".join(re.escape(part) for part in words.split("…"))
    return re.fullmatch(pattern, " ".join(real.split()), re.DOTALL) is not None


def shape(text: str) -> str:
    """Return a text without its numbers, units, bars and blanks, which differ from run to run."""
    text = re.sub(r"\[[#.]+\]", "BAR", text)
    text = re.sub(r"[\d.]*\d( [KMGT]?i?B)?", "N", text)
    return " ".join(text.split())
