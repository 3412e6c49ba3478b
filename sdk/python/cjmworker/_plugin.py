"""A plugin as the runtime sees it: any class with ``execute``, its optional hooks
found by name. Nothing here knows the protocol.
"""
from __future__ import annotations

import sys

from . import _compat
from ._tasks import Tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional

# capability in the ready record → methods, any of which gives it
_CAPABILITIES = (
    ("execute", ("execute",)),
    ("stream", ("execute_stream",)),
    ("cancel", ("cancel",)),
    ("reconfigure", ("reconfigure",)),
    ("prefetch", ("prefetch",)),
    ("release", ("release",)),
    ("enable", ("on_enable",)),
    ("disable", ("on_disable",)),
    ("options", ("get_config_options",)),
    ("monitor", ("get_system_status",)),
    ("processes", ("list_processes",)),
    ("cleanup", ("cleanup",)),
)
# What the runtime gives to every plugin.
_OURS = ("progress", "interrupt", "control", "concurrent", "task", "surface")
# control request → the hook that answers it
HOOKS = {
    "prefetch": "prefetch",
    "release": "release",
    "enable": "on_enable",
    "disable": "on_disable",
    "schema": "get_config_schema",
    "config": "get_current_config",
    "options": "get_config_options",
    "system_status": "get_system_status",
    "processes": "list_processes",
}


class LoadError(Exception):
    """The plugin cannot be loaded; ``cause`` is what Python said, where it did."""

    def __init__(self, message: str, cause: "Optional[BaseException]" = None) -> None:
        super().__init__(message)
        self.cause = cause


class NotSupported(Exception):
    """The plugin lacks an optional hook."""


def load_class(module_name: str, class_name: str) -> "Any":
    """Import the module and find the class. LoadError names near misses."""
    if not class_name and ":" in module_name:
        module_name, class_name = module_name.split(":", 1)
    if not module_name or not class_name:
        raise LoadError("the manifest names no module and class (module %r, class %r)" % (module_name, class_name))
    try:
        __import__(module_name)
        target: "Any" = sys.modules[module_name]
    except BaseException as exc:
        raise LoadError("cannot import module %r: %s: %s" % (module_name, type(exc).__name__, exc), exc) from exc
    for part in class_name.split("."):
        if not hasattr(target, part):
            raise LoadError(
                "module %r has no class %r%s" % (module_name, class_name, near(part, dir(target)))
            )
        target = getattr(target, part)
    return target


def near(wanted: str, names: "List[str]") -> str:
    """"; did you mean …?" for the error about a name that is not there."""
    import difflib

    public = [name for name in names if not name.startswith("_")]
    near = difflib.get_close_matches(wanted, public, 3, 0.5)
    if not near:
        near = [name for name in public if name.lower() == wanted.lower()]
    return "; did you mean %s?" % " or ".join(near) if near else ""


class Plugin:
    """One loaded instance with its hooks. Methods run user code and raise what it raises."""

    def __init__(self, target: "Any", label: str, adapters: "Any" = None) -> None:
        self.instance = target() if callable(target) else target
        self.tasks = Tasks(self.instance)
        if not adapters and not any(self.has(name) for name in ("execute", "execute_stream", "get_system_status")):
            raise LoadError(
                "class %s has no execute method%s"
                % (label, near("execute", dir(self.instance)))
            )

    def has(self, name: str) -> bool:
        return callable(getattr(self.instance, name, None))

    def hook(self, name: str) -> "Callable":
        """The bound method. NotSupported when the class has none."""
        found = getattr(self.instance, name, None)
        if not callable(found):
            raise NotSupported("the plugin has no %s()" % name)
        return found

    def entry(self, stream: bool, task: str = "", method: str = "") -> "Callable":
        """What a call runs. UnknownTask when there is nothing."""
        if task or method:
            return self.tasks.find(task, method)
        names = ("execute_stream", "execute") if stream else ("execute", "execute_stream")
        for name in names:
            found = getattr(self.instance, name, None)
            # A base library's execute_stream only calls the execute that is not there.
            if callable(found) and not (name == "execute_stream" and _compat.is_default(found) and not self.has("execute")):
                return found
        raise self.tasks.instead_of_execute()

    def initialize(self, config: dict) -> "Any":
        """Call initialize, also with an empty config. Classes without it are fine."""
        start = getattr(self.instance, "initialize", None)
        if not callable(start):
            return None
        return start(config) if takes_argument(start) else start()

    def cleanup(self) -> "Any":
        end = getattr(self.instance, "cleanup", None)
        return end() if callable(end) else None

    def fact(self, name: str, default: str) -> str:
        """name or version: a property, an attribute, a method, or missing."""
        try:
            value = getattr(self.instance, name, default)
            return str(value() if callable(value) else value)
        except Exception:
            return default

    def capabilities(self) -> "List[str]":
        found = [name for name, methods in _CAPABILITIES if any(self.has(method) for method in methods)]
        return found + list(_OURS)

    def equip(self, report_progress: "Callable", check_cancel: "Callable") -> None:
        """Put our methods on the instance: progress always, so that classes whose own
        base only stores the value push it too; check_cancel where there is none."""
        instance = self.instance
        report = report_progress
        if hasattr(instance, "report_progress"):

            def store_and_report(progress: float, message: str = "") -> None:
                _set(instance, "_progress", progress)  # some read them back
                _set(instance, "_status_message", message)
                report_progress(progress, message)

            report = store_and_report
        _set(instance, "report_progress", report)
        if not hasattr(instance, "check_cancel"):
            _set(instance, "check_cancel", check_cancel)
        if hasattr(instance, "heartbeat"):
            from ._calls import heartbeat

            _set(instance, "heartbeat", heartbeat)  # the libraries' own only writes attributes

    def reset(self) -> None:
        """Before a call: the older libraries keep a flag that nobody else clears, and
        what the last call used of a paid service."""
        try:
            flags = self.instance.__dict__
        except AttributeError:
            return
        if flags.get("_last_api_usage") is not None:
            self.instance._last_api_usage = None
        if flags.get("_cancel_requested"):
            flag = flags["_cancel_requested"]
            if hasattr(flag, "clear"):  # a threading.Event
                flag.clear()
            else:
                self.instance._cancel_requested = False


def _set(instance: "Any", name: str, value: "Any") -> None:
    try:
        setattr(instance, name, value)
    except Exception:
        pass  # __slots__, or a class that guards its attributes: it uses the functions of cjmworker


def takes_argument(method: "Callable") -> bool:
    """Whether a bound method accepts one positional argument. True when unknown."""
    code = getattr(getattr(method, "__func__", method), "__code__", None)
    if code is None or hasattr(getattr(method, "__func__", method), "__wrapped__"):
        return True
    bound = 1 if hasattr(method, "__self__") else 0
    return code.co_argcount > bound or bool(code.co_flags & 0x04)


def called_wrongly(exc: BaseException, caller: str) -> bool:
    """Whether a TypeError comes from the call itself (arguments that do not fit the
    signature), not from inside the plugin: then its traceback ends in ``caller``."""
    if not isinstance(exc, TypeError):
        return False
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return tb is not None and tb.tb_frame.f_code.co_filename.startswith(caller)
