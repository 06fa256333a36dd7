"""What a converted image contains in addition to its layers."""

from __future__ import annotations

from typing import NamedTuple

from hpcimg.convert.tar import Member

Entry = tuple[Member, bytes]  # with the content of a file


class Additions(NamedTuple):
    """Files and directories to add; symbolic links on the way to them are followed.

    `over` replaces what the layers have, `under` applies where they have nothing. `directories` are
    created where there is nothing, with their parents.
    """

    over: tuple[Entry, ...] = ()
    under: tuple[Entry, ...] = ()
    directories: tuple[bytes, ...] = ()
