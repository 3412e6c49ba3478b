"""The worker's side of the protocol as a state machine without I/O.

Bytes in, events out; calls in, buffers out. ``RECEIVE`` and ``SEND`` are the
transition tables. RemoteProtocolError: the daemon broke the rules.
LocalProtocolError: we were about to. Receiving and sending may happen on
different threads, each by one thread at a time; the server sees to that.
"""
from __future__ import annotations

from ._frames import MAX_HEADER, MAX_PAYLOAD, FrameDecoder, FrameError, encode_frame, encode_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

VERSION = 1

# States of the connection, seen from the worker.
NEW = "new"  # connected; hello has not come
LOADING = "loading"  # hello is being worked on
READY = "ready"  # the ready record is sent; calls may come
CLOSING = "closing"  # shutdown came; running calls end
CLOSED = "closed"  # nothing is sent or taken any more

_ANYTIME = {"ping": None, "cancel": None, "stats": None, "shutdown": CLOSING}
_CONTROL = ("configure", "prefetch", "release", "enable", "disable", "schema", "config", "options", "surface", "system_status", "processes")

# state → request → next state (None: unchanged). What is not listed is refused with an
# error answer and changes nothing.
RECEIVE: "Dict[str, Dict[str, Optional[str]]]" = {
    NEW: {"hello": LOADING},
    LOADING: dict(_ANYTIME),
    READY: dict(_ANYTIME, execute=None, **{name: None for name in _CONTROL}),
    CLOSING: {"ping": None, "cancel": None, "stats": None, "shutdown": None},
    CLOSED: {},
}
# state → what we send → next state.
SEND: "Dict[str, Dict[str, Optional[str]]]" = {
    NEW: {"answer": None, "notification": None},
    LOADING: {"ready": READY, "load_error": CLOSED, "answer": None, "notification": None},
    READY: {"answer": None, "notification": None},
    CLOSING: {"ready": None, "load_error": CLOSED, "answer": None, "notification": None},
    CLOSED: {},
}

E_PLUGIN = -32000
E_NOT_SUPPORTED = -32001
E_CANCELLED = -32002
E_INVALID_REQUEST = -32600
E_UNKNOWN_METHOD = -32601
E_INVALID_PARAMS = -32602


class ProtocolError(Exception):
    """Base of both."""


