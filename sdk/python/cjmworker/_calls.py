"""Calls in flight, and the functions that plugin code uses without knowing which
call it is in: report_progress, check_cancel, job_id, job_dir.
"""
from __future__ import annotations

from _thread import get_ident
from time import monotonic

from ._errors import Cancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional

MAX_PROGRESS_TEXT = 1000


class Call:
    """One execute, from its request to its answer."""

    __slots__ = (
        "id", "job", "attempt", "stream", "dir", "task", "method", "envelope", "payload",
        "slot", "cancelled", "hook_called", "running",
        "progress", "progress_at", "progress_make",
    )  # fmt: skip

    def __init__(self, id: str, params: dict, payload: bytes) -> None:
        self.id = id
        self.job: "Optional[str]" = params.get("job")
        self.attempt = params.get("attempt", 1)
        self.stream = params.get("stream") is True
        self.dir: "Optional[str]" = params.get("dir") or None
        self.task = str(params.get("task") or "")
        self.method = str(params.get("method") or "")
        self.envelope = params.get("envelope")
        self.payload = payload
        self.slot: "Any" = None  # set when it starts
        self.cancelled = False  # set by the reader
        self.hook_called = False
        self.running: "Any" = None  # asyncio task of an async execute
        self.progress: "Any" = None  # newest (fraction, message); the outbox owns these
        self.progress_at = 0.0
        self.progress_make: "Any" = None


class Current:
    """Who is running where. One per process: the runtime's, or an empty one when a
    plugin is used without a daemon."""

    def __init__(self) -> None:
        self.by_thread: "Dict[int, Call]" = {}
        self.loading: "Optional[Call]" = None  # stands for initialize and configure
        self.send_progress: "Optional[Callable[[Call, float, str], None]]" = None

    def call(self) -> "Optional[Call]":
        """The call of this thread. A thread that the plugin started belongs to the
        only call there is; with several, to none."""
        active = self.by_thread
        found = active.get(get_ident())
        if found is None and len(active) == 1:
            for found in list(active.values()):
                return found
        return found

    def checkpoint(self) -> None:
        """Raise the interrupt that waits for this thread's call, if one does."""
        call = self.by_thread.get(get_ident())
        if call is not None and call.slot is not None:
            call.slot.checkpoint(call)


current = Current()


def report_progress(progress: float, message: str = "") -> None:
    """Tell how far the job is: 0..1, or -1 when that is unknown. Sent at once, at most
    20 times a second; the newest value always arrives. Without a daemon: nothing."""
    call = current.call() or current.loading
    send = current.send_progress
    if call is None or send is None:
        return
    fraction = float(progress)
    if not 0.0 <= fraction <= 1.0:  # NaN lands here too
        fraction = 1.0 if fraction > 1.0 else -1.0
    text = message if type(message) is str else str(message)
    send(call, fraction, text[:MAX_PROGRESS_TEXT])
    current.checkpoint()


class heartbeat:
    """``with heartbeat("loading the model"):`` around one long call that reports nothing:
    a thread repeats the newest progress message with the seconds that went by, so that
    the job is seen to live and its start does not count as stalled."""

    def __init__(self, phase: str, *, interval: float = 0.5, progress: "Optional[float]" = None) -> None:
        self._phase = phase
        self._interval = interval
        self._progress = progress
        self._ended: "Any" = None
        self._thread: "Any" = None

    def __enter__(self) -> None:
        import threading

        call = current.call() or current.loading
        if self._progress is not None:
            report_progress(self._progress, self._phase)
        elif call is not None:
            report_progress(call.progress[0] if call.progress else -1.0, self._phase)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(call,), name="heartbeat", daemon=True)
        self._thread.start()

    def __exit__(self, *exc: "Any") -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self, call: "Optional[Call]") -> None:
        begun = monotonic()
        base, mine = self._phase, ""
        while not self._ended.wait(self._interval):
            send = current.send_progress
            if call is None or send is None or call.progress is None:
                continue
            fraction, message = call.progress
            if message != mine:
                base = message
            mine = "%s (%.1f s)" % (base, monotonic() - begun)
            send(call, fraction, mine[:MAX_PROGRESS_TEXT])


def check_cancel() -> None:
    """Raise Cancelled when somebody asked for this job to stop."""
    current.checkpoint()
    call = current.call()
    if call is not None and call.cancelled:
        raise Cancelled("the job was cancelled")


def cancelled() -> bool:
    """Whether somebody asked for this job to stop, for code that wants to end by itself."""
    call = current.call()
    return call is not None and call.cancelled


def job_id() -> "Optional[str]":
    """The id of the job this code runs for; None outside of one."""
    call = current.call()
    return call.job if call is not None else None


def job_dir() -> "Optional[str]":
    """The job's private directory, removed with the job; None when it has none."""
    call = current.call()
    return call.dir if call is not None else None


def envelope() -> dict:
    """What the submitter sent along for the plugin to see (actor, control flags …)."""
    call = current.call()
    found = call.envelope if call is not None else None
    return found if isinstance(found, dict) else {}
