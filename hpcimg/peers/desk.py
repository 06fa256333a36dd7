"""The worker's connection to the signing process."""

from __future__ import annotations

import asyncio
import json
import socket

from hpcimg.errors import Unreachable

_LINE_MAX = 1 << 20


class Desk:
    """The worker's end of `hpcimg.peers.credentials.Signer`."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._asking = asyncio.Lock()

    async def open(self) -> None:
        """Connect; call it in the event loop that will be used."""
        self._socket.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(
            sock=self._socket, limit=_LINE_MAX
        )

    async def sign(self, kind: str, to: str, nonce: str, word: str = "") -> str:
        """Return a credential for a node. Raises Unreachable."""
        answer = await self._ask(["sign", kind, to, nonce, word])
        if not answer:
            raise Unreachable("nothing can be signed for another node")
        return answer[0]

    async def read(self, kind: str, credential: str) -> tuple[str, str, str] | None:
        """Return node, nonce and word of a credential that root made for this node.

        None if it is not valid. Raises Unreachable.
        """
        answer = await self._ask(["read", kind, credential])
        return (answer[0], answer[1], answer[2]) if answer else None

    async def _ask(self, request: list[str]) -> list[str] | None:
        async with self._asking:
            self._writer.write(json.dumps(request).encode() + b"\n")
            line = await self._reader.readline()
        if not line:
            raise Unreachable("the signing process has ended")
        answer, problem = json.loads(line)
        if problem:
            raise Unreachable("nothing can be signed for another node", why=problem)
        found: list[str] | None = answer
        return found
