"""Deciding which names of an image count: layers are applied from highest to lowest.

OCI image specification, layer.md: the first layer with a path wins; what a higher layer whited out,
made opaque or replaced by something else than a directory hides everything below it in lower
layers, never in the same one. That holds as long as no layer has a path through a symbolic link, or
one path twice: then NeedsReplay is raised.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcimg.convert.writer import Budget

# A state is four times the layer that set it last, plus one of these.
_OTHER, _DIRECTORY, _OPAQUE, _GONE = range(4)


class NeedsReplay(Exception):
    """The meaning of a name depends on what is read later: see `hpcimg.convert.replay`."""


class Tree:
    """The names so far. `layer` is the number of the current layer, decreasing."""

    def __init__(self, layer: int, uri: str) -> None:
        self._layer = layer
        self._states: dict[bytes, int] = {b"": layer << 2 | _DIRECTORY}
        # Directories known only from longer paths count too.
        self._budget = Budget(uri)
        # Cache: whether the current layer may add to a directory.
        self._open: dict[bytes, bool] = {}
        self._last, self._last_open = b"", True
        # Directories that the current layer replaces by something else.
        self._closed_here: set[bytes] = set()
        # Directories that are closed to lower layers, including their attributes.
        self.sealed: set[bytes] = set()
        # Paths on the way to others, which the layer did not declare as directories: a lower layer
        # may have a link there.
        self._implied: set[bytes] = set()
        # Names in the current layer, whether or not they count.
        self._directories_here: set[bytes] = set()
        self._links_here: set[bytes] = set()
        self._implied_here: set[bytes] = set()

    def begin(self, layer: int) -> None:
        """Continue with a lower layer."""
        self._layer = layer
        self._open = {}
        self._last, self._last_open = b"", self._states[b""] & 3 == _DIRECTORY
        self._closed_here = set()
        self._directories_here = set()
        self._links_here = set()
        self._implied_here = set()

    def take(self, name: bytes) -> bool:
        """Tell whether this is the first layer with this non-directory. Raises NeedsReplay."""
        if not self._enter(name[: max(0, name.rfind(b"/"))]):
            return False
        state = self._states.get(name)
        if state is None:
            self._set(name, _OTHER)
            return True
        if state & 3 != _GONE and state >> 2 == self._layer:
            raise NeedsReplay
        if state & 3 in (_DIRECTORY, _OPAQUE):
            # A higher layer has a directory there, which hides this and everything below it.
            self._close(name)
            self._closed_here.add(name)
        return False

    def take_directory(self, name: bytes) -> bool:
        """Tell whether a directory, and this layer's content of it, counts. Raises NeedsReplay."""
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
        """Note a symbolic link. Raises NeedsReplay if a path leads through it."""
        if name in self._implied or name in self._directories_here:
            raise NeedsReplay
        self._links_here.add(name)

    def is_link(self, name: bytes) -> bool:
        """Tell whether the current layer has a symbolic link there."""
        return name in self._links_here

    def imply(self, name: bytes) -> None:
        """Note that a path is on the way to others."""
        self._implied.add(name)

    def taken_here(self, name: bytes) -> bool:
        """Tell whether the current layer put something other than a directory there."""
        return self._states.get(name) == self._layer << 2 | _OTHER

    def pass_to(self, name: bytes) -> None:
        """Note the way to a path that does not count. Raises NeedsReplay."""
        while (slash := name.rfind(b"/")) > 0:
            name = name[:slash]
            self._pass_through(name)

    def white_out(self, name: bytes) -> None:
        """Hide a path from lower layers, except for what this layer has in it."""
        state = self._states.get(name)
        if state is None:
            self._set(name, _GONE)
        elif state & 3 in (_DIRECTORY, _OPAQUE):
            self._close(name)

    def make_opaque(self, name: bytes) -> None:
        """Hide a directory's content in lower layers. Raises NeedsReplay if it may not be one."""
        if name and name not in self._directories_here:
            raise NeedsReplay
        if self._enter(name) and self._states[name] & 3 == _DIRECTORY:
            self._states[name] = self._layer << 2 | _OPAQUE

    def check_implied(self, gone: set[bytes], opaque: set[bytes]) -> None:
        """Raise NeedsReplay if the layer hides a directory and has content in it.

        Unless it declares the directory, this may be the lower layer's, or a new one: that depends
        on the order.
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
        """Add a path at the end if nothing is there, whited out or not; tell if it was added."""
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
        """Yield all directories, including those known only from their content."""
        return (path for path, state in self._states.items() if state & 3 in (1, 2) and path)

    def _close(self, name: bytes) -> None:
        self._states[name] = self._states[name] >> 2 << 2 | _OPAQUE
        self.sealed.add(name)

    def _set(self, name: bytes, kind: int) -> None:
        self._states[name] = self._layer << 2 | kind
        self._budget.spend(len(name))

    def _enter(self, directory: bytes) -> bool:
        """Tell whether this layer may add to a directory; if so, the directory exists."""
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
        """Note a directory on the way to something, whether or not that counts."""
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
