"""A plugin that does what a test tells it: ``op`` names the deed. Every run is
noted in the file of CJM_TEST_RUNS before anything else happens, so that a test
can prove how often a job really ran, whatever became of the daemon.
"""
import json
import logging
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time

import cjmworker

log = logging.getLogger("lab")


def note(what, **more):
    """One line, one write, on disk before the run goes on."""
    line = json.dumps({"job": cjmworker.job_id(), "what": what, "pid": os.getpid(), **more}) + "\n"
    fd = os.open(os.environ["CJM_TEST_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line.encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def runs_so_far():
    with open(os.environ["CJM_TEST_RUNS"]) as f:
        noted = [json.loads(line) for line in f]
    return sum(1 for n in noted if n["what"] == "run" and n["job"] == cjmworker.job_id())


def wait_for(gate, polite):
    """Until the file exists. A polite one notices a cancel, the other is deaf to it."""
    while not os.path.exists(gate):
        if polite:
            cjmworker.check_cancel()
        time.sleep(0.005)


def channel():
    """The descriptor of the socket to the daemon."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                return int(name)
        except OSError:
            pass
    raise RuntimeError("there is no socket")


GRANDCHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


class Lab:
    def __init__(self):
        self.config = {}

    def initialize(self, config):
        if config.get("colour") == "broken":
            raise RuntimeError("cannot initialize: the colour is broken")
        self.config = dict(config)

    def reconfigure(self, old, new):
        if new.get("colour") == "broken":
            raise ValueError("cannot reconfigure: the colour is broken")
        self.config = dict(new)

    def on_disable(self):
        note("disable")

    def get_config_options(self):
        return {"colour": ["red", "green", "blue"]}

    def execute(self, *args, op="echo", **kwargs):
        note("run", op=op)
        cjmworker.report_progress(-1, "begun")
        return getattr(self, "op_" + op)(*args, **kwargs)

    def execute_stream(self, op="count", to=3, at=0, gate=None, size=0, pause=0, **kwargs):
        note("run", op=op)
        cjmworker.report_progress(-1, "begun")
        if op != "count":
            yield getattr(self, "op_" + op)(**kwargs)
            return
        for n in range(1, to + 1):
            if gate and n == at:
                wait_for(gate, polite=True)
            if pause:
                time.sleep(pause / 1000)
            yield {"n": n, "pad": "x" * size} if size else n

    # -- what a good plugin does

    def op_echo(self, *args, **kwargs):
        return {"args": list(args), "kwargs": kwargs}

    def op_config(self):
        return self.config

    def op_pid(self):
        return os.getpid()

    def op_environ(self):
        return dict(os.environ)

    def op_hold(self, gate):
        wait_for(gate, polite=True)
        return "held"

    def op_nap(self, ms):
        end = time.monotonic() + ms / 1000
        while time.monotonic() < end:
            cjmworker.check_cancel()
            time.sleep(0.002)
        return "rested"

    def op_partial(self):
        n = 0
        while not cjmworker.cancelled():
            n += 1
            time.sleep(0.005)
        return {"partial": True, "rounds": n}

    def op_talk(self, lines=1, text="line"):
        for n in range(lines):
            log.warning("%s %d", text, n)
        print("printed by " + text)
        print("moaned by " + text, file=sys.stderr)
        return lines

    def op_steps(self, steps=4):
        for n in range(steps):
            cjmworker.report_progress((n + 1) / (steps + 1), "step %d" % n)
            time.sleep(0.06)
        return steps

    # -- errors

    def op_fail(self, category="fatal", message="it failed", **more):
        kinds = {
            "fatal": cjmworker.FatalError,
            "user_input": cjmworker.UserInputError,
            "transient": cjmworker.TransientError,
            "resource": cjmworker.ResourceError,
        }
        raise kinds[category](message, **more)

    def op_flaky(self, good=2):
        """Fails with a passing trouble until its run number `good`."""
        n = runs_so_far()
        if n < good:
            raise cjmworker.TransientError("run %d is not yet good" % n, retry_after=0.01)
        return n

    def op_die(self, sig=9):
        os.kill(os.getpid(), sig)
        time.sleep(600)

    def op_die_once(self):
        if runs_so_far() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return runs_so_far()

    # -- misbehaviour

    def op_deaf(self, gate="/nonexistent"):
        """Hears no cancel; a KeyboardInterrupt ends it."""
        wait_for(gate, polite=False)
        return "not heard"

    def op_stubborn(self, pids):
        """Ignores cancel, interrupt and SIGTERM, and has a grandchild in a session of its own."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        middle = subprocess.Popen(
            [sys.executable, "-c",
             "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', %r], start_new_session=True, stdout=subprocess.PIPE);"
             "p.stdout.readline(); print(p.pid, flush=True)" % GRANDCHILD],
            stdout=subprocess.PIPE)
        grandchild = int(middle.stdout.readline())
        middle.wait()
        with open(pids + ".new", "w") as f:
            json.dump([os.getpid(), grandchild], f)
        os.rename(pids + ".new", pids)
        cjmworker.report_progress(-1, "stubborn")
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass

    def op_nan(self):
        return {"fine": 1, "scores": [0.5, float("nan")]}

    def op_bytes(self):
        return b"\x00\xffbytes"

    def op_object(self):
        return {"deep": [object()]}

    def op_big(self, size):
        return "x" * size

    def op_flood(self, size, newlines=True):
        line = b"f" * (1 << 16)
        if newlines:
            line = line[:-1] + b"\n"
        left = size
        while left > 0:
            left -= os.write(1, line[:left])
        return size

    def op_garbage(self):
        """A header that is no JSON, in a frame of the right form."""
        text = b"this is no JSON at all"
        os.write(channel(), struct.pack(">II", len(text), 0) + text)
        time.sleep(600)

    def op_cut(self):
        """Dies in the middle of a frame, in the middle of a stream."""
        header = json.dumps({"jsonrpc": "2.0", "method": "chunk", "params": {"job": cjmworker.job_id(), "n": 1}}).encode()
        os.write(channel(), struct.pack(">II", len(header), 1000) + header + b"0123456789")
        os.kill(os.getpid(), signal.SIGKILL)

    def op_leave(self, gate=None):
        """Leaves in the job's directory what a worker may leave there; returns what it found."""
        here = os.environ["CJM_JOB_DIR"]
        found = {name: open(os.path.join(here, name), encoding="utf-8").read() for name in sorted(os.listdir(here))}
        with open(os.path.join(here, "out.txt"), "w", encoding="utf-8") as f:
            f.write("made")
        os.symlink("/etc/passwd", os.path.join(here, "link"))
        os.symlink("/etc", os.path.join(here, "etc"))
        os.symlink(os.path.dirname(here), os.path.join(here, "others"))
        os.mkfifo(os.path.join(here, "fifo"))
        os.mkdir(os.path.join(here, "locked"), 0o000)
        if gate:
            cjmworker.report_progress(0.5, "left")
            wait_for(gate, polite=True)
        return {"path": os.path.join(here, "out.txt"), "found": found, "mode": oct(os.stat(here).st_mode & 0o777)}

    def op_file_backed(self, text):
        """Returns an object that is a file, as older plugins do."""
        class Backed:
            def to_temp_file(self):
                fd, path = tempfile.mkstemp(suffix=".txt")
                with os.fdopen(fd, "w", encoding="utf-8") as f:
                    f.write(text)
                return path

        return {"audio": Backed()}

    def op_descendants(self, count=3):
        return [subprocess.Popen([sys.executable, "-c", GRANDCHILD], stdout=subprocess.DEVNULL, start_new_session=True).pid
                for _ in range(count)]
