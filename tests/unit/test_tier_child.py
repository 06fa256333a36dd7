"""The child process for the site's file system: it answers, or is abandoned."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hpcimg.tier.child import Channel, Child
from hpcimg.tier.places import Trouble
from tests.parts.processes import gone

SOON_S = 0.3


def asked(channel: Channel) -> None:
    while channel.hear(60) is None:
        pass


def answers(channel: Channel) -> None:
    asked(channel)
    channel.say(bytes=1)
    channel.answer({"is": "there"})
    asked(channel)
    channel.fail("it is full")
    asked(channel)


def child(work: object) -> Child:
    return Child(work, uid_gid=None)  # type: ignore[arg-type]


def ask(child: Child, patience_s: float = 30.0, time_s: float = 30.0, **more: object) -> object:
    until = time.monotonic() + time_s
    return child.ask(do="x", patience_s=patience_s, until=until, **more)  # type: ignore[arg-type]


def test_it_answers_one_question_after_the_other() -> None:
    heard: list[object] = []
    one = child(answers)
    assert ask(one, heard=heard.append) == {"is": "there"}
    assert heard == [{"bytes": 1}]
    with pytest.raises(Trouble, match="it is full"):
        ask(one)
    assert not one.gone
    one.end()
    with pytest.raises(Trouble, match="abandoned"):
        ask(one)


def test_who_is_silent_is_given_up() -> None:
    one = child(lambda channel: time.sleep(60))
    with pytest.raises(Trouble, match="did not answer"):
        ask(one, patience_s=SOON_S)
    assert one.gone


def test_who_speaks_and_gets_nowhere_is_given_up() -> None:
    def work(channel: Channel) -> None:
        asked(channel)
        while True:
            channel.say(bytes=0)
            time.sleep(0.01)

    one = child(work)
    with pytest.raises(Trouble, match="too slow"):
        ask(one, time_s=SOON_S)
    assert one.gone


@pytest.mark.parametrize("code", [0, 1])
def test_who_ends_is_no_answer(code: int) -> None:
    with pytest.raises(Trouble, match="has ended"):
        ask(child(lambda channel: os._exit(code)))


def test_what_the_listener_raises_ends_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def work(channel: Channel) -> None:
        pid_file.write_text(str(os.getpid()))
        asked(channel)
        channel.say(bytes=0)
        time.sleep(60)

    def heard(_: object) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        ask(child(work), heard=heard)
    assert gone(int(pid_file.read_text()))


def test_it_has_no_file_of_ours_open(tmp_path: Path) -> None:
    """Otherwise it would hold our locks for as long as it hangs."""

    def work(channel: Channel) -> None:
        asked(channel)
        names = [os.path.basename(path) for path in opened()]
        channel.answer({"found": name in names})

    name = "of-ours"
    with (tmp_path / name).open("w"):
        assert name in map(os.path.basename, opened())
        one = child(work)
        assert ask(one) == {"found": False}
        one.end()


def opened() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the look itself
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found
