"""The process around the plugin: environment, signals, forks, memory, and its end."""
from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the module signal costs an import of enum
import faulthandler
import os
import sys

from ._slots import INTERRUPT_SIGNAL, RUNTIME_DIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Tuple

EXIT_LOAD_FAILED = 1
EXIT_PROTOCOL = 70


def clean_environment() -> None:
    """Take our own directory out of PYTHONPATH: programs the plugin starts get the
    environment they would have without us. (sys.path keeps it.)"""
    ours = os.path.dirname(RUNTIME_DIR.rstrip(os.sep))
    entries = os.environ.get("PYTHONPATH")
    if entries is None:
        return
    kept = [part for part in entries.split(os.pathsep) if part and os.path.abspath(part) != ours]
    if kept:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    else:
        del os.environ["PYTHONPATH"]


def complain(text: str) -> None:
    """A line in the worker's own log (the real stderr), whatever else is broken."""
    try:
        os.write(2, text.rstrip("\n").encode("utf-8", "replace") + b"\n")
    except OSError:
        pass


def kill_everything(reason: str) -> None:
    """The daemon is gone or unusable: end this process and its group now. Never returns."""
    if reason:
        complain("cjmworker: %s; ending the process group" % reason)
    pid = os.getpid()
    try:
        if os.getpgrp() == pid:
            os.killpg(pid, int(_signal.SIGKILL))
    except OSError:
        pass
    # Not our own group (a shell started us): at least the processes below this one.
    for child in descendants(pid):
        try:
            os.kill(child, int(_signal.SIGKILL))
        except OSError:
            pass
    os._exit(EXIT_PROTOCOL)


def descendants(pid: int) -> "List[int]":
    """Processes below ``pid``, from one pass over /proc; empty where there is none."""
    parents: "Dict[int, List[int]]" = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(name))
            except (OSError, IndexError, ValueError):
                continue
    found: "List[int]" = []
    level = [pid]
    while level:
        level = [child for parent in level for child in parents.get(parent, ())]
        found += level
    return found


class Doorbell:
    """What the idle main thread waits on: a pipe that another thread rings, and that
    every signal rings too. A signal that comes in the instant before a blocking call
    would otherwise be noticed only when that call returns, which may be never."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        self._poll: "Any" = None

    def ring(self) -> None:
        try:
            os.write(self._in, b".")
        except BlockingIOError:
            pass  # it is full: it rings already

    def wait(self) -> None:
        """Until it rings."""
        os.read(self._out, 4096)

    def wait_for(self, fd: int) -> bool:
        """Until ``fd`` can be read (True) or it rings (False, when nothing else came)."""
        if self._poll is None:
            import select

            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            self._poll.register(self._out, select.POLLIN)
        ready = self._poll.poll()
        if len(ready) == 1 and ready[0][0] == fd:
            return True
        self.wait()
        return len(ready) > 1

    def hear_signals(self) -> None:
        _signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)


def handle_signals(on_interrupt: "Callable", on_terminate: "Callable", doorbell: Doorbell) -> None:
    doorbell.hear_signals()
    _signal.signal(INTERRUPT_SIGNAL, on_interrupt)
    _signal.signal(_signal.SIGTERM, on_terminate)
    # A crash in C code leaves its Python stack in the worker's log.
    faulthandler.enable(2)
    # A Ctrl-C in the daemon's terminal is the daemon's business.
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)


def terminate_main(ident: int, handler: "Callable") -> None:
    """SIGTERM for the main thread, where ``handler`` still is what hears it."""
    if _signal.getsignal(_signal.SIGTERM) == handler:
        _signal.pthread_kill(ident, _signal.SIGTERM)


def default_signals() -> None:
    _signal.set_wakeup_fd(-1)
    for number in (INTERRUPT_SIGNAL, int(_signal.SIGTERM), int(_signal.SIGINT)):
        _signal.signal(number, _signal.SIG_DFL)


def peak_hint() -> int:
    """A cheap figure that grows when the peak grows. Not the peak itself: across exec
    Linux carries over that of the process that started us."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def max_rss() -> int:
    """Largest resident set of this program so far, in bytes."""
    try:
        with open("/proc/self/status", "rb") as file:
            return int(file.read().partition(b"VmHWM:")[2].split(None, 1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return peak_hint()


def rss() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def device_bytes() -> "Tuple[Dict[str, int], Dict[str, int]]":
    """What torch's allocator has reserved per device, and the most it ever had. Never
    imports torch, and never initialises CUDA, which would itself take memory."""
    held: "Dict[str, int]" = {}
    most: "Dict[str, int]" = {}
    torch = sys.modules.get("torch")
    if torch is None:
        return held, most
    try:
        if not torch.cuda.is_initialized():
            return held, most
        for index in range(torch.cuda.device_count()):
            reserved = torch.cuda.memory_stats_as_nested_dict(index)["reserved_bytes"]["all"]
            if reserved["peak"]:
                name = _device_name(torch, index)
                held[name], most[name] = int(reserved["current"]), int(reserved["peak"])
    except Exception:  # half-imported or unusual builds: no figure is better than a failed job
        pass
    return held, most


def _device_name(torch: "Any", index: int) -> str:
    """As the daemon calls the device. torch counts only those the worker was placed on,
    and its UUID is not the daemon's for a part of a card, nor under ROCm."""
    placed = [name for name in os.environ.get("CJM_DEVICES", "").split(",") if name]
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    text = str(index) if uuid is None else str(uuid)
    if uuid is not None and not text.startswith(("GPU-", "MIG-")):
        text = "GPU-" + text
    if text in placed or index >= len(placed):
        return text
    return placed[index]


def figures() -> "Dict[str, Any]":
    """The process part of the stats answer."""
    times = os.times()
    threads = sys.modules.get("threading")
    return {
        "pid": os.getpid(),
        "rss": rss(),
        "max_rss": max_rss(),
        "cpu_user": times.user,
        "cpu_system": times.system,
        "python_threads": len(sys._current_frames()),
        "threads": threads.active_count() if threads is not None else 1,
        "devices": device_bytes()[0],
    }
