"""bash, zsh and fish complete what the parser knows."""

from __future__ import annotations

import argparse
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from hpcimg.cli import completion
from hpcimg.cli import main as cli
from tests.parts.daemon import wait_until
from tests.parts.node import ROOT

# How an interactive shell without a configuration of its own reads the script.
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "fish": ["fish", "--no-config", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
LOAD = {
    "bash": "source {}",
    "fish": "source {}",
    "zsh": "autoload -U compinit; compinit -u -D; source {}; compdef _hpcimg hpcimg",
}
# What is typed in front of the tab key, and what the command is called with then.
TYPED = {
    "doct": "doctor",
    "gc --dr": "gc --dry-run",
    "completion fi": "completion fish",
    "stage samtools.s": "stage samtools.sif",
    "stage --js": "stage --json",
    "--vers": "--version",
}


def script(shell: str) -> str:
    command = [str(ROOT / "bin/hpcimg"), "completion", shell]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.parametrize("shell", list(START))
def test_the_tab_key(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"not installed here: {shell}")
    file = tmp_path / "script"
    # As it is where the shell looks for it, zsh's is the body of a function.
    file.write_text(script(shell).replace('\n_hpcimg "$@"\n', "\n"))
    (tmp_path / "samtools.sif").touch()
    called = tmp_path / "called"
    command = tmp_path / "hpcimg"
    command.write_text(f'#!/bin/sh\necho "$*" >>{called}\n')
    command.chmod(0o755)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TERM": "xterm", "HOME": str(tmp_path)}
        os.execvpe(shell, START[shell], environment)
    try:
        os.write(terminal, f"{LOAD[shell].format(file)}; hpcimg ready\n".encode())
        expected = ["ready"]
        for typed, wanted in {"": "ready", **TYPED}.items():
            if typed:
                os.write(terminal, f"hpcimg {typed}\t\n".encode())
                expected.append(wanted)
            wait_for_lines(called, len(expected), terminal)
        assert [line.strip() for line in called.read_text().splitlines()] == expected
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def wait_for_lines(file: Path, count: int, terminal: int) -> None:
    os.set_blocking(terminal, False)

    def there() -> bool:
        try:
            while os.read(terminal, 1 << 16):  # or the shell waits for us
                pass
        except BlockingIOError:
            pass
        return file.exists() and len(file.read_text().splitlines()) >= count

    wait_until(there, what=f"call {count} of the command")


@pytest.mark.parametrize("shell", list(START))
def test_every_command_and_option_is_in_the_script(shell: str) -> None:
    text = script(shell)
    _, commands = completion.read(cli._parser())
    assert [command.name for command in commands] == list(cli._COMMANDS)
    for command in commands:
        assert command.name in text
        for argument in command.arguments:
            for name in argument.names:
                assert (f"-l {name[2:]}" if shell == "fish" else name) in text


def test_what_a_text_may_hold() -> None:
    """Quotes, brackets and colons in help texts have no meaning to the shell."""
    parser = argparse.ArgumentParser(prog="hpcimg")
    sub = parser.add_subparsers().add_parser("odd", help="what's `odd`: \\ $HOME [x]")
    sub.add_argument("--odd", help="it's 100%% [odd]: $(false)", metavar="FILE")
    for shell, check in (
        ("bash", ["bash", "-n"]),
        ("zsh", ["zsh", "-n"]),
        ("fish", ["fish", "-n"]),
    ):
        if shutil.which(shell):
            text = completion._WRITERS[shell](*completion.read(parser))
            done = subprocess.run(check, input=text, text=True, capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
