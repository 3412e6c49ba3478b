"""Tasks: methods of adapters bound to the plugin, and of the plugin itself.

An adapter is a class with a ``task_name`` that is made with the plugin as its one
argument and gives it a typed method per task. What a job may not call are private
names and the hooks that only the daemon calls.
"""
from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Tuple

    Found = List[Tuple[str, "Any"]]

# The daemon's own hooks: a job that called one would change what other jobs rely on.
_HOOKS = frozenset(
    "initialize reconfigure cleanup cancel prefetch release on_enable on_disable equip "
    "report_progress check_cancel register_cancel_callback".split()
)


class UnknownTask(ValueError):
    """A job names a task or a method that is not there."""

    category = "user_input"
    retriable = False

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.fields = [field]


class Tasks:
    """The adapters of one plugin. ``bind`` comes first; then calls may come from any thread."""

    def __init__(self, instance: "Any") -> None:
        self._instance = instance
        self._bound: "Dict[str, Tuple[str, Any]]" = {}  # task → where it came from, adapter
        self._failed: "Dict[str, str]" = {}  # adapter → why it is not bound

    def __len__(self) -> int:
        return len(self._bound)

    def bind(self, specs: "Any", complain: "Callable[[str], None]") -> None:
        """Import and make each ``module:Class``. One that fails leaves the others and
        the plugin itself in use; a job that asks for its task is told why."""
        for spec in specs if isinstance(specs, list) else ():
            try:
                self._bind(str(spec))
            except Exception as exc:
                self._failed[str(spec)] = "%s: %s" % (type(exc).__name__, exc)
                complain("cannot bind adapter %s: %s: %s" % (spec, type(exc).__name__, exc))

    def _bind(self, spec: str) -> None:
        module, _, name = spec.rpartition(":")
        if not module or not name:
            raise ValueError("an adapter is named module:Class")
        __import__(module)
        made = getattr(sys.modules[module], name)
        task = getattr(made, "task_name", None)
        if not isinstance(task, str) or not task:
            raise ValueError("the class has no task_name")
        if task in self._bound:
            raise ValueError("task %r is bound to %s already" % (task, self._bound[task][0]))
        self._bound[task] = (spec, made(self._instance))

    def find(self, task: str, method: str) -> "Callable":
        """What a call with this task and method runs."""
        owner, what = self._instance, "the plugin"
        if task:
            if task not in self._bound:
                raise UnknownTask("task", self._unbound(task))
            spec, owner = self._bound[task]
            what = "the adapter of task %r" % task
            if not method:
                methods = [name for name, _ in _methods(owner)]
                if len(methods) != 1:
                    raise UnknownTask("method", "name a method of %s: %s" % (what, ", ".join(methods)))
                method = methods[0]
        found = getattr(owner, method, None) if _callable_by_jobs(method) else None
        if not callable(found):
            names = [name for name, _ in _methods(owner)]
            raise UnknownTask("method", "%s has no method %r%s" % (what, method, _known(method, names)))
        return found

    def _unbound(self, task: str) -> str:
        text = "no adapter is bound for task %r%s" % (task, _known(task, sorted(self._bound)))
        failed = ["%s (%s)" % item for item in self._failed.items()]
        return text + ("; not bound: " + ", ".join(failed) if failed else "")

    def instead_of_execute(self) -> UnknownTask:
        """The error of a call without a task when the plugin has no execute."""
        if self._bound:
            return UnknownTask("task", "the plugin has no execute; name one of its tasks: %s" % ", ".join(sorted(self._bound)))
        names = ", ".join(name for name, _ in _methods(self._instance))
        return UnknownTask("method", "the plugin has no execute, and no adapter is bound; name one of its methods: %s" % names)

    def surface(self) -> "Dict[str, Any]":
        """The public methods, properties and attributes of the plugin's class, and its tasks."""
        import inspect

        methods, properties, attributes = [], [], []
        kind = type(self._instance)
        for name in sorted(dir(kind)):
            if name.startswith("_"):
                continue
            value = inspect.getattr_static(kind, name)
            if isinstance(value, property):
                properties.append(name)
                continue
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if inspect.isfunction(value):
                try:
                    signature = inspect.signature(value)
                    text, params = str(signature), [param for param in signature.parameters if param != "self"]
                except Exception:  # annotations that cannot be evaluated, or a __signature__ that is none
                    text, params = "(...)", []
                methods.append({"name": name, "signature": text, "params": params})
            else:
                attributes.append({"name": name, "type": type(value).__name__})
        tasks = [
            {"task": task, "adapter": spec, "methods": [name for name, _ in _methods(adapter)]}
            for task, (spec, adapter) in sorted(self._bound.items())
        ]
        return {"methods": methods, "properties": properties, "attributes": attributes, "tasks": tasks}


def _callable_by_jobs(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_") and name not in _HOOKS


def _methods(owner: "Any") -> "Found":
    """The methods that a job may call, by what the class says (properties stay untouched)."""
    kind = type(owner)
    found: "Found" = []
    for name in sorted(dir(kind)):
        if _callable_by_jobs(name):
            try:
                value = getattr(kind, name, None)
            except Exception:  # a descriptor that wants an instance
                continue
            if callable(value) and not isinstance(value, type):
                found.append((name, value))
    return found


def _known(wanted: str, names: "List[str]") -> str:
    from ._plugin import near

    close = near(wanted, names)
    if close or not names:
        return close
    return "; there is " + ", ".join(names[:20])
