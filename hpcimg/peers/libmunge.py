"""Munge credentials through libmunge. munged vouches for the uid of their author."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from hpcimg.errors import MissingTool, Unreachable

_LIBRARY = "libmunge.so.2"
_SOCKET, _UID_RESTRICTION = 8, 9  # munge_ctx_set(3)
_ROOT, _NOBODY = 0, 0xFFFFFFFF


class Munge:
    """Creates credentials that only root can decode, and decodes those that root created."""

    def __init__(self, socket: str) -> None:
        """`socket` is munged's, "" for the default one. Raises MissingTool."""
        try:
            self._lib = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise MissingTool("munge is not installed on this node", why=str(error)) from None
        self._libc = ctypes.CDLL(None)
        self._lib.munge_ctx_create.restype = ctypes.c_void_p
        self._lib.munge_strerror.restype = ctypes.c_char_p
        # Two contexts: decoding sets the options in its context to those of the credential.
        self._to_make, self._to_read = self._context(socket), self._context(socket)
        self._check(self._lib.munge_ctx_set(self._to_make, _UID_RESTRICTION, ctypes.c_uint(_ROOT)))

    def encode(self, payload: bytes) -> str:
        """Return a credential. Raises Unreachable."""
        made = ctypes.c_void_p()
        self._check(
            self._lib.munge_encode(ctypes.byref(made), self._to_make, payload, len(payload))
        )
        try:
            return ctypes.string_at(made).decode("ascii")
        finally:
            self._libc.free(made)

    def decode(self, credential: str) -> bytes | None:
        """Return the payload of a credential, None if it is not root's, or expired or replayed.

        munged decodes each credential only once.
        """
        payload, length = ctypes.c_void_p(), ctypes.c_int()
        uid, gid = ctypes.c_uint(_NOBODY), ctypes.c_uint(_NOBODY)
        code = self._lib.munge_decode(
            credential.encode(),
            self._to_read,
            *(ctypes.byref(each) for each in (payload, length, uid, gid)),
        )
        try:
            if code or uid.value != _ROOT:
                return None
            return ctypes.string_at(payload, length.value)
        finally:
            self._libc.free(payload)

    def _context(self, socket: str) -> ctypes.c_void_p:
        context = ctypes.c_void_p(self._lib.munge_ctx_create())
        if socket:
            self._check(self._lib.munge_ctx_set(context, _SOCKET, os.fsencode(socket)))
        return context

    def _check(self, code: Any) -> None:
        if code:
            why = self._lib.munge_strerror(code).decode(errors="replace")
            raise Unreachable("munged does not answer", why=why)
