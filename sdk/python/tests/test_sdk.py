"""What authors import: the base classes, the monitor, and running a plugin without a daemon."""
from __future__ import annotations

import os
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Dict

from .harness import SDK, wait_gone
import cjmd
from cjmd.testing import JobError, Worker, WorkerDied, run
from .sample_plugin import Greeter

HERE = "tests.sample_plugin"


class Interface(unittest.TestCase):
    def test_the_configuration_comes_from_a_dataclass(self) -> None:
        plugin = Greeter()
        plugin.initialize({"greeting": "hi"})
        self.assertEqual(plugin.get_current_config(), {"greeting": "hi", "model": "tiny"})
        self.assertEqual(plugin.get_config_schema()["properties"]["model"]["enum"], ["tiny", "base"])
        with self.assertRaisesRegex(cjmd.ConfigError, "model: 'huge' is not one of") as caught:
            plugin.initialize({"model": "huge"})
        self.assertEqual(caught.exception.fields, ["model"])
        with self.assertRaisesRegex(ValueError, "Unknown config keys for Config"):
            plugin.initialize({"modle": "tiny"})

    def test_without_a_config_class_the_configuration_is_a_dict(self) -> None:
        class Bare(cjmd.PluginInterface):
            def execute(self) -> Any:
                return self.config

        plugin = Bare()
        self.assertEqual((plugin.get_current_config(), plugin.get_config_schema(), plugin.name), ({}, {}, "Bare"))
        plugin.initialize({"a": 1})
        self.assertEqual((plugin.execute(), list(plugin.execute_stream())), ({"a": 1}, [{"a": 1}]))

    def test_a_hot_update_releases_what_the_change_touches(self) -> None:
        plugin = Greeter()
        plugin.released = []
        plugin.initialize({})
        plugin.reconfigure({"greeting": "a", "model": "tiny"}, {"greeting": "b", "model": "tiny"})
        self.assertEqual(plugin.released, [])
        plugin.reconfigure({"greeting": "b", "model": "tiny"}, {"greeting": "b", "model": "base"})
        self.assertEqual((plugin.released, plugin.config.model), (["tiny"], "base"))

    def test_execute_must_be_there(self) -> None:
        with self.assertRaises(TypeError):
            type("Empty", (cjmd.PluginInterface,), {})()

    def test_cancel_sets_the_flag_and_calls_back_whatever_a_callback_does(self) -> None:
        plugin = Greeter()
        told = []

        def bad() -> None:
            raise RuntimeError("no")

        plugin.register_cancel_callback(bad)
        with plugin.cancel_signal_to(lambda: told.append(1)):
            with self.assertLogs("cjmd.plugin", "WARNING"):
                plugin.cancel()
        self.assertEqual(told, [1])
        with self.assertRaises(cjmd.Cancelled):
            plugin.check_cancel()
        with self.assertLogs("cjmd.plugin", "WARNING"):
            plugin.cancel()
        self.assertEqual(told, [1])

    def test_actions(self) -> None:
        class Actions(cjmd.PluginInterface):
            def execute(self, action: str = "add", **kwargs: Any) -> Any:
                return self.dispatch_to_action(action, **kwargs)

            @cjmd.plugin_action("add")
            def _add(self, a: int = 1) -> int:
                return a + 1

        class More(Actions):
            @cjmd.plugin_action("sub")
            def _sub(self) -> int:
                return 0

        self.assertEqual(cjmd.collect_plugin_actions(More), {"add", "sub"})
        self.assertEqual((More().execute(a=2), More().execute("sub")), (3, 0))
        with self.assertRaisesRegex(cjmd.UserInputError, "unknown action 'mul'; there is add, sub"):
            More().execute("mul")

    def test_file_backed_values_are_known_by_their_method(self) -> None:
        self.assertIsInstance(Greeter().file(), cjmd.FileBackedDTO)
        self.assertNotIsInstance("path", cjmd.FileBackedDTO)

    def test_older_names_of_the_errors(self) -> None:
        from cjmd import errors

        self.assertIs(errors.PluginInputError, cjmd.UserInputError)
        self.assertEqual(errors.PluginTimeoutError("x").category, "timeout")
        self.assertTrue(issubclass(errors.PluginConfigError, ValueError))


class Monitors(unittest.TestCase):
    def test_typed(self) -> None:
        class Typed(cjmd.MonitorPlugin):
            def get_system_status(self) -> cjmd.SystemStats:
                return cjmd.SystemStats(cpu_percent=5, gpu_type="NVIDIA")

            def list_processes(self) -> Any:
                return [cjmd.ProcessStats(pid=1)]

        monitor = Typed()
        self.assertEqual(monitor.execute()["gpu_type"], "NVIDIA")
        self.assertEqual(monitor.execute("list_processes"), [{"pid": 1, "gpu_index": -1, "gpu_memory_mb": 0.0, "command": ""}])
        with self.assertRaisesRegex(cjmd.UserInputError, "unknown command 'x'"):
            monitor.execute("x")

    def test_dispatcher(self) -> None:
        class Dispatcher(cjmd.MonitorPlugin):
            def execute(self, command: str = "get_system_status", **kwargs: Any) -> Dict[str, Any]:
                return {"cpu_percent": 7.0, "unheard_of": 1}

        self.assertEqual(Dispatcher().get_system_status().cpu_percent, 7.0)
        self.assertEqual(Dispatcher().list_processes(), [])

    def test_one_of_the_two_must_be_there(self) -> None:
        with self.assertRaisesRegex(TypeError, "Neither must override"):
            type("Neither", (cjmd.MonitorPlugin,), {})

    def test_defaults(self) -> None:
        stats = cjmd.SystemStats().to_dict()
        self.assertEqual((stats.pop("gpu_type"), stats.pop("details")), ("None", {}))
        self.assertEqual(set(stats.values()), {0.0})
        self.assertEqual(len(stats), 8)


