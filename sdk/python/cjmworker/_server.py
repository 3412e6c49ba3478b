"""The thin shell around the protocol: one socket, the main thread, one guard thread.

Who reads the socket? Handing every frame from a reader thread to the main thread
would cost a thread switch per call, as much as the whole rest of it. So the main
thread reads for itself while it is idle; when it has been in user code for longer
than ``TAKE_OVER``, the guard thread takes the reader's role (a lock), answers what
needs no plugin (ping, cancel, stats), and hands back with the next piece of work.
"""
from __future__ import annotations

import os
import sys
from _thread import allocate_lock, start_new_thread
from time import monotonic, sleep, time

from . import _execute, _host
from ._calls import Call, check_cancel, current, report_progress
from ._control import Control
from ._errors import describe, message_of, traceback_text
from ._outbox import Outbox
from ._plugin import LoadError, Plugin, load_class
from ._protocol import E_PLUGIN, VERSION, Broken, LocalProtocolError, RemoteProtocolError, Request, WorkerProtocol
from ._slots import RUNTIME_DIR, Slot, gateway
from ._streams import LineStream, install_logging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

TAKE_OVER = 0.002
# The guard looks this many times before it sleeps until the next call.
QUIET_LOOKS = 25
TERM_AGAIN = 0.01
READ_SIZE = 64 * 1024
READ_MAX = 1024 * 1024
USAGE_EVERY = 0.25
USAGE_STEP = 1024 * 1024
RUNTIME_VERSION = "1.0"
EXIT_TERMINATED = 143  # 128 + SIGTERM, as a shell would say


