"""As in the first releases: progress is stored, a cancel does nothing."""
from abc import ABC, abstractmethod


class PluginInterface(ABC):
    @property
    @abstractmethod
    def name(self): ...

    @property
    @abstractmethod
    def version(self): ...

    @abstractmethod
    def initialize(self, config=None): ...

    @abstractmethod
    def execute(self, *args, **kwargs): ...

    def execute_stream(self, *args, **kwargs):
        yield self.execute(*args, **kwargs)

    @abstractmethod
    def get_config_schema(self): ...

    @abstractmethod
    def get_current_config(self): ...

    @abstractmethod
    def cleanup(self): ...

    def cancel(self):
        pass

    def report_progress(self, progress, message=""):
        self._progress = progress
        self._status_message = message
