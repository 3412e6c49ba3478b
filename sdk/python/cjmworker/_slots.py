"""Which thread runs which call, and how a call is interrupted without ever
hitting anything else.

A slot is one thread that runs user code: the main thread, or with a concurrency
over 1 a thread of the pool. An interrupt is a wish (``_wanted``) that stays until it
could be raised at a place where only user code is on the stack above ``gateway``, or
until the call is over. Our own code therefore never sees a KeyboardInterrupt: half a
frame on the socket could not be repaired, and a late interrupt never meets the next
job. Two means carry it:

* main thread: a signal of our own (not SIGINT, which asyncio and plugins rearrange).
  Its handler runs in the main thread, between two bytecodes, and looks at the stack.
* pool threads, and a main thread that blocks the signal: an asynchronous exception,
  after looking at the stack from outside.
"""
from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import sys
from _thread import get_ident, start_new_thread
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# Python's handler also ends time.sleep and blocking reads (EINTR). Real-time signals
# near the top are used by nobody we know of; systems without them give SIGUSR2.
INTERRUPT_SIGNAL = int(getattr(_signal, "SIGRTMAX", 0)) - 3 if hasattr(_signal, "SIGRTMAX") else int(_signal.SIGUSR2)
_AGAIN = 0.005  # until the wish is fulfilled it is repeated this often
_PATIENCE = 0.25  # then the second means is tried

RUNTIME_DIR = os.path.dirname(os.path.abspath(__file__)) + os.sep


def gateway(call: "Callable", args: "Any", kwargs: "Any") -> "Any":
    """The door to user code: above this frame an interrupt may be raised."""
    return call(*args, **kwargs)


# Frames of ours through which an interrupt may pass.
DOORS = {gateway.__code__}


def in_user_code(frame: "Any") -> bool:
    """Whether only user code (or libraries it called) is running above the gateway."""
    while frame is not None:
        code = frame.f_code
        if code in DOORS:
            return True
        if code.co_filename.startswith(RUNTIME_DIR):
            return False
        frame = frame.f_back
    return False


class Slot:
    """One thread that runs user code. ``call`` is written by that thread only."""

    def __init__(self, is_main: bool) -> None:
        self.is_main = is_main
        self.ident = get_ident()
        self.call: "Any" = None
        self.loop: "Any" = None  # this thread's asyncio loop, made on first use
        self._wanted: "Any" = None
        self._pushing = False  # another thread is inside _push
        self._pushed = False  # an asynchronous exception may be on its way

    def leave(self) -> None:
        """The call is over: from here on no interrupt reaches this thread."""
        while True:
            try:
                self.call = None
                self._wanted = None
                if self._pushed or self._pushing:
                    self._settle()
                return
            except KeyboardInterrupt:
                continue  # pushed in the last moment; the call is over anyway

    def _settle(self) -> None:
        import ctypes

        while self._pushing:
            sleep(0.0002)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), None)
        self._pushed = False

    def checkpoint(self, call: "Any") -> None:
        """Raise a waiting interrupt: called by this slot's thread where one of our own
        functions returns to user code, which may spend all its time in them."""
        while self._wanted is call:
            if self._pushing:
                sleep(0.0002)
                continue
            self._wanted = None
            raise KeyboardInterrupt("the job was cancelled")

    def on_signal(self, signum: int, frame: "Any") -> None:
        """The handler of INTERRUPT_SIGNAL, in the main thread."""
        wanted = self._wanted
        if wanted is not None and wanted is self.call and in_user_code(frame):
            self._wanted = None
            raise KeyboardInterrupt("the job was cancelled")

    def interrupt(self, call: "Any") -> bool:
        """Want a KeyboardInterrupt in ``call``; False when it is not running here.
        Any other thread may call it."""
        if self.call is not call:
            return False
        if self._wanted is not call:
            self._wanted = call
            start_new_thread(self._insist, (call,))
        return True

    def _insist(self, call: "Any") -> None:
        begun = monotonic()
        while self._wanted is call and self.call is call:
            by_signal = self.is_main and _signal.getsignal(INTERRUPT_SIGNAL) == self.on_signal
            if by_signal and monotonic() - begun < _PATIENCE:
                _signal.pthread_kill(self.ident, INTERRUPT_SIGNAL)
            else:
                self._push(call)
                # A sleep ends for a handler that raises, and the plugin's own handler
                # meets the exception that was pushed. Without one the signal would kill.
                if self._pushed and self.is_main and callable(_signal.getsignal(INTERRUPT_SIGNAL)):
                    _signal.pthread_kill(self.ident, INTERRUPT_SIGNAL)
            sleep(_AGAIN)

    def _push(self, call: "Any") -> None:
        import ctypes

        self._pushing = True  # seen by leave(), which then waits and takes it back
        try:
            if self.call is not call or self._wanted is not call:
                return
            if in_user_code(sys._current_frames().get(self.ident)):
                self._wanted = None
                self._pushed = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self.ident), ctypes.py_object(KeyboardInterrupt)
                )
        finally:
            self._pushing = False