class Server:
    """One worker process. ``run`` blocks until shutdown and returns the exit code."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.protocol = WorkerProtocol()
        self.outbox = Outbox(fd, self._lost)
        self.slot = Slot(is_main=True)
        self.calls: "Dict[str, Call]" = {}  # by job; added by the reader, removed when answered
        self.calls_done = 0
        self.started_at = time()
        self.plugin: "Optional[Plugin]" = None
        self.control = Control(self)
        self._pool: "Any" = None  # threads for executes when concurrency > 1
        self._inbox: "List[Request]" = []  # work for the main thread, in order
        self._role = allocate_lock()  # held by the thread that reads
        self._doorbell = _host.Doorbell()  # rings when the inbox got something, or a signal came
        self._guard_wake = allocate_lock()
        self._guard_wake.acquire()
        self._guard_sleeps = False
        self._busy = False  # the main thread is in user code
        self._serial = 0  # which stretch of user code
        self._idle = False  # the main thread waits for work; written by it alone
        self._streams: "Tuple[LineStream, ...]" = ()
        self._loading = ""  # which step of loading is on its way, for the error's text
        self._stop = False
        self._exit_code = 0
        self._forked = False
        self._terminating = False  # a SIGTERM waits for the plugin's own code
        self._usage_at = 0.0
        self._usage_hint = 0
        self._usage_on: "Any" = ({}, {})

    # -- life --------------------------------------------------------------

    def run(self) -> int:
        os.set_inheritable(self.fd, False)
        os.set_blocking(self.fd, True)
        _host.clean_environment()
        _host.handle_signals(self.slot.on_signal, self._on_terminate, self._doorbell)
        os.register_at_fork(after_in_child=self._in_child)
        self._capture()
        current.send_progress = self._progress
        start_new_thread(self._guard, ())
        try:
            while not self._stop:
                self._step()
        except SystemExit:
            pass  # SIGTERM while idle
        except BaseException as exc:  # nothing of the plugin's comes here: our own fault
            self._broken(exc)
        return self._end()

    def _broken(self, exc: BaseException) -> None:
        _host.kill_everything("internal error: %s" % traceback_text(exc))

    def _step(self) -> None:
        if self._inbox:
            self._work(self._inbox.pop(0))
            return
        requests: "List[Request]" = []
        try:
            # In this order no SIGTERM is lost: before the mark the handler sets _stop,
            # which is looked at next; after it, the handler raises.
            self._idle = True
            if self._stop:
                return
            if self._role.acquire(False):
                try:
                    if self._doorbell.wait_for(self.fd):
                        requests = self._read()
                finally:
                    self._role.release()
            else:
                self._doorbell.wait()
        finally:
            self._idle = False
        self._sort(requests)

    def _end(self) -> int:
        if self.plugin is not None:
            try:
                self.enter()
                self._settle(self.plugin.cleanup())
            except BaseException as exc:
                _host.complain("cjmworker: cleanup() failed: %s" % traceback_text(exc, RUNTIME_DIR))
            finally:
                self.exit()
        self.outbox.close()
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        # The interpreter now waits for threads of the plugin; nobody else listens.
        _host.default_signals()
        return self._exit_code

    def _on_terminate(self, signum: int, frame: "Any") -> None:
        from ._slots import in_user_code

        self._stop = True
        self._exit_code = EXIT_TERMINATED
        if self._idle or in_user_code(frame):
            self._idle = False
            self._terminating = False
            raise SystemExit(EXIT_TERMINATED)
        if self._busy and not self._terminating:
            self._terminating = True
            start_new_thread(self._terminate_again, (self._serial,))

    def _terminate_again(self, serial: int) -> None:
        """The SIGTERM came while code of ours ran below the plugin's, where nothing may be
        raised: it comes again until it meets the plugin's own, or that is over."""
        while True:
            sleep(TERM_AGAIN)
            if not (self._terminating and self._busy and self._serial == serial):
                return
            _host.terminate_main(self.slot.ident, self._on_terminate)

    def _in_child(self) -> None:
        """A forked child of the plugin: no protocol, plain stdio, default signals."""
        self._forked = True
        self.outbox.abandon()
        current.send_progress = None
        try:
            os.close(self.fd)
        except OSError:
            pass
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        _host.default_signals()

    def _lost(self, exc: BaseException) -> None:
        if not self._stop:
            _host.kill_everything("cannot write to the daemon: %s" % exc)

    # -- reading -------------------------------------------------------------

    def _read(self) -> "List[Request]":
        """The next requests. The caller holds the role."""
        while True:
            size = min(max(self.protocol.missing, READ_SIZE), READ_MAX)
            try:
                data = os.read(self.fd, size)
            except OSError as exc:
                data = b""
                _host.complain("cjmworker: cannot read from the daemon: %s" % exc)
            if not data:
                self._at_eof()
            requests = self.protocol.receive(data)
            if requests:
                return requests

    def _at_eof(self) -> None:
        try:
            self.protocol.receive_eof()
        except RemoteProtocolError as exc:
            _host.kill_everything("protocol error: %s" % exc)
        _host.kill_everything("")

    def _sort(self, requests: "List[Request]") -> bool:
        """Answer what can be answered at any moment; queue the rest for the main
        thread. True when something was queued. Runs on the reading thread."""
        queued = False
        for request in requests:
            if isinstance(request, Broken):
                _host.kill_everything("protocol error: %s" % request.error)
            if request.method == "execute" and type(request) is Request:
                call = Call(request.id, request.params, request.payload)
                self.calls[request.params["job"]] = call
                if self._pool is not None:
                    self._pool.put(call)
                    continue
            elif self.control.handle(request, self._busy):
                continue
            self._inbox.append(request)
            queued = True
        return queued

    def _guard(self) -> None:
        try:
            self._guard_forever()
        except BaseException as exc:
            self._broken(exc)

    def _guard_forever(self) -> None:
        while True:
            self._guard_sleeps = True
            if not self._busy:
                self._guard_wake.acquire()
            self._guard_sleeps = False
            quiet = 0
            seen = self._serial
            while quiet < QUIET_LOOKS:
                sleep(TAKE_OVER)
                if not self._busy:
                    quiet += 1
                    continue
                quiet = 0
                if self._serial == seen:
                    self._stand_in()
                seen = self._serial

    def _stand_in(self) -> None:
        """Read for the busy main thread until there is work for it."""
        if not self._role.acquire(False):
            return
        try:
            while not self._sort(self._read()):
                pass
        finally:
            self._role.release()
        self._doorbell.ring()

    def enter(self) -> None:
        """The main thread goes into user code."""
        self._serial += 1
        self._busy = True
        if self._guard_sleeps:
            self._guard_sleeps = False
            try:
                self._guard_wake.release()
            except RuntimeError:
                pass  # it had seen _busy by itself

    def exit(self) -> None:
        self._busy = False
        if "signal" in sys.modules:  # asyncio takes the wake-up away and does not give it back
            self._doorbell.hear_signals()

    # -- work of the main thread -----------------------------------------------

    def _work(self, request: Request) -> None:
        if request.method == "execute":
            self.enter()
            try:
                self.execute(self.calls[request.params["job"]], self.slot)
            finally:
                self.exit()
        elif request.method == "hello":
            self._hello(request)
        elif request.method == "shutdown":
            self.outbox.send(lambda: self.protocol.answer(request.id, {}))
            self._stop = True
        else:
            self.enter()
            current.loading = Call("", {}, b"")
            try:
                self.control.run_hook(request)
            finally:
                current.loading = None
                self.exit()

    def execute(self, call: Call, slot: Slot) -> None:
        """Run one call on this thread and answer it."""
        plugin = self.plugin
        assert plugin is not None  # the protocol takes no execute before ready
        current.by_thread[slot.ident] = call
        if self._pool is None:  # one environment cannot serve parallel calls
            self._name_dir(call.dir)
        outcome = _execute.run(call, slot, plugin, self._chunk)
        if self._forked:
            os._exit(0)  # the plugin forked and its child came back here
        for stream in self._streams:
            stream.finish(call)
        current.by_thread.pop(slot.ident, None)
        self._answer(call, outcome)

    def _name_dir(self, path: "Optional[str]") -> None:
        if path:
            os.environ["CJM_JOB_DIR"] = path
        elif "CJM_JOB_DIR" in os.environ:
            del os.environ["CJM_JOB_DIR"]

    def _answer(self, call: Call, outcome: "_execute.Outcome") -> None:
        self.calls_done += 1
        self.report_usage()
        self.outbox.settle(call)
        job = call.job or ""

        def make() -> "List[bytes]":
            self.calls.pop(job, None)
            if outcome.code:
                return self.protocol.error(call.id, outcome.code, outcome.message, outcome.data)
            result: "Dict[str, Any]" = {"chunks": self.protocol.chunks_sent(job)}
            if call.cancelled:
                result["cancelled"] = True
            return self.protocol.answer(call.id, result, outcome.payload)

        try:
            self.outbox.send(make)
        except LocalProtocolError as exc:
            text = "the result cannot be sent: %s; write large results to a file and return its path" % exc
            data = {"category": "resource", "type": "ResultTooLarge", "retriable": False}
            self.outbox.send(lambda: self.protocol.error(call.id, E_PLUGIN, text, data))

    def _chunk(self, call: Call, payload: bytes) -> None:
        job = call.job or ""
        self.outbox.gather(lambda: self.protocol.chunk(job, payload))

    def report_usage(self, always: bool = False) -> None:
        """Put our own account of memory before the next answer: seldom, unless it changed."""
        hint = _host.peak_hint()
        now = monotonic()
        on_devices = _host.device_bytes()
        changed = hint - self._usage_hint >= USAGE_STEP or on_devices != self._usage_on
        if not always and not changed and now - self._usage_at < USAGE_EVERY:
            return
        self._usage_at, self._usage_hint, self._usage_on = now, hint, on_devices
        held, most = on_devices
        params = {"devices": held, "max_devices": most, "max_rss": _host.max_rss()}
        self.outbox.stage(lambda: self.protocol.notify("usage", params))

    # -- loading -----------------------------------------------------------------

    def _hello(self, request: Request) -> None:
        params = request.params
        secrets = params.get("secrets")
        if isinstance(secrets, dict):
            os.environ.update({str(name): str(value) for name, value in secrets.items()})
        self.enter()
        current.loading = Call("", {}, b"")
        try:
            record, payload = self._load(request)
        except BaseException as exc:
            self._load_failed(request, exc)
            return
        finally:
            current.loading = None
            self.exit()
        self.report_usage(always=True)  # what the loaded plugin takes, before its first call
        self.outbox.send(lambda: self.protocol.ready(request.id, record, payload))

    def _load(self, request: Request) -> "tuple":
        params = request.params
        self._loading = "the config cannot be used"
        config = self.control.config_of(request.payload)
        module, name = str(params.get("module") or ""), str(params.get("class") or "")
        if os.environ.get("CJM_WORKER_CHECK") == "1":  # the conformance suite brings its own
            module, name = "cjmworker_check", "CheckPlugin"
        target = gateway(load_class, (module, name), {})
        self._loading = "cannot make a %s" % name
        adapters = params.get("adapters")
        plugin = gateway(Plugin, (target, "%s:%s" % (module, name), adapters), {})
        plugin.equip(report_progress, check_cancel)
        self._loading = "initialize() failed"
        self._settle(gateway(plugin.initialize, (config,), {}))
        gateway(plugin.tasks.bind, (adapters, lambda text: self._emit("error", text, "cjmworker", None)), {})
        self.plugin = plugin
        if self.protocol.concurrency > 1:
            from ._pool import Pool

            self._pool = Pool(self.protocol.concurrency, self)
        record = {
            "protocol": VERSION,
            "name": plugin.fact("name", str(params.get("plugin") or name)),
            "version": plugin.fact("version", ""),
            "capabilities": plugin.capabilities(),
            "pid": os.getpid(),
            "runtime": "cjmworker/%s %s" % (RUNTIME_VERSION, _interpreter()),
        }
        return record, self.control.description()

    def _settle(self, value: "Any") -> "Any":
        """Await the value of an async hook, on the main thread."""
        return _execute.run_async(self.slot, value) if hasattr(value, "__await__") else value

    def _load_failed(self, request: Request, exc: BaseException) -> None:
        if self._forked:
            os._exit(1)
        cause: BaseException = exc
        if isinstance(exc, LoadError) and exc.cause is not None:
            cause = exc.cause
        data = describe(cause, RUNTIME_DIR)
        message = message_of(exc)
        if not isinstance(exc, LoadError):
            message = "%s: %s: %s" % (self._loading, type(exc).__name__, message)
        _host.complain("cjmworker: cannot load the plugin: %s\n%s" % (message, data["traceback"]))
        try:
            self.outbox.send(lambda: self.protocol.load_error(request.id, E_PLUGIN, message, data))
        except LocalProtocolError as error:
            _host.complain("cjmworker: %s" % error)
        self.outbox.close()
        # Threads that a half-loaded plugin left behind must not keep the process.
        os._exit(_host.EXIT_LOAD_FAILED)

    # -- logs and progress ---------------------------------------------------------

    def _capture(self) -> None:
        self._streams = (
            LineStream("stdout", 1, self._emit, current.call),
            LineStream("stderr", 2, self._emit, current.call),
        )
        sys.stdout, sys.stderr = self._streams  # type: ignore[assignment]
        install_logging(self._emit)

    def _emit(self, level: str, message: str, logger: "Optional[str]", stream: "Optional[str]") -> None:
        if self._forked:
            _host.complain(message)
            return
        params: "Dict[str, Any]" = {"level": level, "message": message, "time": time()}
        call = current.call()
        if call is not None:
            params["job"] = call.job
        if logger is not None:
            params["logger"] = logger
        if stream is not None:
            params["stream"] = stream
        try:
            self.outbox.log(lambda: self.protocol.notify("log", params, "message"))
        except LocalProtocolError:
            _host.complain(message)
        current.checkpoint()

    def _progress(self, call: Call, fraction: float, message: str) -> None:
        self.outbox.progress(call, (fraction, message), self._progress_frame)

    def _progress_frame(self, call: Call) -> "List[bytes]":
        fraction, message = call.progress
        params: "Dict[str, Any]" = {"fraction": fraction, "message": message}
        if call.job is not None:
            params["job"] = call.job
        return self.protocol.notify("progress", params, "message")


def _interpreter() -> str:
    name = {"cpython": "CPython", "pypy": "PyPy"}.get(sys.implementation.name, sys.implementation.name)
    return "%s %s" % (name, ".".join(map(str, sys.version_info[:3])))
