"""Run a plugin without a daemon, the way a daemon would.

``run`` is the quick one, in this process (a debugger works)::

    result = run(MyPlugin, "a.wav", language="de", config={"model": "tiny"})
    assert result.value["text"] == "hello"

``Worker`` starts the real worker process and talks the real protocol, so that imports,
prints, cancels, crashes and what is no JSON behave as in service::

    with Worker("my_plugin:MyPlugin", config={"model": "tiny"}) as worker:
        assert worker.execute("a.wav")["text"] == "hello"
        call = worker.start("long.wav", stream=True)
        assert next(call.chunks())["text"] == "he"
        call.cancel()
        with pytest.raises(JobError, match="cancelled"):
            call.result()
"""
from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from cjmworker import _execute
from cjmworker._calls import Call as _Running
from cjmworker._calls import check_cancel, current, report_progress
from cjmworker._frames import FrameDecoder, encode_frame, encode_header
from cjmworker._plugin import Plugin, load_class
from cjmworker._slots import Slot

__all__ = ["Call", "JobError", "Result", "Worker", "WorkerDied", "run"]

SECONDS = 60.0  # no wait is longer unless it says so


class JobError(Exception):
    """A job failed. The attributes are what the daemon would store."""

    def __init__(self, message: str, data: Dict[str, Any]) -> None:
        super().__init__(message)
        self.category: str = data.get("category", "fatal")
        self.type: str = data.get("type", "")
        self.retriable: bool = bool(data.get("retriable"))
        self.fields: List[str] = list(data.get("fields") or ())
        self.traceback: str = data.get("traceback", "")


class WorkerDied(Exception):
    """The worker process ended; the text has its exit code and the end of its stderr."""


class Result:
    """What a job returned: the value after JSON, its chunks, its progress."""

    def __init__(self, value: Any, chunks: List[Any], progress: List[Tuple[float, str]]) -> None:
        self.value = value
        self.chunks = chunks
        self.progress = progress


def run(
    plugin: Any,
    *args: Any,
    config: Optional[Dict[str, Any]] = None,
    stream: bool = False,
    task: str = "",
    method: str = "",
    adapters: Sequence[str] = (),
    job_dir: Optional[str] = None,
    **kwargs: Any,
) -> Result:
    """Make the plugin (a class, an instance or ``"module:Class"``), initialize it, run one
    job in this thread, clean up. JobError as the daemon would store it; its cause is the
    plugin's own exception."""
    target = load_class(*_module_and_class(plugin)) if isinstance(plugin, str) else plugin
    made = Plugin(target if isinstance(target, type) else lambda: target, str(plugin), list(adapters))
    made.equip(report_progress, check_cancel)
    slot = Slot(is_main=False)
    _settled(slot, made.initialize(config or {}))
    made.tasks.bind(list(adapters), lambda text: print(text, file=sys.stderr))
    chunks: List[Any] = []
    progress: List[Tuple[float, str]] = []
    payload = json.dumps({"args": _as_sent(args), "kwargs": _as_sent(kwargs)}).encode()
    call = _Running("1", {"job": "test", "stream": stream, "task": task, "method": method, "dir": job_dir}, payload)

    def note(call: _Running, fraction: float, message: str) -> None:
        call.progress = (fraction, message)
        progress.append(call.progress)

    before = current.send_progress
    current.by_thread[slot.ident] = call
    current.send_progress = note
    try:
        outcome = _execute.run(call, slot, made, lambda _, chunk: chunks.append(json.loads(chunk)))
    finally:
        current.send_progress = before
        current.by_thread.pop(slot.ident, None)
        _settled(slot, made.cleanup())
        if slot.loop is not None:
            slot.loop.close()
    if outcome.code:
        raise JobError(outcome.message, outcome.data or {}) from outcome.error
    return Result(json.loads(outcome.payload) if outcome.payload else None, chunks, progress)


def _settled(slot: Slot, value: Any) -> Any:
    return _execute.run_async(slot, value) if hasattr(value, "__await__") else value


def _module_and_class(name: str) -> Tuple[str, str]:
    module, _, cls = name.partition(":")
    return module, cls


