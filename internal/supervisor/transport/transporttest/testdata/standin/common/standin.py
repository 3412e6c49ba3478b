"""The HTTP worker of the Python system as a client sees it, in the standard
library: three ages, each with its endpoints, its errors and its traps."""
import importlib
import json
import os
import sys
import threading
import traceback

FIRST = {"/health", "/stats", "/initialize", "/config_schema", "/config", "/execute", "/execute_stream", "/cancel", "/progress", "/cleanup"}
TYPED = FIRST | {"/on_disable", "/on_enable", "/prefetch", "/reconfigure", "/get_system_status", "/list_processes", "/config_options",
                 "/structural_surface", "/task"}


class App:
    def __init__(self, age, title, module_name, class_name, adapter_specs=()):
        try:
            self.plugin = getattr(importlib.import_module(module_name), class_name)()
        except Exception as e:
            print("FATAL: Failed to load %s:%s - %s" % (module_name, class_name, e))
            sys.exit(1)
        self.first = age == "first"
        self.title = title
        self.paths = FIRST if self.first else TYPED
        self.adapters = {}
        for spec in adapter_specs or []:
            module, name = spec.split(":")
            cls = getattr(importlib.import_module(module), name)
            self.adapters[cls.task_name] = cls(self.plugin)
        self.loop = threading.Lock()  # what runs on the event loop holds it, and every request needs it for a moment

    def shutdown(self):
        if not self.first:
            self.plugin.cleanup()

    def handle(self, http, method, path, body):
        with self.loop:
            pass
        if path == "/openapi.json":
            return self.json(http, {"info": {"title": self.title}, "paths": {p: {} for p in self.paths}})
        if path not in self.paths:
            return self.json(http, {"detail": "Not Found"}, 404)
        try:
            getattr(self, "do_" + path[1:])(http, body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except Exception:
            traceback.print_exc()
            http.reply(500, b"Internal Server Error", "text/plain")

    def json(self, http, value, status=200, headers=()):
        if isinstance(value, float) and value != value:
            raise ValueError("Out of range float values are not JSON compliant")
        http.reply(status, json.dumps(value, ensure_ascii=False).encode(), headers=headers)

    def do_health(self, http, body):
        self.json(http, {"status": "running", "pid": os.getpid(), "name": self.plugin.name, "version": self.plugin.version})

    def do_stats(self, http, body):
        self.json(http, {"pid": os.getpid(), "cpu_percent": 0.0, "memory_rss_mb": 1.0})

    def do_initialize(self, http, body):
        with self.loop:
            try:
                self.plugin.initialize(json.loads(body))
            except Exception as e:
                return self.json(http, {"detail": str(e)}, 400)
        self.json(http, {"status": "ok"})

    def do_reconfigure(self, http, body):
        data = json.loads(body)
        how = data["new_config"].get("reconfigure")
        if how == "lie":  # the base class' own, which does nothing
            return self.json(http, {"status": "reconfigured"})
        if how != "yes":
            return self.json(http, {"status": "not_supported"})
        with self.loop:
            self.plugin._config = data["new_config"]
        self.json(http, {"status": "reconfigured"})

    def do_config_schema(self, http, body):
        self.json(http, self.plugin.get_config_schema())

    def do_config(self, http, body):
        self.json(http, self.plugin.get_current_config())

    def do_config_options(self, http, body):
        self.json(http, {"speed": {"options": [{"value": 1, "label": "slow"}]}})

    def do_structural_surface(self, http, body):
        self.json(http, {"methods": [{"name": "execute"}], "properties": [], "attributes": []})

    def do_prefetch(self, http, body):
        self.json(http, {"status": "not_supported"})

    def do_on_enable(self, http, body):
        self.json(http, {"status": "enabled"})

    def do_on_disable(self, http, body):
        self.json(http, {"status": "error", "detail": "cannot let go"})

    def do_get_system_status(self, http, body):
        self.json(http, {"detail": "not a monitor"}, 404)

    def do_list_processes(self, http, body):
        self.json(http, {"detail": "not implemented"}, 501)

    def do_cancel(self, http, body):
        self.plugin.cancel()
        self.json(http, {"status": "cancelled"})

    def do_progress(self, http, body):
        self.json(http, {"progress": self.plugin._progress, "message": self.plugin._status_message})

    def do_cleanup(self, http, body):
        self.plugin.cleanup()
        self.json(http, {"status": "cleaned"})

    def do_execute(self, http, body):
        data = json.loads(body)
        call = lambda: self.plugin.execute(*data.get("args", []), **data.get("kwargs", {}))
        if not self.first:
            return self.answer(http, call)
        with self.loop:  # the first release calls the plugin on the event loop
            try:
                result = call()
            except Exception as e:
                traceback.print_exc()
                return self.json(http, {"detail": str(e)}, 500)
        self.json(http, result)

    def do_task(self, http, body):
        data = json.loads(body)
        adapter = self.adapters.get(data["task"])
        if adapter is None:
            return self.json(http, {"detail": "No adapter bound for task %r" % data["task"]}, 404)
        account = [{"event_type": "task_account", "payload": {"task": data["task"], "job": data["envelope"].get("job_id"), "actor": data["envelope"].get("actor")}}]
        self.answer(http, lambda: getattr(adapter, data["method"])(**data["kwargs"]), [("X-CJM-Accounts", json.dumps(account))])

    def answer(self, http, call, headers=()):
        try:
            result = call()
        except Exception as e:
            if type(e).__name__.endswith("CancelledError"):
                return self.json(http, {"detail": str(e)}, 409)
            return self.json(http, {"_job_error": job_error(e)}, 500, headers)
        self.json(http, result, 200, headers)

    def do_execute_stream(self, http, body):
        data = json.loads(body)

        def lines():
            try:
                for chunk in self.plugin.execute_stream(*data.get("args", []), **data.get("kwargs", {})):
                    yield json.dumps(chunk).encode() + b"\n"
            except Exception as e:
                error = {"error": str(e)} if self.first else {"_job_error": job_error(e)}
                yield json.dumps(error).encode() + b"\n"

        http.stream(lines())


def job_error(e):
    category = getattr(e, "category", None)
    if category is None:
        category = "user_input" if isinstance(e, (KeyError, TypeError, ValueError)) else "fatal"
    elif category == "cancelled":
        category = "transient"  # the real ones file it there
    return {"category": category, "message": str(e), "retriable": category != "fatal", "original_exc_repr": repr(e),
            "traceback": "".join(traceback.format_exception(type(e), e, e.__traceback__)), "retry_after_seconds": getattr(e, "retry_after_seconds", None)}
