"""A worker that will not go: it ignores SIGTERM and interrupts, and so does a
grandchild in a session of its own."""
import os
import signal
import time


class Stubborn:
    def initialize(self, config):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            while True:
                signal.pause()

    def execute(self, seconds=0.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                time.sleep(end - time.monotonic())
            except (KeyboardInterrupt, ValueError):
                pass
        return "done"