class InProcess(unittest.TestCase):
    def test_run(self) -> None:
        result = run(Greeter, "you", config={"greeting": "hi"}, extra=Path("/x"))
        self.assertEqual(result.value, {"text": "hi you", "kwargs": {"extra": "/x"}})
        self.assertEqual(result.progress, [(0.5, "half")])
        streamed = run(HERE + ":Greeter", "a", "b", stream=True)
        self.assertEqual((streamed.chunks, streamed.value), (["A", "B"], 2))

    def test_tasks_and_methods(self) -> None:
        self.assertEqual(run(Greeter, task="upper", who="you", adapters=[HERE + ":Upper"]).value, "HELLO YOU")

    def test_errors_are_those_of_the_daemon_with_the_plugins_as_their_cause(self) -> None:
        with self.assertRaisesRegex(JobError, "^no$") as caught:
            run(Greeter, method="fail", message="no")
        error = caught.exception
        self.assertEqual((error.category, error.type, error.fields), ("user_input", "UserInputError", ["message"]))
        self.assertIsInstance(error.__cause__, cjmd.UserInputError)
        with self.assertRaisesRegex(JobError, "result is a .*, which has no JSON form"):
            run(type("Bad", (), {"execute": lambda self: object()}))

    def test_a_file_lands_in_the_jobs_directory(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = run(Greeter, method="file", job_dir=folder).value
            self.assertEqual((os.path.dirname(path), Path(path).read_text()), (folder, "content"))

    def test_it_leaves_nothing_behind(self) -> None:
        threads = threading.active_count()
        run(Greeter, "x")
        self.assertEqual(threading.active_count(), threads)
        self.assertIsNone(cjmd.job_id())


class InAWorker(unittest.TestCase):
    def worker(self, **options: Any) -> Worker:
        made = Worker(HERE + ":Greeter", path=[str(SDK)], **options)
        self.addCleanup(made.close)
        return made

    def test_execute_stream_task_and_hot_update(self) -> None:
        w = self.worker(config={"greeting": "hi"}, adapters=[HERE + ":Upper"])
        self.assertEqual(w.ready["name"], "greeter")
        self.assertEqual(w.execute("you")["text"], "hi you")
        self.assertEqual(w.stream("a", "b"), ["A", "B"])
        self.assertEqual(w.task("upper", who="you"), "HI YOU")
        self.assertEqual(w.configure({"greeting": "hi", "model": "tiny"}, {"greeting": "ho", "model": "tiny"}), "reconfigured")
        self.assertEqual(w.request("config"), {"greeting": "ho", "model": "tiny"})
        self.assertEqual(w.request("surface")["tasks"][0]["task"], "upper")

    def test_progress_logs_and_errors(self) -> None:
        w = self.worker()
        call = w.start("you")
        self.assertEqual(call.wait_progress(), (0.5, "half"))
        call.result()
        call = w.start(method="shout")
        call.result()
        self.assertEqual([record["message"] for record in call.logs], ["printed"])
        with self.assertRaises(JobError) as caught:
            w.task("", "fail", message="no")
        self.assertEqual((caught.exception.category, caught.exception.fields), ("user_input", ["message"]))
        self.assertIn("sample_plugin.py", caught.exception.traceback)

    def test_cancel_in_both_ways(self) -> None:
        w = self.worker()
        for method, mode in (("wait", "cooperative"), ("deaf", "interrupt")):
            call = w.start(method=method)
            call.wait_progress()
            call.cancel(mode)
            with self.assertRaises(JobError) as caught:
                call.result()
            self.assertEqual(caught.exception.category, "cancelled")
        self.assertEqual(w.execute("you")["text"], "hello you")

    def test_a_worker_that_dies_says_its_last_words(self) -> None:
        w = self.worker()
        w.task("", "flood")
        with self.assertRaisesRegex(WorkerDied, "(?s)exit code 9.*last words"):
            w.task("", "die")
        with self.assertRaises(WorkerDied):
            w.execute("you")

    def test_a_plugin_that_does_not_load(self) -> None:
        with self.assertRaisesRegex(JobError, "did you mean Greeter"):
            Worker(HERE + ":Greter", path=[str(SDK)])
        with self.assertRaisesRegex(JobError, "model: 'huge' is not one of"):
            self.worker(config={"model": "huge"})

    def test_closing_ends_the_process(self) -> None:
        w = self.worker()
        w.close()
        self.assertTrue(wait_gone([w.process.pid])[0])

    def test_a_class_of_the_running_script_cannot_be_imported_there(self) -> None:
        with self.assertRaisesRegex(ValueError, "define it in a module"):
            Worker(type("Local", (), {"__module__": "__main__"}))


if __name__ == "__main__":
    unittest.main()
