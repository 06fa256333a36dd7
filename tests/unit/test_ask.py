"""The client of the helper: how it handles answers, and their absence."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcimg.errors import NodeError, NotFound, Unreachable
from hpcimg.slurm import ask

Answers = Callable[..., str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock run by seconds, without any pause."""
    clock = itertools.count()
    monkeypatch.setattr(ask.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(ask.time, "sleep", lambda _: None)


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    """Answer one connection after the other, repeating the last answer; return the path."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve(texts: tuple[str, ...]) -> None:
            for text in itertools.chain(texts, itertools.repeat(texts[-1])):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    if text:
                        connection.recv(4096)
                        connection.sendall(text.encode())

        threads = []

        def start(*texts: str) -> str:
            threads.append(threading.Thread(target=serve, args=(texts,)))
            threads[-1].start()
            return path

        yield start
        server.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


def test_an_answer_comes_in_the_end(answers: Answers) -> None:
    path = answers("", '{"busy": true}', "", '{"path": "/x"}')
    assert ask.ask(path, "stage", "docker://x") == {"path": "/x"}


def test_an_error_is_the_helpers(answers: Answers) -> None:
    path = answers('{"error": {"error": "NotFound", "what": "there is nothing at x"}}')
    with pytest.raises(NotFound, match="there is nothing at x"):
        ask.ask(path, "stage", "x")


def test_what_is_not_for_it(answers: Answers) -> None:
    assert ask.ask(answers('{"declined": true}'), "pyxis", "x") is None


def test_without_a_helper(tmp_path: Path) -> None:
    assert ask.ask(str(tmp_path / "none"), "stage", "x") is None
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "gone"))
    assert ask.ask(str(tmp_path / "gone"), "stage", "x") is None


def test_with_one_that_never_says_a_word(answers: Answers) -> None:
    assert ask.ask(answers(""), "stage", "x") is None


def test_with_one_that_is_always_busy(answers: Answers) -> None:
    with pytest.raises(Unreachable, match="too many requests"):
        ask.ask(answers('{"busy": true}'), "stage", "x")


@pytest.mark.parametrize("text", ["hello", "[1]", "{", '{"path": '])
def test_with_one_that_is_not_understood(answers: Answers, text: str) -> None:
    with pytest.raises(NodeError, match="sent an invalid answer"):
        ask.ask(answers(text), "stage", "x")
