"""A tool has no execute; a cancel sets a flag, calls callbacks, and is never undone."""
from abc import ABC
from contextlib import contextmanager

from .errors import CapabilityCancelledError


class ToolCapability(ABC):
    _cancel_requested = False

    def execute_stream(self, *args, **kwargs):
        yield self.execute(*args, **kwargs)

    def get_config_options(self):
        return {}

    def cleanup(self):
        pass

    def prefetch(self):
        pass

    def reconfigure(self, old_config, new_config):
        """As the first releases that had it: frees what the change touches, applies nothing."""

    def cancel(self):
        self._cancel_requested = True
        for callback in list(getattr(self, "_cancel_callbacks", ())):
            callback()

    def check_cancel(self):
        if self._cancel_requested:
            raise CapabilityCancelledError(self.name)

    def report_usage(self, usage):
        self._last_api_usage = dict(usage)

    def report_progress(self, progress, message=""):
        self._progress = progress
        self._status_message = message

    @contextmanager
    def heartbeat(self, phase, *, interval=0.5, progress=None):
        yield
