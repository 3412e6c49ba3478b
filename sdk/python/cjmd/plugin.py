"""The base class of plugins. Using it is a choice: any class with ``execute`` is a plugin."""
from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import (
    Any, Callable, ClassVar, ContextManager, Dict, Generator, Iterator, List, Optional, Protocol, Set, TypeVar,
    runtime_checkable,
)  # fmt: skip

import cjmworker

from .errors import UserInputError
from .validation import RELOAD_TRIGGER, config_to_dict, dataclass_to_jsonschema, dict_to_config

_logger = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])


@runtime_checkable
class FileBackedDTO(Protocol):
    """A value that crosses as a file: the runtime calls ``to_temp_file`` on such a result,
    moves the file into the job's directory and sends its path."""

    def to_temp_file(self) -> str:
        """Write the value to a file of its own and return the absolute path."""
        ...


@dataclasses.dataclass
class ConfigOption:
    """One value that a field of the configuration may have right now."""

    value: Any
    label: str
    metadata: Dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class FieldOptions:
    """What a field may be right now, when only the running plugin knows (models that a
    service offers). Kept apart from the schema, which stays the same."""

    options: List[ConfigOption]
    constraints: Dict[str, Any] = dataclasses.field(default_factory=dict)


class PluginInterface(ABC):
    """Only ``execute`` must be written.

    With a dataclass as ``config_class`` the configuration is made and checked before
    ``initialize`` returns and lies in ``self.config``; schema, defaults and hot update
    come from it. The optional hooks ``prefetch``, ``release`` (give memory back),
    ``on_enable`` and ``on_disable`` are used when the class has them.
    """

    config_class: ClassVar[Optional[type]] = None
    config: Any = None
    _cancel_requested: bool = False
    _cancel_callbacks: Optional[List[Callable[[], None]]] = None

    @property
    def name(self) -> str:
        """The plugin's own name; the daemon goes by the manifest's."""
        return type(self).__name__

    @property
    def version(self) -> str:
        return ""

    @abstractmethod
    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Do one job and return its result."""

    def execute_stream(self, *args: Any, **kwargs: Any) -> Generator[Any, None, Any]:
        """Do one job in parts. What it yields are the chunks, what it returns the result."""
        yield self.execute(*args, **kwargs)

    # -- configuration -----------------------------------------------------------

    def initialize(self, config: Optional[Dict[str, Any]] = None) -> None:
        """Make ready to work; called once with the whole configuration, again at a hot
        update without ``reconfigure``."""
        if self.config_class is None:
            self.config = dict(config or {})
        else:
            self.config = dict_to_config(self.config_class, config, validate=True)

    def get_config_schema(self) -> Dict[str, Any]:
        return {} if self.config_class is None else dataclass_to_jsonschema(self.config_class)

    def get_current_config(self) -> Dict[str, Any]:
        return {} if self.config is None else config_to_dict(self.config)

    def get_config_options(self) -> Dict[str, FieldOptions]:
        """Values of fields that are only known while the plugin runs, by field."""
        return {}

    def reconfigure(self, old_config: Optional[Dict[str, Any]], new_config: Optional[Dict[str, Any]]) -> None:
        """A hot update: free what the changed fields invalidate, then take the new values."""
        self.reconfigure_with_triggers(old_config or {}, new_config or {})
        apply = getattr(self, "_apply_config", self.initialize)
        apply(new_config or {})

    def fields_that_changed(self, old: Dict[str, Any], new: Dict[str, Any]) -> Set[str]:
        return {key for key in {*old, *new} if old.get(key) != new.get(key)}

    def reconfigure_with_triggers(self, old_config: Dict[str, Any], new_config: Dict[str, Any]) -> None:
        """Call ``_release_<trigger>()`` once for each RELOAD_TRIGGER of a field that changed."""
        if self.config_class is None or not dataclasses.is_dataclass(self.config_class):
            return
        changed = self.fields_that_changed(old_config, new_config)
        named = (f.metadata.get(RELOAD_TRIGGER) for f in dataclasses.fields(self.config_class) if f.name in changed)
        for trigger in sorted({str(trigger) for trigger in named if trigger}):
            release = getattr(self, "_release_" + trigger, None)
            if callable(release):
                release()

    def cleanup(self) -> None:
        """Close what must be closed; the process ends after it."""

    # -- one job --------------------------------------------------------------------

    def report_progress(self, progress: float, message: str = "") -> None:
        """How far the job is: 0 to 1, or -1 when nobody knows."""
        cjmworker.report_progress(progress, message)

    def heartbeat(self, phase: str, *, interval: float = 0.5, progress: Optional[float] = None) -> ContextManager[None]:
        """``with self.heartbeat("loading"):`` around one long call that reports nothing."""
        return cjmworker.heartbeat(phase, interval=interval, progress=progress)

    def report_usage(self, usage: Dict[str, float]) -> None:
        """What this job used of a paid service, in units of its own: ``{"tokens": 120}``."""
        self._last_api_usage = dict(usage)

    def cancel(self) -> None:
        """Somebody wants the running job to stop. Called from another thread; overrides
        call ``super().cancel()``."""
        self._cancel_requested = True
        for callback in list(self._cancel_callbacks or ()):
            try:
                callback()
            except Exception:
                _logger.warning("a cancel callback failed", exc_info=True)

    def check_cancel(self) -> None:
        """Raise Cancelled when somebody wants the job to stop."""
        if self._cancel_requested:
            raise cjmworker.Cancelled("the job was cancelled")
        cjmworker.check_cancel()

    def register_cancel_callback(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` at each cancel, from another thread."""
        if self._cancel_callbacks is None:
            self._cancel_callbacks = []
        self._cancel_callbacks.append(callback)

    @contextmanager
    def cancel_signal_to(self, callback: Callable[[], None]) -> Iterator[None]:
        """``with self.cancel_signal_to(process.terminate):`` while something blocks."""
        self.register_cancel_callback(callback)
        try:
            yield
        finally:
            if self._cancel_callbacks and callback in self._cancel_callbacks:
                self._cancel_callbacks.remove(callback)

    # -- several actions behind one execute ---------------------------------------------

    def dispatch_to_action(self, action: str, **kwargs: Any) -> Any:
        """Call the method that ``@plugin_action(action)`` marks."""
        for cls in type(self).__mro__:
            for method in vars(cls).values():
                if getattr(method, "_plugin_action", None) == action:
                    return method(self, **kwargs)
        known = ", ".join(sorted(collect_plugin_actions(type(self))))
        raise UserInputError("unknown action %r; there is %s" % (action, known), fields=["action"])


def plugin_action(action_name: str) -> Callable[[_F], _F]:
    """Mark a method as what does ``action_name``."""

    def mark(method: _F) -> _F:
        method._plugin_action = action_name  # type: ignore[attr-defined]
        return method

    return mark


def collect_plugin_actions(cls: type) -> Set[str]:
    """The actions of a class and its bases."""
    marks = (getattr(value, "_plugin_action", None) for base in cls.__mro__ for value in vars(base).values())
    return {mark for mark in marks if isinstance(mark, str)}


class TaskAdapter(ABC):
    """Gives plugins of a certain shape typed methods for one task: made with the plugin
    as its one argument, found by ``task_name``. Jobs call it by ``task`` and ``method``."""

    task_name: ClassVar[str] = ""

    def __init__(self, tool: Any) -> None:
        self.tool = tool
