"""Plugins that tell the state of the machine."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Dict, List, Type, TypeVar

from .errors import UserInputError
from .plugin import PluginInterface

_S = TypeVar("_S", bound="_Stats")


class _Stats:
    __dataclass_fields__: ClassVar[Dict[str, Any]]

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls: Type[_S], data: Dict[str, Any]) -> _S:
        """What is unknown is left out."""
        names = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in names})


@dataclass
class SystemStats(_Stats):
    """One reading. Memory is in MiB; free, total and used are sums over the devices,
    the load is that of the busiest."""

    cpu_percent: float = 0.0
    memory_used_mb: float = 0.0
    memory_total_mb: float = 0.0
    memory_available_mb: float = 0.0
    gpu_type: str = "None"  # NVIDIA, AMD, Intel, None
    gpu_free_memory_mb: float = 0.0
    gpu_total_memory_mb: float = 0.0
    gpu_used_memory_mb: float = 0.0
    gpu_load_percent: float = 0.0
    details: Dict[str, Any] = field(default_factory=dict)


@dataclass
class ProcessStats(_Stats):
    """What one process holds on a device."""

    pid: int = 0
    gpu_index: int = -1  # unknown
    gpu_memory_mb: float = 0.0
    command: str = ""


class MonitorPlugin(PluginInterface):
    """Override ``get_system_status`` (and ``list_processes``), or ``execute`` with a command
    as older monitors did; each calls the other, so one of them must be there."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.execute is MonitorPlugin.execute and cls.get_system_status is MonitorPlugin.get_system_status:
            raise TypeError("%s must override get_system_status() or execute()" % cls.__name__)

    def get_system_status(self) -> SystemStats:
        found = self.execute(command="get_system_status")
        return found if isinstance(found, SystemStats) else SystemStats.from_dict(found)

    def list_processes(self) -> List[ProcessStats]:
        """Who holds memory of a device; empty when nobody can tell."""
        return []

    def execute(self, command: str = "get_system_status", **kwargs: Any) -> Any:
        if command == "get_system_status":
            return self.get_system_status().to_dict()
        if command == "list_processes":
            return [process.to_dict() for process in self.list_processes()]
        raise UserInputError("unknown command %r; there is get_system_status, list_processes" % command, fields=["command"])
