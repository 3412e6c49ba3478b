"""What authors of cjmd plugins import. Standard library only, Python 3.9 or newer.

A plugin needs none of it: any class with ``execute`` is one. This package saves typing
(PluginInterface, MonitorPlugin), makes configurations from dataclasses (validation), and
runs a plugin in a test without a daemon (testing). The functions about the running job
work anywhere in a plugin's code, also below a library that knows nothing of cjmd.
"""
from cjmworker import (
    Cancelled, FatalError, ResourceError, TransientError, UserInputError, WorkerError,
    __version__, cancelled, check_cancel, envelope, heartbeat, job_dir, job_id, report_progress,
)  # fmt: skip

from .errors import ConfigError, TimeoutFailure
from .monitor import MonitorPlugin, ProcessStats, SystemStats
from .plugin import (
    ConfigOption, FieldOptions, FileBackedDTO, PluginInterface, TaskAdapter, collect_plugin_actions, plugin_action,
)  # fmt: skip
from .validation import (
    RELOAD_TRIGGER, SCHEMA_DESC, SCHEMA_ENUM, SCHEMA_FORMAT, SCHEMA_MAX, SCHEMA_MAX_LEN, SCHEMA_MIN, SCHEMA_MIN_LEN,
    SCHEMA_PATTERN, SCHEMA_TITLE, config_to_dict, dataclass_to_jsonschema, dict_to_config, extract_defaults,
    validate_config, validate_field_value,
)  # fmt: skip

__all__ = [
    "RELOAD_TRIGGER", "SCHEMA_DESC", "SCHEMA_ENUM", "SCHEMA_FORMAT", "SCHEMA_MAX", "SCHEMA_MAX_LEN", "SCHEMA_MIN",
    "SCHEMA_MIN_LEN", "SCHEMA_PATTERN", "SCHEMA_TITLE",
    "Cancelled", "ConfigError", "ConfigOption", "FatalError", "FieldOptions", "FileBackedDTO", "MonitorPlugin",
    "PluginInterface", "ProcessStats", "ResourceError", "SystemStats", "TaskAdapter", "TimeoutFailure",
    "TransientError", "UserInputError", "WorkerError", "__version__",
    "cancelled", "check_cancel", "collect_plugin_actions", "config_to_dict", "dataclass_to_jsonschema",
    "dict_to_config", "envelope", "extract_defaults", "heartbeat", "job_dir", "job_id", "plugin_action",
    "report_progress", "validate_config", "validate_field_value",
]  # fmt: skip
