"""A daemon's end of the socket for tests: real worker processes, bounded waits."""
from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

SDK = Path(__file__).resolve().parents[1]
if str(SDK) not in sys.path:
    sys.path.insert(0, str(SDK))

PATIENCE = 20.0  # no wait of a test is longer


class Frame:
    def __init__(self, header: Dict[str, Any], payload: bytes) -> None:
        self.header = header
        self.payload = payload

    @property
    def method(self) -> Optional[str]:
        return self.header.get("method")

    @property
    def params(self) -> Dict[str, Any]:
        return self.header.get("params", {})

    @property
    def result(self) -> Dict[str, Any]:
        return self.header["result"]

    @property
    def error(self) -> Dict[str, Any]:
        return self.header["error"]

    def json(self) -> Any:
        assert "error" not in self.header, self
        return json.loads(self.payload)

    def __repr__(self) -> str:
        return "Frame(%r, %r)" % (self.header, self.payload[:200])


def frame(header: Dict[str, Any], payload: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return struct.pack(">II", len(head), len(payload)) + head + payload


class Worker:
    """One worker process; ``seen`` keeps every frame it sent."""

    def __init__(self, source: str = "", module: str = "subject", name: str = "Plugin", env: Optional[Dict[str, str]] = None, own_group: bool = True, python: str = sys.executable) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="cjmworker-test-"))
        self.module, self.name = module, name
        (self.dir / (module + ".py")).write_text(textwrap.dedent(source))
        ours, theirs = socket.socketpair()
        self.sock = ours
        self.sock.settimeout(PATIENCE)
        self.seen: List[Frame] = []
        self._buffer = bytearray()
        self._at = 0
        self._next = 0
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join([str(SDK), str(self.dir)]),
            "CJM_WORKER_FD": str(theirs.fileno()),
        }
        environment.update({name: value.replace("{dir}", str(self.dir)) for name, value in (env or {}).items()})
        self.stderr_path = self.dir / "stderr"
        with open(self.stderr_path, "wb") as err, open(self.dir / "stdout", "wb") as out:
            self.process = subprocess.Popen(
                [python, "-m", "cjmworker"],
                pass_fds=[theirs.fileno()], env=environment, cwd=str(self.dir),
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=own_group,
            )  # fmt: skip
        theirs.close()

    # -- talking ---------------------------------------------------------------

    def send(self, method: str, params: Optional[Dict[str, Any]] = None, payload: bytes = b"") -> str:
        self._next += 1
        number = str(self._next)
        self.sock.sendall(frame({"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}, payload))
        return number

    def read(self, timeout: float = PATIENCE) -> Optional[Frame]:
        """The next frame, None at end of file. Fails after the timeout."""
        deadline = time.monotonic() + timeout
        while True:
            found = self._parse()
            if found is not None:
                self.seen.append(found)
                return found
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                raise AssertionError("no frame within %.1f s; last: %r; stderr: %s" % (timeout, self.seen[-3:], self.stderr()))
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._buffer += data

    def _parse(self) -> Optional[Frame]:
        buffer, at = self._buffer, self._at
        if len(buffer) - at >= 8:
            head, body = struct.unpack_from(">II", buffer, at)
            end = at + 8 + head + body
            if len(buffer) >= end:
                self._at = end
                return Frame(json.loads(bytes(buffer[at + 8 : at + 8 + head])), bytes(buffer[at + 8 + head : end]))
        del buffer[:at]
        self._at = 0
        return None

    def until(self, wanted: Callable[[Frame], bool], timeout: float = PATIENCE) -> Frame:
        while True:
            found = self.read(timeout)
            if found is None:
                raise AssertionError("end of file; stderr: %s" % self.stderr())
            if wanted(found):
                return found

    def answer(self, number: str, timeout: float = PATIENCE) -> Frame:
        for old in self.seen:
            if old.header.get("id") == number:
                return old
        return self.until(lambda f: f.header.get("id") == number, timeout)

    def ask(self, method: str, params: Optional[Dict[str, Any]] = None, payload: bytes = b"") -> Frame:
        return self.answer(self.send(method, params, payload))

    # -- in words ----------------------------------------------------------------

    def hello(self, config: Optional[Dict[str, Any]] = None, **params: Any) -> Frame:
        return self.answer(self.send_hello(config, **params))

    def send_hello(self, config: Optional[Dict[str, Any]] = None, **params: Any) -> str:
        body = {"protocol": [1], "instance": "i", "plugin": "subject", "module": self.module, "class": self.name, "concurrency": 1}
        body.update(params)
        return self.send("hello", body, json.dumps(config or {}).encode())

    def start(self, job: str, *args: Any, stream: bool = False, dir: str = "", **kwargs: Any) -> str:
        payload = json.dumps({"args": list(args), "kwargs": kwargs}).encode()
        return self.send("execute", {"job": job, "attempt": 1, "stream": stream, "dir": dir, "envelope": None}, payload)

    def task(self, job: str, task: str, method: str = "", stream: bool = False, envelope: Any = None, **kwargs: Any) -> Frame:
        params = {"job": job, "attempt": 1, "stream": stream, "dir": "", "task": task, "method": method, "envelope": envelope}
        return self.answer(self.send("execute", params, json.dumps({"args": [], "kwargs": kwargs}).encode()))

    def execute(self, job: str, *args: Any, **kwargs: Any) -> Frame:
        return self.answer(self.start(job, *args, **kwargs))

    def cancel(self, job: str, mode: str = "cooperative") -> str:
        return self.send("cancel", {"job": job, "mode": mode})

    def said(self, method: str, **params: Any) -> List[Frame]:
        return [f for f in self.seen if f.method == method and all(f.params.get(k) == v for k, v in params.items())]

    def wait_log(self, message: str) -> Frame:
        for old in self.said("log"):
            if old.params["message"] == message:
                return old
        return self.until(lambda f: f.method == "log" and f.params["message"] == message)

    # -- the process ---------------------------------------------------------------

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")[-4000:]

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.sock.close()
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (OSError, PermissionError):
                self.process.kill()
        self.process.wait(PATIENCE)
        # Children of the plugin may be writing there until the kernel has ended them.
        shutil.rmtree(self.dir, ignore_errors=True)


class WorkerTest(unittest.TestCase):
    def worker(self, source: str, **options: Any) -> Worker:
        made = Worker(source, **options)
        self.addCleanup(made.close)
        return made

    def loaded(self, source: str, config: Optional[Dict[str, Any]] = None, options: Optional[Dict[str, Any]] = None, **hello: Any) -> Worker:
        made = self.worker(source, **(options or {}))
        answer = made.hello(config, **hello)
        self.assertIn("result", answer.header, answer)
        return made


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def wait_gone(pids: "List[int]", timeout: float = PATIENCE) -> Tuple[bool, List[int]]:
    """Wait (by pidfd where there is one) until none of the processes runs."""
    deadline = time.monotonic() + timeout
    for pid in pids:
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.005)
    left = [pid for pid in pids if alive(pid)]
    return not left, left
