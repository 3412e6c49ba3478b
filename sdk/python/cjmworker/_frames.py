"""The frame codec: bytes in, frames out; frames in, bytes out. No I/O.

A frame is two big-endian 32-bit lengths, a JSON header and an opaque payload
(docs/worker-protocol.md). There is no resynchronising after an error: a decoder
that has raised stays broken.
"""
from __future__ import annotations

from . import _jsonio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Tuple

    Frame = Tuple[dict, bytes]

MAX_HEADER = 64 * 1024
MAX_PAYLOAD = 256 * 1024 * 1024
PREFIX = 8
# Below this the parts of a frame are joined: one copy is cheaper than a second vector.
JOIN_BELOW = 128 * 1024


class FrameError(ValueError):
    """The bytes are no valid frames. The text says what is wrong with them."""


class FrameDecoder:
    """Turns a byte stream into frames. Not safe for use by two threads at once."""

    def __init__(self, max_header: int = MAX_HEADER, max_payload: int = MAX_PAYLOAD) -> None:
        self.max_header = max_header
        self.max_payload = max_payload
        self._parts: "List[bytes]" = []
        self._have = 0
        self._need = PREFIX
        self._broken: "FrameError | None" = None

    @property
    def buffered(self) -> int:
        """Bytes of an unfinished frame that are waiting; 0 at a frame boundary."""
        return self._have

    @property
    def missing(self) -> int:
        """How many more bytes the next step needs at least: a hint for the read size."""
        return self._need - self._have

    def feed(self, data: bytes) -> "List[Frame]":
        """Take bytes, give the frames they complete. Raises FrameError."""
        if self._broken is not None:
            raise self._broken
        try:
            return self._feed(data)
        except FrameError as exc:
            self._broken = exc
            self._parts = []
            raise

    def _feed(self, data: bytes) -> "List[Frame]":
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
            self._parts = []
        frames: "List[Frame]" = []
        at = 0
        size = len(data)
        while size - at >= PREFIX:
            head = int.from_bytes(data[at : at + 4], "big")
            body = int.from_bytes(data[at + 4 : at + 8], "big")
            if head > self.max_header:
                raise FrameError("header of %d bytes is over the limit of %d" % (head, self.max_header))
            if body > self.max_payload:
                raise FrameError("payload of %d bytes is over the limit of %d" % (body, self.max_payload))
            end = at + PREFIX + head + body
            if end > size:
                self._keep(data, at, end - at)
                return frames
            start = at + PREFIX
            frames.append((_header(data[start : start + head]), data[start + head : end]))
            at = end
        self._keep(data, at, PREFIX)
        return frames

    def _keep(self, data: bytes, at: int, need: int) -> None:
        self._have = len(data) - at
        self._need = need
        if self._have:
            self._parts = [data[at:] if at else data]


def _header(data: bytes) -> dict:
    try:
        header = _jsonio.loads(data)
    except ValueError as exc:
        raise FrameError("header is no JSON: %s" % exc) from None
    if not isinstance(header, dict):
        raise FrameError("header is no JSON object")
    if header.get("jsonrpc") != "2.0":
        raise FrameError('header is no JSON-RPC 2.0 object: "jsonrpc" is %r' % (header.get("jsonrpc"),))
    return header


def encode_frame(header: bytes, payload: bytes = b"") -> "List[bytes]":
    """The frame as buffers to write one after the other, without a gap."""
    lead = len(header).to_bytes(4, "big") + len(payload).to_bytes(4, "big") + header
    if not payload:
        return [lead]
    if len(payload) < JOIN_BELOW:
        return [lead + payload]
    return [lead, payload]


def encode_header(value: "Any") -> bytes:
    return _jsonio.dumps(value)
