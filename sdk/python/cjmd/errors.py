"""Errors that say what the caller should do, and the older names for them."""
from __future__ import annotations

from cjmworker import Cancelled, FatalError, ResourceError, TransientError, UserInputError, WorkerError


class TimeoutFailure(WorkerError):
    """Something the plugin waited for took too long; the job counts as timed out."""

    category = "timeout"


class ConfigError(UserInputError, ValueError):
    """A configuration with unknown, missing or wrong keys; ``fields`` names them."""


PluginError = WorkerError
PluginInputError = UserInputError
PluginTransientError = TransientError
PluginResourceError = ResourceError
PluginFatalError = FatalError
PluginTimeoutError = TimeoutFailure
PluginConfigError = ConfigError
PluginCancelledError = Cancelled

__all__ = [
    "Cancelled", "ConfigError", "FatalError", "PluginCancelledError", "PluginConfigError", "PluginError",
    "PluginFatalError", "PluginInputError", "PluginResourceError", "PluginTimeoutError", "PluginTransientError",
    "ResourceError", "TimeoutFailure", "TransientError", "UserInputError", "WorkerError",
]  # fmt: skip
