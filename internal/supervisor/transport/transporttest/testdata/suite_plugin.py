"""The plugin that the conformance suite of the transports calls.

It has no base class and imports its base library's errors only where there is
one, so that the same file runs on the native runtime and under every release of
the HTTP workers.
"""
import builtins
import importlib
import os
import threading
import time


def _errors():
    for name in ("cjm_substrate.core.errors", "cjm_plugin_system.core.errors"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _error(category, message, retriable):
    lib = _errors()
    names = {"user_input": "Input", "transient": "Transient", "resource": "Resource", "fatal": "Fatal"}
    for prefix in ("Capability", "Plugin"):
        cls = getattr(lib, "%s%sError" % (prefix, names.get(category, "")), None)
        if cls is not None:
            return cls(message)
    error = type("SuiteError", (Exception,), {})(message)
    error.category, error.retriable = category, retriable
    return error


class SuiteCancelledError(Exception):
    category = "cancelled"


class SuitePlugin:
    name = "suite-plugin"  # another than its manifest's, as many have
    version = "1.2.3"

    def __init__(self):
        self._config = {}
        self._stop = threading.Event()
        self._progress = 0.0
        self._status_message = ""
        self.inits = 0

    def report_progress(self, progress, message=""):
        self._progress, self._status_message = progress, message

    def initialize(self, config=None):
        if (config or {}).get("refuse"):
            raise ValueError("refused: %s" % config["refuse"])
        self.inits += 1
        self._config = dict(config or {})

    def get_config_schema(self):
        return {"type": "object", "properties": {"speed": {"type": "integer"}}}

    def get_current_config(self):
        return self._config

    def cleanup(self):
        print("cleaned up", flush=True)

    def cancel(self):
        self._stop.set()

    def execute(self, *args, op="echo", **kwargs):
        self._stop.clear()
        if op == "echo":
            return {"args": list(args), "kwargs": kwargs}
        return getattr(self, "_" + op)(**kwargs)

    def execute_stream(self, *args, op="count", to=0, **kwargs):
        self._stop.clear()
        if op == "count":
            for n in range(1, to + 1):
                yield n
        elif op == "die":
            for n in range(1, to + 1):
                yield n
            os._exit(3)
        elif op == "yields":
            yield from kwargs["values"]
            if kwargs.get("nan"):
                yield float("nan")
            if "fail" in kwargs:
                raise RuntimeError(kwargs["fail"])
        elif op == "fail":
            for n in range(1, to + 1):
                yield n
            self._fail(**kwargs)
        elif op == "wait":
            for n in range(1, to + 1):
                yield n
            self._wait(**kwargs)
        else:
            yield self.execute(*args, op=op, **kwargs)

    def _fail(self, category="fatal", message="", retriable=False):
        raise _error(category, message, retriable)

    def _wait(self, deaf=False, message="waiting"):
        self.report_progress(0.25, message)
        while deaf or not self._stop.is_set():
            time.sleep(0.01)
        raise SuiteCancelledError("stopped")

    def _big(self, bytes=0):
        return "x" * bytes

    def _die(self):
        os._exit(3)

    def _sleep(self, seconds=0):
        time.sleep(seconds)
        return "slept"

    def _raises(self, name):
        raise {"SuiteCancelledError": SuiteCancelledError}.get(name) or getattr(builtins, name)("raised")

    def _not_a_number(self):
        return float("nan")

    def _environ(self, name):
        return os.environ.get(name)

    def _init_count(self):
        return {"inits": self.inits, "config": self._config}

    def _pid(self):
        return os.getpid()
