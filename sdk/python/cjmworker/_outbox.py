"""Sending: whole frames, in order, few system calls.

What is slow leaves at once. What comes in a burst (chunks of a fast generator, lines
of a chatty plugin) is gathered for at most ``GATHER`` seconds or ``GATHER_BYTES`` and
leaves in one write. Progress is thinned to ``1 / PROGRESS_EVERY`` a second; its newest
value is always delivered. A small thread, started on first use, empties what waits.
"""
from __future__ import annotations

import os
from _thread import allocate_lock, get_ident, start_new_thread
from time import monotonic, sleep

from ._protocol import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional

GATHER = 0.002
GATHER_BYTES = 64 * 1024
PROGRESS_EVERY = 0.05
MAX_VECTOR = 512  # IOV_MAX is 1024
# A log line waits this long for a daemon that does not read; then it is dropped and counted.
LOG_PATIENCE = 10.0


class Outbox:
    """All methods are safe from any thread. A thread that may be interrupted must
    hold its slot (``Slot.hold``) around them."""

    def __init__(self, fd: int, on_lost: "Callable[[BaseException], None]") -> None:
        self._fd = fd
        self._on_lost = on_lost
        self._lock = allocate_lock()  # guards everything below and the order of writes
        # The garbage collector may run a finalizer of the plugin while this thread holds
        # the lock; what that prints must not wait for the lock again.
        self._holder = 0  # thread inside the lock
        self._stash: "List[Callable[[], List[bytes]]]" = []
        self._waiting: "List[bytes]" = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._last_write = 0.0
        self._late: "List[Any]" = []  # calls whose newest progress is not sent yet
        self._closed = False
        self.dropped = 0  # log lines lost because the daemon did not read
        self._flusher_started = False
        self._flusher_armed = False
        self._wake = allocate_lock()
        self._wake.acquire()

    def send(self, make: "Callable[[], List[bytes]]") -> None:
        """Build and send now, after everything that waits. ``make`` runs under the
        lock: the protocol's state and the order on the wire agree."""
        me = get_ident()  # not inside: between lock and mark nothing may run
        with self._lock:
            self._holder = me
            try:
                buffers = make()
                if self._waiting or self._stash:
                    buffers = self._take_waiting() + buffers
                self._write(buffers)
            finally:
                self._holder = 0

    def gather(self, make: "Callable[[], List[bytes]]") -> None:
        """Send now when things are slow, within GATHER seconds when they come fast."""
        me = get_ident()
        if self._holder == me:
            self._stash.append(make)
            self._arm()
            return
        with self._lock:
            self._holder = me
            try:
                self._gather(make())
            finally:
                self._holder = 0

    def _gather(self, buffers: "List[bytes]") -> None:
        now = monotonic()
        if not self._waiting:
            if now - self._last_write > GATHER:
                self._write(buffers, now)
                return
            self._waiting_since = now
        self._waiting += buffers
        for part in buffers:
            self._waiting_bytes += len(part)
        if self._waiting_bytes >= GATHER_BYTES or now - self._waiting_since > GATHER:
            self._write(self._take_waiting(), now)
        else:
            self._arm()

    def stage(self, make: "Callable[[], List[bytes]]") -> None:
        """Put in front of the next frame that is sent; the caller sends one at once."""
        me = get_ident()
        with self._lock:
            self._holder = me
            try:
                self._waiting += make()
            finally:
                self._holder = 0

    def log(self, make: "Callable[[], List[bytes]]") -> None:
        """As gather, but a daemon that has stopped reading costs the line, not the job."""
        if self._holder != get_ident() and not self._writable():
            with self._lock:
                self.dropped += 1
            return
        self.gather(make)

    def progress(self, call: "Any", value: "Any", make: "Callable[[Any], List[bytes]]") -> None:
        """Send ``value`` now, or soon when the last one is younger than PROGRESS_EVERY.
        The call's fields progress, progress_at and progress_make belong to the outbox."""
        me = get_ident()
        if self._holder == me:
            return  # a finalizer reports progress from inside a send: not worth a frame
        with self._lock:
            self._holder = me
            try:
                self._progress(call, value, make)
            finally:
                self._holder = 0

    def _progress(self, call: "Any", value: "Any", make: "Callable[[Any], List[bytes]]") -> None:
        now = monotonic()
        call.progress = value
        call.progress_make = make
        if now - call.progress_at >= PROGRESS_EVERY and call not in self._late:
            call.progress_at = now
            self._write(self._take_waiting() + make(call), now)
        else:
            if call not in self._late:
                self._late.append(call)
            self._arm()

    def settle(self, call: "Any") -> None:
        """Stage what waits of this call's progress: its answer comes next."""
        if not self._late:
            return
        me = get_ident()
        with self._lock:
            self._holder = me
            try:
                if call in self._late:
                    self._late.remove(call)
                    self._waiting += call.progress_make(call)
            finally:
                self._holder = 0

    def close(self) -> None:
        """After this nothing is sent."""
        with self._lock:
            if self._waiting:
                self._write(self._take_waiting())
            self._closed = True

    def abandon(self) -> None:
        """In a forked child: never touch the socket again, whoever held the lock."""
        self._closed = True
        self._holder = 0
        self._lock = allocate_lock()

    # -- inside the lock -----------------------------------------------------

    def _take_waiting(self) -> "List[bytes]":
        buffers = self._waiting
        self._waiting = []
        self._waiting_bytes = 0
        while self._stash:
            try:
                buffers += self._stash.pop(0)()
            except ProtocolError:
                continue  # too late for this log line; it belonged to nobody's call
        return buffers

    def _write(self, buffers: "List[bytes]", now: "Optional[float]" = None) -> None:
        if self._closed or not buffers:
            return
        try:
            if len(buffers) == 1:
                done = os.write(self._fd, buffers[0])
                if done < len(buffers[0]):
                    self._write_rest(buffers, done)
            else:
                for at in range(0, len(buffers), MAX_VECTOR):
                    self._write_vector(buffers[at : at + MAX_VECTOR])
        except OSError as exc:
            self._closed = True
            self._on_lost(exc)
        self._last_write = monotonic() if now is None else now

    def _write_vector(self, buffers: "List[bytes]") -> None:
        total = 0
        for part in buffers:
            total += len(part)
        done = os.writev(self._fd, buffers)
        if done < total:
            self._write_rest(buffers, done)

    def _write_rest(self, buffers: "List[bytes]", done: int) -> None:
        for part in buffers:
            size = len(part)
            if done >= size:
                done -= size
                continue
            view = memoryview(part)[done:]
            done = 0
            while view:
                view = view[os.write(self._fd, view) :]

    # -- the flusher -----------------------------------------------------------

    def _arm(self) -> None:
        if self._flusher_armed:
            return
        self._flusher_armed = True
        if not self._flusher_started:
            self._flusher_started = True
            start_new_thread(self._flush_forever, ())
        self._wake.release()

    def _flush_forever(self) -> None:
        me = get_ident()
        while True:
            self._wake.acquire()
            delay: "Optional[float]" = GATHER
            while delay is not None:
                sleep(delay)
                with self._lock:
                    self._holder = me
                    try:
                        delay = self._flush_due()
                    finally:
                        self._holder = 0
                    if delay is None:
                        self._flusher_armed = False

    def _flush_due(self) -> "Optional[float]":
        """Send what is due; the time to the next look, None when nothing waits."""
        now = monotonic()
        if self._waiting or self._stash:
            self._write(self._take_waiting(), now)
        due = None
        for call in list(self._late):
            left = call.progress_at + PROGRESS_EVERY - now
            if left <= 0:
                self._late.remove(call)
                call.progress_at = now
                self._write(call.progress_make(call), now)
            elif due is None or left < due:
                due = left
        return due

    def _writable(self) -> bool:
        if self._closed:
            return False
        import select

        poll = select.poll()  # one per call: a poll object refuses two threads
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(int(LOG_PATIENCE * 1000)))
