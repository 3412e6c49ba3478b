"""Running one call in its slot: arguments in, chunks out, an outcome at the end."""
from __future__ import annotations

from . import _compat, _jsonio
from ._convert import ConvertError, to_json
from ._errors import Cancelled, describe, is_cancel, message_of
from ._plugin import called_wrongly
from ._protocol import E_CANCELLED, E_INVALID_PARAMS, E_PLUGIN
from ._slots import DOORS, RUNTIME_DIR, gateway

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Tuple

    from ._calls import Call
    from ._plugin import Plugin
    from ._slots import Slot


class BadArguments(ValueError):
    """The payload of execute is not what the protocol says."""

    category = "user_input"


class Outcome:
    """How a call ended: a JSON result, or an error record."""

    __slots__ = ("payload", "code", "message", "data", "error")

    def __init__(
        self,
        payload: bytes = b"",
        code: int = 0,
        message: str = "",
        data: "Optional[dict]" = None,
        error: "Optional[BaseException]" = None,
    ) -> None:
        self.payload = payload
        self.code = code
        self.message = message
        self.data = data
        self.error = error  # what the plugin raised


def arguments(payload: bytes) -> "Tuple[list, dict]":
    if not payload:
        return [], {}
    try:
        body = _jsonio.loads(payload)
    except ValueError as exc:
        raise BadArguments("the arguments are no JSON: %s" % exc) from None
    if not isinstance(body, dict):
        raise BadArguments("the arguments are no JSON object")
    args = body.get("args")
    kwargs = body.get("kwargs")
    if args is None:
        args = []
    if kwargs is None:
        kwargs = {}
    if not isinstance(args, list):
        raise BadArguments("args is no JSON array")
    if not isinstance(kwargs, dict):
        raise BadArguments("kwargs is no JSON object")
    return args, kwargs


def run(call: "Call", slot: "Slot", plugin: "Plugin", emit: "Callable[[Call, bytes], None]") -> Outcome:
    """Run the plugin for ``call`` on this thread. Never raises: whatever user code
    does becomes an outcome. ``emit`` sends one chunk."""
    try:
        args, kwargs = arguments(call.payload)
    except BadArguments as exc:
        return Outcome(code=E_INVALID_PARAMS, message=str(exc), data=describe(exc, RUNTIME_DIR))
    call.payload = b""  # may be large; the plugin has its own objects now
    error: "Optional[BaseException]" = None
    outcome = None
    try:
        # This order loses no cancel: whoever cancels sets the flag first and looks for
        # the slot then, so one of the two sees the other.
        plugin.reset()
        slot.call = call
        call.slot = slot
        if call.cancelled:
            raise Cancelled("cancelled before it started")
        outcome = Outcome(_run_user(call, slot, plugin, args, kwargs, emit))
    except BaseException as exc:
        error = exc
    slot.leave()
    return outcome if error is None and outcome is not None else failure(call, error)


def failure(call: "Call", error: "Optional[BaseException]") -> Outcome:
    """The error answer for what a call raised."""
    if error is None:
        error = Cancelled("the job was cancelled")
    data = describe(error, RUNTIME_DIR)
    message = message_of(error)
    if called_wrongly(error, RUNTIME_DIR):
        data["category"] = "user_input"
    if call.cancelled or (is_cancel(error) and not isinstance(error, KeyboardInterrupt)):
        data["category"] = "cancelled"
        data["retriable"] = False
        return Outcome(code=E_CANCELLED, message=message, data=data, error=error)
    return Outcome(code=E_PLUGIN, message=message, data=data, error=error)


def _run_user(
    call: "Call", slot: "Slot", plugin: "Plugin", args: list, kwargs: dict, emit: "Callable[[Call, bytes], None]"
) -> bytes:
    if (call.task or call.method) and args:
        raise BadArguments("a task or method takes kwargs only")
    method = plugin.entry(call.stream, call.task, call.method)
    begun = _compat.begin(call)
    try:
        if not (call.stream or call.task or call.method or plugin.has("execute")):
            return _collect(call, slot, method, args, kwargs)
        value = gateway(method, args, kwargs)
        if hasattr(value, "__await__"):
            value = run_async(slot, value, call)
        return _stream(call, slot, value, emit) if call.stream else _result(call, value)
    finally:
        _compat.end(begun)


def _result(call: "Call", value: "Any") -> bytes:
    return to_json(_compat.encode(value), "result", call.dir)


def _stream(call: "Call", slot: "Slot", value: "Any", emit: "Callable[[Call, bytes], None]") -> bytes:
    """Send what ``value`` yields; the result is what the generator returns, or the count."""
    sink = _Sink(call, emit)
    if hasattr(value, "__aiter__"):
        last = run_async(slot, _pump(value, sink), call)
    elif hasattr(value, "__next__"):
        last = _pull(value, sink)
    else:
        sink.take(value)
        return _result(call, value)
    return _result(call, last if last is not None else {"chunks": sink.count})


class _Sink:
    """Numbers and sends the chunks of one call."""

    __slots__ = ("call", "emit", "count")

    def __init__(self, call: "Call", emit: "Callable[[Call, bytes], None]") -> None:
        self.call = call
        self.emit = emit
        self.count = 0

    def take(self, value: "Any") -> bool:
        """Send one chunk. False: the call is cancelled, this was the last one."""
        try:
            payload = to_json(_compat.encode(value), "chunk", self.call.dir)
        except ConvertError as exc:
            raise ConvertError("chunk %d: %s" % (self.count + 1, exc)) from None
        self.emit(self.call, payload)
        self.count += 1
        return not self.call.cancelled


def _pull(iterator: "Any", sink: _Sink) -> "Any":
    """Drive a generator. Its next yield after a cancel is a place to stop."""
    step = iterator.__next__
    try:
        while True:
            try:
                value = gateway(step, (), {})
            except StopIteration as stop:
                return stop.value
            if not sink.take(value):
                return None
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            gateway(close, (), {})


async def _pump(iterator: "Any", sink: _Sink) -> None:
    try:
        async for value in iterator:
            if not sink.take(value):
                return
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _collect(call: "Call", slot: "Slot", method: "Callable", args: list, kwargs: dict) -> bytes:
    """A class that only streams, asked for one result: its return value, else its chunks."""
    chunks: list = []

    def keep(_: "Call", payload: bytes) -> None:
        chunks.append(_jsonio.loads(payload))

    value = gateway(method, args, kwargs)
    sink = _Sink(call, keep)
    last = run_async(slot, _pump(value, sink), call) if hasattr(value, "__aiter__") else _pull(iter(value), sink)
    return _result(call, last if last is not None else chunks)


def run_async(slot: "Slot", awaitable: "Any", call: "Optional[Call]" = None) -> "Any":
    """Await on this slot's own loop, which lives as long as the slot: objects that a
    plugin bound to it in one call still work in the next."""
    import asyncio

    loop = slot.loop
    if loop is None:
        loop = slot.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    task = loop.create_task(_await(awaitable))
    if call is not None:
        call.running = task
        if call.cancelled:
            task.cancel()
    try:
        return gateway(loop.run_until_complete, (task,), {})
    except BaseException:
        if not task.done():  # interrupted from outside: let its finally blocks run
            task.cancel()
            try:
                gateway(loop.run_until_complete, (task,), {})
            except BaseException:
                pass
        raise
    finally:
        if call is not None:
            call.running = None


async def _await(awaitable: "Any") -> "Any":
    return await awaitable


# Coroutines of ours lie between the gateway and the user's; an interrupt may pass them.
DOORS.update((_await.__code__, _pump.__code__))
