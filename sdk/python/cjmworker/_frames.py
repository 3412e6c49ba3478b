"""The frame codec: bytes in, frames out; frames in, bytes out. No I/O.

A frame is two big-endian 32-bit lengths, a JSON header and an opaque payload
(docs/worker-protocol.md). There is no resynchronising after an error: a decoder
that has raised stays broken.
"""
from __future__ import annotations

from . import _jsonio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional, Tuple

    Frame = Tuple[dict, bytes]

MAX_HEADER = 64 * 1024
MAX_PAYLOAD = 256 * 1024 * 1024
MAX_DEPTH = 128
PREFIX = 8
# Below this the parts of a frame are joined: one copy is cheaper than a second vector.
JOIN_BELOW = 128 * 1024


class FrameError(ValueError):
    """The bytes are no valid frames. ``rule`` names what was broken, in the words that
    both languages share (docs/worker-protocol.md); the text says what was seen."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__("%s (%s)" % (detail, rule))
        self.rule = rule
        self.detail = detail


class FrameDecoder:
    """Turns a byte stream into frames. Not safe for use by two threads at once."""

    def __init__(self, max_header: int = MAX_HEADER, max_payload: int = MAX_PAYLOAD) -> None:
        self.max_header = max_header
        self.max_payload = max_payload
        self._parts: "List[bytes]" = []
        self._have = 0
        self._need = PREFIX
        self.error: "Optional[FrameError]" = None  # set once, then nothing more is decoded

    @property
    def buffered(self) -> int:
        """Bytes of an unfinished frame that are waiting; 0 at a frame boundary."""
        return self._have

    @property
    def missing(self) -> int:
        """How many more bytes the next step needs at least: a hint for the read size."""
        return self._need - self._have

    def feed(self, data: bytes) -> "List[Frame]":
        """Take bytes, give the frames they complete. Frames before a broken one are
        given, then ``error`` is set; the next call raises it."""
        if self.error is not None:
            raise self.error
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
            self._parts = []
        frames: "List[Frame]" = []
        try:
            self._cut(data, frames)
        except FrameError as exc:
            self.error = exc
        return frames

    def end(self) -> None:
        """End of file. Raises FrameError when it cuts a frame in two."""
        if self.error is not None:
            raise self.error
        if self._have:
            self.error = FrameError("truncated", "end of file inside a frame, after %d bytes of it" % self._have)
            raise self.error

    def _cut(self, data: bytes, frames: "List[Frame]") -> None:
        at = 0
        size = len(data)
        while size - at >= PREFIX:
            head = int.from_bytes(data[at : at + 4], "big")
            body = int.from_bytes(data[at + 4 : at + 8], "big")
            if not 0 < head <= self.max_header or body > self.max_payload:
                raise self._length_error(head, body)
            end = at + PREFIX + head + body
            if end > size:
                # A header that is complete is checked only with its payload: the
                # order of frames and errors is then the same however bytes are cut.
                self._keep(data, at, end - at)
                return
            start = at + PREFIX
            frames.append((parse_header(data[start : start + head]), data[start + head : end]))
            at = end
        self._keep(data, at, PREFIX)

    def _length_error(self, head: int, body: int) -> FrameError:
        if not head:
            return FrameError("empty_header", "a frame with an empty header")
        if head > self.max_header:
            return FrameError("header_too_long", "header of %d bytes is over the limit of %d" % (head, self.max_header))
        return FrameError("payload_too_long", "payload of %d bytes is over the limit of %d" % (body, self.max_payload))

    def _keep(self, data: bytes, at: int, need: int) -> None:
        self._have = len(data) - at
        self._need = need
        if self._have:
            self._parts = [data[at:] if at else data]


def parse_header(data: bytes) -> dict:
    """A header's object, checked for the shape of JSON-RPC 2.0. Raises FrameError."""
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as exc:
        raise FrameError("header_not_utf8", "header is not UTF-8 at byte %d" % exc.start) from None
    try:
        header = _jsonio.decode_text(text)
    except RecursionError:
        raise FrameError("header_too_deep", "header is nested deeper than %d levels" % MAX_DEPTH) from None
    except ValueError as exc:
        raise FrameError("header_not_json", "header is no JSON: %s: %.80r" % (exc, text)) from None
    if type(header) is not dict:
        raise FrameError("header_not_json", "header is no JSON object: %.80r" % text)
    # No text with so few brackets can be deeper; only the others are walked.
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(header) > MAX_DEPTH:
        raise FrameError("header_too_deep", "header is nested deeper than %d levels" % MAX_DEPTH)
    if header.get("jsonrpc") != "2.0":
        raise FrameError("bad_jsonrpc", '"jsonrpc" is %.80r, not "2.0"' % (header.get("jsonrpc"),))
    _check_shape(header)
    return header


def _check_shape(header: dict) -> None:
    if "id" in header and type(header["id"]) is not str:
        raise FrameError("bad_id", "id is no string: %.80r" % (header["id"],))
    answers = ("result" in header) + ("error" in header)
    if "method" in header:
        if answers or type(header["method"]) is not str:
            raise FrameError("bad_message", "neither a request nor an answer: %.200r" % (header,))
        if type(header.get("params", _EMPTY)) is not dict:
            raise FrameError("bad_params", "params of %.80s are no object" % header["method"])
        return
    if answers != 1:
        raise FrameError("bad_message", "neither a request nor an answer: %.200r" % (header,))
    if "id" not in header:
        raise FrameError("bad_id", "an answer without id: %.200r" % (header,))
    if type(header.get("result", _EMPTY)) is not dict or type(header.get("error", _EMPTY)) is not dict:
        raise FrameError("bad_params", "the answer's result or error is no object: %.200r" % (header,))


_EMPTY: dict = {}


def _depth(value: "Any") -> int:
    depth = 0
    level = [value]
    while level:
        level = [item for item in level if isinstance(item, (dict, list))]
        if level:
            depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


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
