"""What a converted image has besides its layers."""

from __future__ import annotations

from typing import NamedTuple

from hpcimg.convert.tar import Member

Entry = tuple[Member, bytes]  # with the content of a file


class Additions(NamedTuple):
    """Files and directories that are added; symbolic links on the way to them are followed.

    `over` take the place of what the layers have, `under` are for where they have
    nothing. `directories` are made where there is nothing, with those above them.
    """

    over: tuple[Entry, ...] = ()
    under: tuple[Entry, ...] = ()
    directories: tuple[bytes, ...] = ()
