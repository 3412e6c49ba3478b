"""print, stderr and logging of the plugin become log records that carry the job's id.

sys.stdout and sys.stderr are replaced; the real pipes get only what bypasses Python
(C code, child processes). They are logs too, but nobody can tell which job wrote them.
"""
from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional

    # level, message, logger, stream
    Emit = Callable[[str, str, Optional[str], Optional[str]], None]

# Characters; a longer line becomes several records. With its escapes a piece must fit a
# header of 64 KiB, and nearly always does; else the protocol cuts it.
MAX_LINE = 32 * 1024


class LineStream(io.TextIOBase):
    """A text stream that hands complete lines to ``emit``. Each call has its own
    unfinished line, so that parallel jobs do not mix."""

    def __init__(self, name: str, fd: int, emit: "Emit", owner: "Callable[[], Any]") -> None:
        self._name = name
        self._fd = fd
        self._emit = emit
        self._owner = owner
        self._partial: "Dict[Any, str]" = {}
        self.buffer = _Bytes(self)

    @property
    def name(self) -> str:  # type: ignore[override]
        return "<%s>" % self._name

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "replace"

    def writable(self) -> bool:
        return True

    def reconfigure(self, **options: "Any") -> None:
        """Accepted and ignored: encoding and buffering are the runtime's business here."""

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not %s" % type(text).__name__)
        owner = self._owner()
        held = self._partial.pop(owner, "")
        if "\n" not in text:
            self._keep(owner, held + text)
            return len(text)
        lines = (held + text).split("\n") if held else text.split("\n")
        rest = lines.pop()
        if rest:
            self._keep(owner, rest)
        for line in lines:
            self._line(line)
        return len(text)

    def flush(self) -> None:
        """Nothing: complete lines have left, an unfinished one waits for its end."""

    def finish(self, owner: "Any") -> None:
        """Emit the unfinished line of a call that ends."""
        if self._partial:
            rest = self._partial.pop(owner, "")
            if rest:
                self._line(rest)

    def _keep(self, owner: "Any", text: str) -> None:
        if "\r" in text[:-1]:  # a progress bar rewrites its line: only the newest counts
            text = text[text.rindex("\r", 0, -1) + 1 :]
        while len(text) > MAX_LINE:
            self._line(text[:MAX_LINE])
            text = text[MAX_LINE:]
        if text:
            self._partial[owner] = text

    def _line(self, line: str) -> None:
        if "\r" in line:
            line = line.rstrip("\r").rpartition("\r")[2]
        for at in range(0, len(line), MAX_LINE):
            self._emit("info", line[at : at + MAX_LINE], None, self._name)


class _Bytes(io.RawIOBase):
    """``sys.stdout.buffer`` for code that writes bytes."""

    def __init__(self, text: LineStream) -> None:
        self._text = text
        self._tail = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: "Any") -> int:
        raw = self._tail + bytes(data)
        cut = _whole_characters(raw)
        self._tail = raw[cut:]
        self._text.write(raw[:cut].decode("utf-8", "replace"))
        return len(data)


def _whole_characters(raw: bytes) -> int:
    """How much of ``raw`` ends at a UTF-8 character boundary."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte < 0x80:
            return len(raw)
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(raw) if back >= length else len(raw) - back
    return len(raw)


def install_logging(emit: "Emit") -> None:
    """Send records of the root logger to ``emit``: now when logging is loaded, else
    in the moment somebody imports it (importing it here would slow every start)."""
    module = sys.modules.get("logging")
    if module is not None:
        _attach(module, emit)
    else:
        sys.meta_path.insert(0, _LoggingWatch(emit))


class _LoggingWatch:
    """Finds ``logging`` once, through the other finders, and attaches after its import."""

    def __init__(self, emit: "Emit") -> None:
        self._emit = emit

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name != "logging":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        for finder in list(sys.meta_path):
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        loader, emit = spec.loader, self._emit
        run = loader.exec_module  # type: ignore[union-attr]

        def exec_module(module: "Any") -> None:
            run(module)
            _attach(module, emit)

        loader.exec_module = exec_module  # type: ignore[union-attr,method-assign]
        return spec


_LEVELS = ((40, "error"), (30, "warning"), (20, "info"))


def _attach(logging: "Any", emit: "Emit") -> None:
    class JobHandler(logging.Handler):  # type: ignore[misc,name-defined]
        def emit(self, record: "Any") -> None:
            try:
                text = self.format(record)
            except Exception:
                text = "log record with bad arguments: %.200r" % (record.msg,)
            level = next((name for least, name in _LEVELS if record.levelno >= least), "debug")
            emit(level, text, record.name, None)

    root = logging.getLogger()
    root.addHandler(JobHandler())
    wanted = os.environ.get("CJM_LOG_LEVEL", "INFO").upper()
    level = logging.getLevelName(wanted)
    root.setLevel(level if isinstance(level, int) else logging.INFO)
