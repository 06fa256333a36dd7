"""Munge's credentials, by its own library: who made one is known by the uid that munged saw."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from hpcimg.errors import MissingTool, Unreachable

_LIBRARY = "libmunge.so.2"
_SOCKET, _UID_RESTRICTION = 8, 9  # munge_ctx_set(3)
_ROOT = 0


class Munge:
    """Makes credentials that only root can read, and reads those that root made."""

    def __init__(self, socket: str) -> None:
        """`socket` is munged's, "" for the usual one. Raises MissingTool."""
        try:
            self._lib = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise MissingTool("munge is not installed on this node", why=str(error)) from None
        self._libc = ctypes.CDLL(None)
        self._lib.munge_ctx_create.restype = ctypes.c_void_p
        self._lib.munge_strerror.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._lib.munge_ctx_create())
        if socket:
            self._check(self._lib.munge_ctx_set(self._context, _SOCKET, os.fsencode(socket)))
        self._check(self._lib.munge_ctx_set(self._context, _UID_RESTRICTION, ctypes.c_uint(_ROOT)))

    def encode(self, payload: bytes) -> str:
        """Return a credential. Raises Unreachable."""
        made = ctypes.c_void_p()
        self._check(
            self._lib.munge_encode(ctypes.byref(made), self._context, payload, len(payload))
        )
        try:
            return ctypes.string_at(made).decode("ascii")
        finally:
            self._libc.free(made)

    def decode(self, credential: str) -> bytes | None:
        """Return what root put into a credential; None where it is none of root's, or not new.

        munged lets a credential be read once.
        """
        payload, length = ctypes.c_void_p(), ctypes.c_int()
        uid, gid = ctypes.c_uint(), ctypes.c_uint()
        code = self._lib.munge_decode(
            credential.encode(),
            self._context,
            *(ctypes.byref(each) for each in (payload, length, uid, gid)),
        )
        try:
            if code or uid.value != _ROOT:
                return None
            return ctypes.string_at(payload, length.value)
        finally:
            self._libc.free(payload)

    def _check(self, code: Any) -> None:
        if code:
            why = self._lib.munge_strerror(code).decode(errors="replace")
            raise Unreachable("munged does not answer", why=why)