def _as_sent(value: Any) -> Any:
    """Arguments as they arrive: what writes itself to a file becomes the path."""
    if callable(getattr(value, "to_temp_file", None)):
        return value.to_temp_file()
    if isinstance(value, dict):
        return {str(key): _as_sent(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_sent(item) for item in value]
    return os.fspath(value) if hasattr(value, "__fspath__") else value


class Call:
    """One job of a Worker."""

    def __init__(self, worker: "Worker", job: str) -> None:
        self.job = job
        self.progress: List[Tuple[float, str]] = []
        self.logs: List[Dict[str, Any]] = []
        self._worker = worker
        self._inbox: "queue.Queue[Tuple[str, Any]]" = queue.Queue()
        self._answer: Optional[Tuple[Dict[str, Any], bytes]] = None
        self._chunks: List[bytes] = []  # came, and nobody took them yet

    def chunks(self, timeout: float = SECONDS) -> Iterator[Any]:
        """The chunks as they come, until the job ends."""
        while self._chunks or self._answer is None:
            if self._chunks:
                yield json.loads(self._chunks.pop(0))
            else:
                self._take(timeout)

    def result(self, timeout: float = SECONDS) -> Any:
        """Wait for the end. JobError when it failed or was cancelled."""
        while self._answer is None:
            self._take(timeout)
        header, payload = self._answer
        if "error" in header:
            raise JobError(header["error"].get("message", ""), header["error"].get("data") or {})
        if header["result"].get("cancelled"):
            raise JobError("the job was cancelled", {"category": "cancelled"})
        return json.loads(payload) if payload else None

    def wait_progress(self, timeout: float = SECONDS) -> Tuple[float, str]:
        """The newest progress; waits for the first."""
        while not self.progress and self._answer is None:
            self._take(timeout)
        if not self.progress:
            raise AssertionError("the job ended without any progress")
        return self.progress[-1]

    def cancel(self, mode: str = "cooperative") -> None:
        """Ask the job to stop: ``cooperative``, then ``interrupt`` (KeyboardInterrupt)."""
        self._worker.request("cancel", {"job": self.job, "mode": mode})

    def _take(self, timeout: float) -> None:
        try:
            kind, what = self._inbox.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("nothing came from the worker for %.0f s" % timeout) from None
        if kind == "answer":
            self._answer = what
        elif kind == "chunk":
            self._chunks.append(what)
        elif kind == "died":
            self._inbox.put((kind, what))
            raise WorkerDied(what)


class Worker:
    """A worker process with the plugin loaded. Its own session: closing ends everything
    that it started."""

    def __init__(
        self,
        plugin: Union[str, type],
        config: Optional[Dict[str, Any]] = None,
        *,
        python: str = sys.executable,
        path: Sequence[str] = (),
        env: Optional[Dict[str, str]] = None,
        secrets: Optional[Dict[str, str]] = None,
        adapters: Sequence[str] = (),
        concurrency: int = 1,
        timeout: float = SECONDS,
    ) -> None:
        """``path`` are directories with the plugin's code, beside this process' own."""
        module, name = _module_and_class(plugin) if isinstance(plugin, str) else (plugin.__module__, plugin.__qualname__)
        if module == "__main__":
            raise ValueError("the worker imports the plugin's class: define it in a module, not in the script that runs")
        self._lock = threading.Lock()  # guards the next four, and the order of writes
        self._next = 0
        self._calls: Dict[str, Call] = {}  # request id → who waits
        self._jobs: Dict[str, Call] = {}
        self._over = ""
        self.logs: List[Dict[str, Any]] = []
        self._stderr = tempfile.TemporaryFile()  # a pipe that nobody reads would stop the worker
        self._sock, theirs = socket.socketpair()
        self._decoder = FrameDecoder()
        self.process = self._spawn(python, path, env, theirs)
        self._reader = threading.Thread(target=self._read, name="cjmd-testing", daemon=True)
        self._reader.start()
        hello = {
            "protocol": [1], "instance": "test", "plugin": name, "module": module, "class": name, "dirs": {},
            "secrets": secrets or {}, "adapters": list(adapters), "concurrency": concurrency,
        }  # fmt: skip
        try:
            self.ready: Dict[str, Any] = self._ask("hello", hello, json.dumps(config or {}).encode(), timeout)[0]
        except BaseException:
            self.close()
            raise

    def _spawn(self, python: str, path: Sequence[str], env: Optional[Dict[str, str]], theirs: socket.socket) -> "subprocess.Popen[bytes]":
        ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        known = [ours, *map(os.fspath, path), *(entry for entry in sys.path if entry)] if python == sys.executable else [ours, *path]
        environ = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(known))
        environ["CJM_WORKER_FD"] = str(theirs.fileno())
        with theirs:
            return subprocess.Popen(
                [python, "-m", "cjmworker"], env=environ, pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._stderr,
            )  # fmt: skip

    def execute(self, *args: Any, timeout: float = SECONDS, **kwargs: Any) -> Any:
        """Run one job and return its result."""
        return self.start(*args, **kwargs).result(timeout)

    def stream(self, *args: Any, timeout: float = SECONDS, **kwargs: Any) -> List[Any]:
        """Run one streaming job and return its chunks."""
        call = self.start(*args, stream=True, **kwargs)
        found = list(call.chunks(timeout))
        call.result(timeout)
        return found

    def task(self, task: str, method: str = "", timeout: float = SECONDS, **kwargs: Any) -> Any:
        """Call a method of the adapter bound to ``task``; of the plugin itself when it is empty."""
        return self.start(task=task, method=method, **kwargs).result(timeout)

    def start(self, *args: Any, stream: bool = False, task: str = "", method: str = "", job_dir: str = "", **kwargs: Any) -> Call:
        """Begin a job. ``stream``, ``task``, ``method`` and ``job_dir`` are no arguments of the plugin."""
        payload = json.dumps({"args": _as_sent(args), "kwargs": _as_sent(kwargs)}).encode()
        params: Dict[str, Any] = {"attempt": 1, "stream": stream, "dir": job_dir}
        if task or method:
            params.update(task=task, method=method)
        return self._send("execute", params, payload)

    def configure(self, old: Dict[str, Any], new: Dict[str, Any]) -> str:
        """A hot update. ``reconfigured`` or ``initialized`` says how it was applied."""
        return str(self._ask("configure", {}, json.dumps({"old": old, "new": new}).encode())[0]["applied"])

    def request(self, method: str, params: Optional[Dict[str, Any]] = None) -> Any:
        """Any other request: schema, config, options, surface, stats, prefetch, release, …"""
        return self._ask(method, params or {})[1]

    # -- the socket -------------------------------------------------------------------

    def _ask(self, method: str, params: Dict[str, Any], payload: bytes = b"", timeout: float = SECONDS) -> Tuple[Dict[str, Any], Any]:
        call = self._send(method, params, payload)
        value = call.result(timeout)
        assert call._answer is not None
        return call._answer[0]["result"], value

    def _send(self, method: str, params: Dict[str, Any], payload: bytes) -> Call:
        with self._lock:
            self._next += 1
            number = str(self._next)
            call = Call(self, "job-" + number if method == "execute" else "")
            if method == "execute":
                params["job"] = call.job
                self._jobs[call.job] = call
            if self._over:
                call._inbox.put(("died", self._over))
                return call
            self._calls[number] = call
            header = encode_header({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            try:
                self._sock.sendall(b"".join(encode_frame(header, payload)))
            except OSError:
                pass  # the reader tells how the worker ended
        return call

    def _read(self) -> None:
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            for header, payload in self._decoder.feed(data):
                self._deliver(header, payload)
        code = self.process.wait()
        self._stderr.seek(0)
        said = self._stderr.read()[-4000:].decode("utf-8", "replace")
        with self._lock:
            self._over = "the worker ended with exit code %d\n%s" % (code, said)
            for call in self._calls.values():
                call._inbox.put(("died", self._over))

    def _deliver(self, header: Dict[str, Any], payload: bytes) -> None:
        if "id" in header:
            with self._lock:
                call = self._calls.pop(header["id"], None)
            if call is not None:
                call._inbox.put(("answer", (header, payload)))
            return
        params = header.get("params") or {}
        owner = self._jobs.get(params.get("job", ""))
        if header["method"] == "log":
            (self.logs if owner is None else owner.logs).append(params)
        elif owner is not None and header["method"] == "chunk":
            owner._inbox.put(("chunk", payload))
        elif owner is not None and header["method"] == "progress":
            owner.progress.append((params["fraction"], params["message"]))
            owner._inbox.put(("progress", params))

    def close(self) -> None:
        """End the worker and everything that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._reader.join(SECONDS)
        self._sock.close()
        self._stderr.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
