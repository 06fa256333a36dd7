"""Which names of an image are taken: layers are laid from the highest to the lowest.

OCI image specification, layer.md: the first to name a path wins; what a higher
layer whited out, made opaque or made something else than a directory hides all
that is below it in lower layers, never in the same one. That holds as long as no
layer names a path through a symbolic link, or one path twice: then NeedsReplay is
raised.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcimg.convert.writer import Budget

# A state is four times the layer that spoke last, and one of these.
_OTHER, _DIRECTORY, _OPAQUE, _GONE = range(4)


class NeedsReplay(Exception):
    """What a name means depends on what is read later: see `hpcimg.convert.replay`."""


class Tree:
    """The names so far. `layer` is the number of the one that is laid, ever smaller."""

    def __init__(self, layer: int, uri: str) -> None:
        self._layer = layer
        self._states: dict[bytes, int] = {b"": layer << 2 | _DIRECTORY}
        # Directories that nothing but a long path tells of count too.
        self._budget = Budget(uri)
        # Whether the layer that is laid may add to a directory, and the last answer.
        self._open: dict[bytes, bool] = {}
        self._last, self._last_open = b"", True
        # Directories in whose place the layer that is laid has something else.
        self._closed_here: set[bytes] = set()
        # Directories that nothing lower says anything about: attributes are not taken either.
        self.sealed: set[bytes] = set()
        # Paths that are on the way to others, and that the layer did not say were directories: a
        # lower layer may have a link there.
        self._implied: set[bytes] = set()
        # Of the layer that is laid, counting or not.
        self._directories_here: set[bytes] = set()
        self._links_here: set[bytes] = set()
        self._implied_here: set[bytes] = set()

    def begin(self, layer: int) -> None:
        """Go on with a lower layer."""
        self._layer = layer
        self._open = {}
        self._last, self._last_open = b"", self._states[b""] & 3 == _DIRECTORY
        self._closed_here = set()
        self._directories_here = set()
        self._links_here = set()
        self._implied_here = set()

    def take(self, name: bytes) -> bool:
        """Tell whether this is the first to name what is no directory. Raises NeedsReplay."""
        if not self._enter(name[: max(0, name.rfind(b"/"))]):
            return False
        state = self._states.get(name)
        if state is None:
            self._set(name, _OTHER)
            return True
        if state & 3 != _GONE and state >> 2 == self._layer:
            raise NeedsReplay
        if state & 3 in (_DIRECTORY, _OPAQUE):
            # A higher layer has a directory in its place, which hides this and all below it.
            self._close(name)
            self._closed_here.add(name)
        return False

    def take_directory(self, name: bytes) -> bool:
        """Tell whether a directory, and what this layer has in it, counts. Raises NeedsReplay."""
        opened = self._enter(name[: max(0, name.rfind(b"/"))])
        if name in self._links_here:
            raise NeedsReplay
        self._directories_here.add(name)
        if not opened:
            return False
        state = self._states.get(name)
        if state is None:
            self._set(name, _DIRECTORY)
            return True
        self._check_repeated(name, state)
        if state & 3 not in (_DIRECTORY, _OPAQUE):
            return False
        self._states[name] = self._layer << 2 | state & 3
        return name not in self.sealed

    def note_link(self, name: bytes) -> None:
        """Take note of a symbolic link. Raises NeedsReplay where a path leads through it."""
        if name in self._implied or name in self._directories_here:
            raise NeedsReplay
        self._links_here.add(name)

    def is_link(self, name: bytes) -> bool:
        """Tell whether the layer that is laid has a symbolic link there."""
        return name in self._links_here

    def imply(self, name: bytes) -> None:
        """Take note that a path is on the way to others."""
        self._implied.add(name)

    def taken_here(self, name: bytes) -> bool:
        """Tell whether the layer that is laid put something other than a directory there."""
        return self._states.get(name) == self._layer << 2 | _OTHER

    def pass_to(self, name: bytes) -> None:
        """Take note of the way to a path that is not taken. Raises NeedsReplay."""
        while (slash := name.rfind(b"/")) > 0:
            name = name[:slash]
            self._pass_through(name)

    def white_out(self, name: bytes) -> None:
        """Hide a path from lower layers, but for what this one has in it."""
        state = self._states.get(name)
        if state is None:
            self._set(name, _GONE)
        elif state & 3 in (_DIRECTORY, _OPAQUE):
            self._close(name)

    def make_opaque(self, name: bytes) -> None:
        """Hide what lower layers have in a directory. Raises NeedsReplay if it may not be one."""
        if name and name not in self._directories_here:
            raise NeedsReplay
        if self._enter(name) and self._states[name] & 3 == _DIRECTORY:
            self._states[name] = self._layer << 2 | _OPAQUE

    def check_implied(self, gone: set[bytes], opaque: set[bytes]) -> None:
        """Raise NeedsReplay where the layer hides a directory, and has something in it.

        If it does not say that there is that directory, it may be the lower layer's, or a new one:
        that depends on what comes first.
        """
        for path in self._implied_here:
            above = path
            while above:
                if above in gone or (above in opaque and above != path):
                    raise NeedsReplay
                above = above[: max(0, above.rfind(b"/"))]
            if b"" in opaque:
                raise NeedsReplay

    def add_missing(self, name: bytes, *, directory: bool) -> bool:
        """Add a path at the end where nothing is, whited out or not, and tell whether it was."""
        parts = name.split(b"/")
        above = [b"/".join(parts[:end]) for end in range(1, len(parts))]
        if any(self._states.get(path, _GONE) & 3 == _OTHER for path in above):
            return False
        if self._states.get(name, _GONE) & 3 != _GONE:
            return False
        for path in above:
            if self._states.get(path, _GONE) & 3 == _GONE:
                self._set(path, _DIRECTORY)
        self._set(name, _DIRECTORY if directory else _OTHER)
        return True

    def directories(self) -> Iterator[bytes]:
        """Yield all directories, those that only something in them tells of, too."""
        return (path for path, state in self._states.items() if state & 3 in (1, 2) and path)

    def _close(self, name: bytes) -> None:
        self._states[name] = self._states[name] >> 2 << 2 | _OPAQUE
        self.sealed.add(name)

    def _set(self, name: bytes, kind: int) -> None:
        self._states[name] = self._layer << 2 | kind
        self._budget.spend(len(name))

    def _enter(self, directory: bytes) -> bool:
        """Tell whether this layer may add to a directory; if so, there is that directory."""
        if directory == self._last:
            return self._last_open
        path, unknown = directory, []
        while (opened := self._open.get(path)) is None and path:
            unknown.append(path)
            path = path[: max(0, path.rfind(b"/"))]
        if opened is None:
            opened = self._open[b""] = self._states[b""] & 3 == _DIRECTORY
        for path in reversed(unknown):
            self._pass_through(path)
            if opened:
                opened = self._enter_one(path)
            self._open[path] = opened
        self._last, self._last_open = directory, opened
        return opened

    def _pass_through(self, path: bytes) -> None:
        """Take note of a directory on the way to something, whether that counts or not."""
        if path in self._links_here:
            raise NeedsReplay
        if path not in self._directories_here:
            self._implied.add(path)
            self._implied_here.add(path)

    def _enter_one(self, path: bytes) -> bool:
        state = self._states.get(path)
        if state is None:
            self._set(path, _DIRECTORY)
            return True
        self._check_repeated(path, state)
        if state & 3 == _DIRECTORY:
            self._states[path] = self._layer << 2 | _DIRECTORY
            return True
        return False

    def _check_repeated(self, name: bytes, state: int) -> None:
        if state == self._layer << 2 | _OTHER or name in self._closed_here:
            raise NeedsReplay
