"""Control requests: answered on whatever thread reads, or run as a hook of the plugin."""
from __future__ import annotations

import os
from _thread import start_new_thread
from time import time

from . import _execute, _host, _jsonio
from ._convert import to_json
from ._errors import describe, message_of
from ._plugin import HOOKS, NotSupported
from ._protocol import E_NOT_SUPPORTED, E_PLUGIN, Refused, Request
from ._slots import RUNTIME_DIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

    from ._calls import Call
    from ._server import Server

# Hooks that only read: answered beside a running job. The others wait for its end.
_BESIDE = ("schema", "config", "options", "surface", "system_status", "processes")


class Control:
    def __init__(self, server: "Server") -> None:
        self._server = server

    def handle(self, request: Request, busy: bool) -> bool:
        """Answer ``request`` without the main thread. False: it is work for that."""
        method = request.method
        if isinstance(request, Refused):
            refused = request
            self._send(lambda p: p.error(refused.id, refused.code, refused.reason))
        elif method == "ping":
            self._send(lambda p: p.answer(request.id, {}))
        elif method == "stats":
            self._stats(request)
        elif method == "cancel":
            self._cancel(request)
        elif method in _BESIDE and busy:
            start_new_thread(self.run_hook, (request,))
        else:
            return False
        return True

    def _send(self, make: "Callable") -> None:
        protocol = self._server.protocol
        self._server.outbox.send(lambda: make(protocol))

    def _stats(self, request: Request) -> None:
        server = self._server
        figures = _host.figures()
        figures.update(
            calls=server.calls_done,
            active=len(server.calls),
            uptime=time() - server.started_at,
            log_lines_dropped=server.outbox.dropped,
        )
        used = getattr(server.plugin.instance, "_last_api_usage", None) if server.plugin is not None else None
        if isinstance(used, dict):  # what the last call used of a paid service, as the plugin reported it
            figures["api_usage"] = {str(unit): count for unit, count in used.items() if isinstance(count, (int, float))}
        body = _jsonio.dumps(figures)
        server.report_usage(always=True)
        self._send(lambda p: p.answer(request.id, {}, body))

    # -- cancel ----------------------------------------------------------------

    def _cancel(self, request: Request) -> None:
        call = self._server.calls.get(request.params.get("job"))  # type: ignore[arg-type]
        if call is None:
            self._answer_cancel(request, False, "not_supported")
            return
        call.cancelled = True
        self._cancel_task(call)
        if request.params.get("mode") == "interrupt":
            slot = call.slot
            if slot is not None:
                slot.interrupt(call)
            self._answer_cancel(request, True, "not_supported")
            return
        plugin = self._server.plugin
        hook = getattr(plugin.instance, "cancel", None) if plugin is not None else None
        if not callable(hook) or call.hook_called or call.slot is None:
            self._answer_cancel(request, True, "called" if call.hook_called else "not_supported")
            return
        call.hook_called = True
        # On its own thread: a hook that hangs must not keep the interrupt from coming.
        start_new_thread(self._call_cancel, (request, hook))

    def _cancel_task(self, call: "Call") -> None:
        task = call.running
        if task is not None:
            try:
                task.get_loop().call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # the loop ended in this moment, and the task with it

    def _call_cancel(self, request: Request, hook: "Callable") -> None:
        outcome = "called"
        try:
            value = hook()
            if hasattr(value, "__await__"):
                _await_here(value)
        except BaseException as exc:
            outcome = "error"
            self._server._emit("error", "cancel() failed: %s" % message_of(exc), "cjmworker", None)
        self._answer_cancel(request, True, outcome)

    def _answer_cancel(self, request: Request, accepted: bool, hook: str) -> None:
        self._send(lambda p: p.answer(request.id, {"accepted": accepted, "hook": hook}))

    # -- hooks -----------------------------------------------------------------

    def run_hook(self, request: Request) -> None:
        """Run the plugin's hook for a control request and answer. Never raises."""
        try:
            if request.method == "configure":
                result, payload = {"applied": self._configure(request)}, b""
            else:
                result, payload = {}, self._hook(request.method)
        except (NotSupported, NotImplementedError) as exc:
            text = message_of(exc)
            self._send(lambda p: p.error(request.id, E_NOT_SUPPORTED, text, {"category": "fatal", "type": "NotSupported"}))
        except BaseException as exc:
            text, data = message_of(exc), describe(exc, RUNTIME_DIR)
            self._send(lambda p: p.error(request.id, E_PLUGIN, text, data))
        else:
            self._send(lambda p: p.answer(request.id, result, payload))
        if self._server._forked:
            os._exit(0)

    def _hook(self, method: str) -> bytes:
        plugin = self._server.plugin
        if plugin is None:
            raise NotSupported("the plugin is not loaded")
        if method == "surface":
            return to_json(plugin.tasks.surface(), method)
        value = self._settle(plugin.hook(HOOKS[method])())
        return to_json(value, method) if method in _BESIDE else b""

    def _settle(self, value: "Any") -> "Any":
        if not hasattr(value, "__await__"):
            return value
        from _thread import get_ident

        slot = self._server.slot
        return _execute.run_async(slot, value) if get_ident() == slot.ident else _await_here(value)

    def _configure(self, request: Request) -> str:
        body = self.config_of(request.payload)
        old, new = body.get("old") or {}, body.get("new") or {}
        plugin = self._server.plugin
        if plugin is None:
            raise NotSupported("the plugin is not loaded")
        how = "initialized"
        apply = self._initialize
        reconfigure = getattr(plugin.instance, "reconfigure", None)
        if callable(reconfigure):
            how, apply = "reconfigured", reconfigure
        try:
            try:
                self._settle(apply(old, new))
            except NotImplementedError:
                how, apply = "initialized", self._initialize
                self._settle(apply(old, new))
            if apply is reconfigure and self._ignored(old, new):
                how, apply = "initialized", self._initialize
                self._settle(apply(old, new))
        except Exception as exc:
            # A half-applied config must not stay: go back, and say when that fails too.
            try:
                self._settle(apply(new, old))
            except Exception as second:
                raise RuntimeError("%s; and the old config could not be restored: %s" % (message_of(exc), message_of(second))) from exc
            raise
        return how

    def _initialize(self, old: dict, new: dict) -> "Any":
        plugin = self._server.plugin
        return plugin.initialize(new) if plugin is not None else None

    def _ignored(self, old: dict, new: dict) -> bool:
        """Whether a reconfigure() that ended well changed nothing: the default of older
        libraries frees what the change touches and leaves the rest to initialize()."""
        plugin = self._server.plugin
        if plugin is None:
            return False
        try:
            now = self._settle(plugin.hook("get_current_config")())
        except Exception:
            return False  # nobody can tell
        changed = {key for key in {*old, *new} if old.get(key) != new.get(key)}
        known = {key for key in changed if key in now or key not in old} if isinstance(now, dict) else set()
        return bool(known) and all(now.get(key) == old.get(key) for key in known)

    # -- what the plugin says about itself ----------------------------------------

    def config_of(self, payload: bytes) -> dict:
        value = _jsonio.loads(payload) if payload else {}
        if not isinstance(value, dict):
            raise ValueError("the config is no JSON object")
        return value

    def description(self) -> bytes:
        """Schema and config for the ready answer. A plugin that cannot tell them runs
        all the same; the log says why they are missing."""
        parts: "Dict[str, Any]" = {}
        for method in ("schema", "config"):
            try:
                parts[method] = _jsonio.loads(self._hook(method))
            except (NotSupported, NotImplementedError):
                parts[method] = None
            except Exception as exc:
                parts[method] = None
                text = "%s() failed: %s" % (HOOKS[method], message_of(exc))
                self._server._emit("warning", text, "cjmworker", None)
        return _jsonio.dumps(parts)


def _await_here(value: "Any") -> "Any":
    import asyncio

    async def wait() -> "Any":
        return await value

    return asyncio.run(wait())
