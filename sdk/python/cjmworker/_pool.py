"""Threads that run executes when the daemon allows more than one at a time."""
from __future__ import annotations

import os
import threading
from queue import SimpleQueue

from ._slots import Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._calls import Call
    from ._server import Server


class Pool:
    """``put`` never blocks: the protocol admits no more calls than there are threads."""

    def __init__(self, size: int, server: "Server") -> None:
        self._server = server
        self._queue: "SimpleQueue[Call]" = SimpleQueue()
        for number in range(size):
            threading.Thread(target=self._serve, name="cjm-slot-%d" % number, daemon=True).start()

    def put(self, call: "Call") -> None:
        self._queue.put(call)

    def _serve(self) -> None:
        slot = Slot(is_main=False)
        while True:
            try:
                self._server.execute(self._queue.get(), slot)
            except KeyboardInterrupt:
                continue  # pushed in the last instant of a call that is already answered
            except BaseException:
                # execute answers whatever user code does; anything else is our own fault.
                import traceback

                traceback.print_exc(file=open(2, "w", closefd=False))
                os._exit(70)