class RemoteProtocolError(ProtocolError):
    """The daemon broke the protocol: the connection cannot go on. ``rule`` is the name
    that both languages give to what it broke."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule = rule


class LocalProtocolError(ProtocolError):
    """This side was asked to send something it must not. Nothing was sent."""


class Request:
    """One request of the daemon, allowed in the state it came in."""

    __slots__ = ("id", "method", "params", "payload")

    def __init__(self, id: str, method: str, params: dict, payload: bytes) -> None:
        self.id = id
        self.method = method
        self.params = params
        self.payload = payload


class Refused(Request):
    """A request that only gets an error answer; ``code`` and ``reason`` say which."""

    __slots__ = ("code", "reason")

    def __init__(self, request: Request, code: int, reason: str) -> None:
        super().__init__(request.id, request.method, request.params, request.payload)
        self.code = code
        self.reason = reason


class Broken(Request):
    """Not a request: the daemon broke the protocol, nothing more will come."""

    __slots__ = ("error",)

    def __init__(self, error: RemoteProtocolError) -> None:
        super().__init__("", "", {}, b"")
        self.error = error


class WorkerProtocol:
    def __init__(self, max_header: int = MAX_HEADER, max_payload: int = MAX_PAYLOAD) -> None:
        self.state = NEW
        self.concurrency = 1
        self._decoder = FrameDecoder(max_header, max_payload)
        self._open: "Dict[str, str]" = {}  # request id → method, until answered
        self._jobs: "Dict[str, str]" = {}  # execute's request id → job
        self._chunks: "Dict[str, int]" = {}  # job → chunks sent

    @property
    def max_header(self) -> int:
        return self._decoder.max_header

    @property
    def max_payload(self) -> int:
        return self._decoder.max_payload

    @property
    def missing(self) -> int:
        return self._decoder.missing

    # -- receiving ---------------------------------------------------------

    def receive(self, data: bytes) -> "List[Request]":
        """The requests completed by these bytes. Unknown notifications vanish. When the
        bytes are broken, the last event is a Broken."""
        events: "List[Request]" = []
        try:
            for header, payload in self._decoder.feed(data):
                event = self._take(header, payload)
                if event is not None:
                    events.append(event)
            if self._decoder.error is not None:
                raise self._decoder.error
        except FrameError as exc:
            events.append(self._break(RemoteProtocolError(exc.rule, str(exc))))
        except RemoteProtocolError as exc:
            events.append(self._break(exc))
        return events

    def receive_eof(self) -> None:
        """The stream ended. RemoteProtocolError when that cut a frame in two."""
        self.state = CLOSED
        try:
            self._decoder.end()
        except FrameError as exc:
            raise RemoteProtocolError(exc.rule, str(exc)) from None

    def _break(self, error: RemoteProtocolError) -> "Broken":
        self.state = CLOSED
        return Broken(error)

    def _take(self, header: dict, payload: bytes) -> "Optional[Request]":
        number = header.get("id")
        method = header.get("method")
        if method is None:
            raise RemoteProtocolError("unknown_id", "answer to request %.80r, which was not sent" % (number,))
        if number is None:
            return None
        if number in self._open:
            raise RemoteProtocolError("bad_id", "request id %.80r is already in use" % number)
        return self._accept(Request(number, method, header.get("params") or {}, payload))

    def _accept(self, request: Request) -> Request:
        method = request.method
        allowed = RECEIVE[self.state]
        reason = None if method in allowed else self._misplaced(method)
        if reason is None and method == "execute":
            reason = self._open_call(request)
        if reason is not None:
            self._open[request.id] = ""
            return Refused(request, *reason)
        self._open[request.id] = method
        after = allowed[method]
        if after is not None:
            self.state = after
        if method == "hello":
            self._open_connection(request)
        return request

    def _misplaced(self, method: str) -> "Tuple[int, str]":
        if not any(method in allowed for allowed in RECEIVE.values()):
            return E_UNKNOWN_METHOD, "unknown method %.80r" % method
        return E_INVALID_REQUEST, "%s is not possible in state %s" % (method, self.state)

    def _open_connection(self, request: Request) -> None:
        params = request.params
        versions = params.get("protocol")
        if not isinstance(versions, list) or VERSION not in versions:
            text = "the daemon offers the protocol versions %.80r, this worker speaks %d" % (versions, VERSION)
            raise RemoteProtocolError("bad_protocol", text)
        limits = params.get("limits")
        if isinstance(limits, dict):
            self._decoder.max_header = _limit(limits, "max_header", self._decoder.max_header)
            self._decoder.max_payload = _limit(limits, "max_payload", self._decoder.max_payload)
        slots = params.get("concurrency", 1)
        self.concurrency = slots if isinstance(slots, int) and slots > 1 else 1

    def _open_call(self, request: Request) -> "Optional[Tuple[int, str]]":
        job = request.params.get("job")
        if not isinstance(job, str) or not job:
            return E_INVALID_PARAMS, "execute needs a job: a non-empty string"
        if job in self._chunks:
            return E_INVALID_REQUEST, "job %.80r is already executing" % job
        if len(self._jobs) >= self.concurrency:
            return E_INVALID_REQUEST, "%d calls are executing, no more are allowed" % len(self._jobs)
        self._jobs[request.id] = job
        self._chunks[job] = 0
        return None

    # -- sending -----------------------------------------------------------

    def ready(self, id: str, record: dict, payload: bytes) -> "List[bytes]":
        return self._answer("ready", id, {"result": record}, payload)

    def load_error(self, id: str, code: int, message: str, data: "Optional[dict]") -> "List[bytes]":
        return self._answer("load_error", id, {"error": _error(code, message, data)}, b"")

    def answer(self, id: str, result: dict, payload: bytes = b"") -> "List[bytes]":
        return self._answer("answer", id, {"result": result}, payload)

    def error(self, id: str, code: int, message: str, data: "Optional[dict]" = None, payload: bytes = b"") -> "List[bytes]":
        return self._answer("answer", id, {"error": _error(code, message, data)}, payload)

    def chunk(self, job: str, payload: bytes) -> "List[bytes]":
        """One chunk of a call in flight; numbers it."""
        self._may_send("notification")
        sent = self._chunks.get(job)
        if sent is None:
            raise LocalProtocolError("chunk for job %r, which is not executing" % job)
        self._check_payload(payload)
        sent += 1
        self._chunks[job] = sent
        header = {"jsonrpc": "2.0", "method": "chunk", "params": {"job": job, "n": sent}}
        return encode_frame(encode_header(header), payload)

    def chunks_sent(self, job: str) -> int:
        return self._chunks.get(job, 0)

    def notify(self, method: str, params: dict, shorten: str = "") -> "List[bytes]":
        """A notification; the text member ``shorten`` is cut until the header fits."""
        self._may_send("notification")
        header = {"jsonrpc": "2.0", "method": method, "params": params}
        return encode_frame(self._fit(header, params, (shorten,) if shorten else ()))

    def _answer(self, what: str, id: str, body: dict, payload: bytes) -> "List[bytes]":
        after = self._may_send(what)
        method = self._open.get(id)
        if method is None:
            raise LocalProtocolError("answer to request %r, which is not open" % id)
        if (method == "hello") != (what in ("ready", "load_error")):
            raise LocalProtocolError("%s is no answer to %s" % (what, method))
        self._check_payload(payload)
        header = {"jsonrpc": "2.0", "id": id, **body}
        error = body.get("error")
        if error is None:
            data = encode_header(header)
            if len(data) > self.max_header:
                raise LocalProtocolError("result header of %d bytes is over the limit" % len(data))
        else:
            data = self._fit(header, error, ("message", "traceback"))
        del self._open[id]
        job = self._jobs.pop(id, None)
        if job is not None:
            del self._chunks[job]
        if after is not None:
            self.state = after
        return encode_frame(data, payload)

    def _may_send(self, what: str) -> "Optional[str]":
        allowed = SEND[self.state]
        if what not in allowed:
            raise LocalProtocolError("cannot send %s in state %s" % (what, self.state))
        return allowed[what]

    def _check_payload(self, payload: bytes) -> None:
        if len(payload) > self.max_payload:
            raise LocalProtocolError("payload of %d bytes is over the limit of %d" % (len(payload), self.max_payload))

    def _fit(self, header: dict, holder: dict, names: tuple) -> bytes:
        data = encode_header(header)
        while len(data) > self.max_header:
            texts = [(place, name) for place in (holder, holder.get("data") or {}) for name in names if isinstance(place.get(name), str)]
            longest = max(texts, key=lambda at: len(at[0][at[1]]), default=None)
            if longest is None or len(longest[0][longest[1]]) < 32:
                raise LocalProtocolError("header of %d bytes is over the limit" % len(data))
            place, name = longest
            text = place[name]
            place[name] = text[: len(text) // 4] + "…" + text[-(len(text) // 4) :]
            data = encode_header(header)
        return data


def _error(code: int, message: str, data: "Optional[dict]") -> dict:
    body: "Dict[str, Any]" = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return body


def _limit(limits: dict, name: str, default: int) -> int:
    value = limits.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
