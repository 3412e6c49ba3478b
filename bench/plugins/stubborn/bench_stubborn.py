"""Two ways to be cancelled: at once, and never."""
import signal
import subprocess
import sys
import threading
import time

# A child that hears nothing, in a session of its own where told so.
CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
if int(sys.argv[1]) % 2:
    os.setsid()
sys.stdout.write("x")
sys.stdout.flush()
while True:
    time.sleep(60)
"""


class Stubborn:
    name = "stubborn"
    version = "1.0.0"

    def __init__(self):
        self._stop = threading.Event()

    def cancel(self):
        self._stop.set()

    def execute(self, *args, **kwargs):
        return None

    def execute_stream(self, deaf=False, children=0, tag=""):
        """Yields, starts the children, which carry ``tag`` on their command line, and
        waits. Between a yield and what follows it a call can be cancelled, however
        deaf: so they come after it, and whoever sees all of them sees it deaf."""
        self._stop.clear()
        yield {"children": children}
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for n in range(children):
            command = [sys.executable, "-S", "-E", "-c", CHILD, str(n), tag]
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            child.stdout.read(1)
        while not deaf:
            if self._stop.wait(60):
                return
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
