"""Plugins of the Python predecessor, unmodified: their own base library, our runtime.

The libraries are stand-ins (tests/older) unless CJM_OLDER_PYTHONS names interpreters
that have the published ones; then the same tests run on those, too.
"""
from __future__ import annotations

import os
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any, Dict, List

from .harness import SDK, Worker, WorkerTest

STAND_INS = str(Path(__file__).parent / "older")

FIRST = """
import os, tempfile, time
from cjm_plugin_system.core.interface import PluginInterface

class Audio:
    def to_temp_file(self):
        fd, path = tempfile.mkstemp(suffix=".wav")
        os.write(fd, b"RIFF")
        os.close(fd)
        return path

class Plugin(PluginInterface):
    def __init__(self):
        self.config = None

    @property
    def name(self): return "first"

    @property
    def version(self): return "0.0.9"

    def initialize(self, config=None):
        self.config = {"size": 1, **(config or {})}

    def execute(self, action="echo", *args, **kwargs):
        if action == "progress":
            self.report_progress(0.5, "half")
            return [self._progress, self._status_message]
        if action == "file":
            return {"audio": Audio()}
        if action == "sleep":
            time.sleep(60)
        return {"action": action, "args": args, "kwargs": kwargs, "dirs": {k: os.environ.get(k) for k in ("CJM_JOB_DIR",)}}

    def get_config_schema(self):
        return {"type": "object", "properties": {"size": {"type": "integer", "default": 1}}}

    def get_current_config(self): return self.config

    def cleanup(self): pass
"""

TOOL = """
import dataclasses, os, time
from cjm_substrate.core.capability import ToolCapability
from cjm_substrate.core.adapter import TaskAdapter
from cjm_substrate.core.errors import CapabilityInputError, CapabilityTransientError
from cjm_substrate.core.wire import get_call_envelope, wire_type

@wire_type("test.summary")
@dataclasses.dataclass
class Summary:
    text: str

@dataclasses.dataclass
class Plain:
    text: str

class Plugin(ToolCapability):
    name = property(lambda self: "tool")
    version = property(lambda self: "1.0")

    def initialize(self, config=None):
        self.config = dict(config or {})

    def get_config_schema(self): return {"type": "object", "properties": {"model": {"type": "string"}}}
    def get_current_config(self): return self.config
    def get_config_options(self): return {"model": {"options": [{"value": "a", "label": "A", "metadata": {}}], "constraints": {}}}
    def on_disable(self): self.config["disabled"] = True
    def on_enable(self): self.config["disabled"] = False
    def state(self): return {"config": self.config, "cancel": self._cancel_requested}
    def summarise(self, text): return Summary(text)
    def plain(self, text): return Plain(text)
    def who(self):
        found = get_call_envelope()
        return None if found is None else [found.job_id, found.actor, found.control]
    def fail(self, kind):
        if kind == "input":
            raise CapabilityInputError("no such file", fields_invalid=["path"])
        if kind == "busy":
            raise CapabilityTransientError("busy", retry_after_seconds=2.5)
        raise RuntimeError(kind)
    def wait(self):
        told = []
        self.register_cancel_callback(lambda: told.append("callback")) if hasattr(self, "register_cancel_callback") else None
        while True:
            self.report_progress(-1, "waiting")
            self.check_cancel()
            time.sleep(0.005)
    def bill(self):
        self.report_usage({"tokens": 12})
    def load(self):
        with self.heartbeat("loading", interval=0.02):
            while os.path.exists(self.config["model"]):
                time.sleep(0.005)

class Summaries(TaskAdapter):
    task_name = "summary"
    required_tool_protocol = None

    def __init__(self, tool): self.tool = tool
    def summarise(self, text): return self.tool.summarise(text.upper())
    def each(self, texts):
        for text in texts:
            yield self.tool.summarise(text)
"""


def have(module: str) -> List[str]:
    """The interpreters on which to run: this one, and those that have the real library."""
    found = [""]
    for python in filter(None, os.environ.get("CJM_OLDER_PYTHONS", "").split(os.pathsep)):
        if subprocess.run([python, "-c", "import " + module], capture_output=True).returncode == 0:
            found.append(python)
    return found


class OlderTest(WorkerTest):
    library = ""
    source = ""

    def each(self, config: Any = None, **hello: Any) -> List[Worker]:
        """A loaded worker for each interpreter."""
        found = []
        for python in have(self.library):
            options: Dict[str, Any] = {"python": python or sys.executable}
            if not python:
                options["env"] = {"PYTHONPATH": os.pathsep.join([str(SDK), "{dir}", STAND_INS])}
            found.append(self.loaded(self.source, config, options, **hello))
        return found


class FirstGeneration(OlderTest):
    library = "cjm_plugin_system.core.interface"
    source = FIRST

    def test_loaded_with_its_config_and_described(self) -> None:
        for w in self.each({"size": 3}):
            self.assertEqual(w.ask("config").json(), {"size": 3})
            self.assertEqual(w.ask("schema").json()["properties"]["size"]["default"], 1)
            self.assertEqual(w.execute("a", "x", 1, k=2).json()["args"], [1])

    def test_stored_progress_is_pushed_and_can_be_read_back(self) -> None:
        for w in self.each():
            self.assertEqual(w.execute("a", "progress").json(), [0.5, "half"])
            self.assertEqual(w.said("progress")[0].params, {"job": "a", "fraction": 0.5, "message": "half"})

    def test_stream_falls_back_to_one_chunk(self) -> None:
        for w in self.each():
            self.assertEqual(w.execute("a", "x", stream=True).json(), {"chunks": 1})

    def test_file_backed_results_move_into_the_jobs_directory(self) -> None:
        for w in self.each():
            folder = w.dir / "job"
            folder.mkdir()
            path = w.execute("a", "file", dir=str(folder)).json()["audio"]
            self.assertEqual(os.path.dirname(path), str(folder))
            self.assertEqual(Path(path).read_bytes(), b"RIFF")
            self.assertEqual(w.execute("b", "x", dir=str(folder)).json()["dirs"]["CJM_JOB_DIR"], str(folder))
            self.assertIsNone(w.execute("c", "x").json()["dirs"]["CJM_JOB_DIR"])

    def test_a_plugin_that_ignores_cancel_is_interrupted_and_lives(self) -> None:
        for w in self.each():
            call = w.start("a", "sleep")
            self.assertTrue(w.answer(w.cancel("a")).result["accepted"])
            w.answer(w.cancel("a", "interrupt"))
            self.assertEqual(w.answer(call).error["data"]["category"], "cancelled")
            self.assertEqual(w.execute("b", "x").json()["action"], "x")

    def test_hot_update(self) -> None:
        for w in self.each({"size": 3}):
            self.assertEqual(w.ask("configure", {}, b'{"old": {"size": 3}, "new": {"size": 4}}').header["result"].keys(), {"applied"})
            self.assertEqual(w.ask("config").json(), {"size": 4})


class Today(OlderTest):
    library = "cjm_substrate.core.capability"
    source = TOOL
    adapters = ["subject:Summaries"]

    def test_typed_results_travel_in_their_envelope(self) -> None:
        for w in self.each(adapters=self.adapters):
            wire = {"__wire__": "test.summary", "data": {"text": "AB"}}
            self.assertEqual(w.task("a", "summary", "summarise", text="ab").json(), wire)
            self.assertEqual(w.task("b", "", "plain", text="ab").json(), {"text": "ab"})
            w.task("c", "summary", "each", stream=True, texts=["x"])
            self.assertEqual(w.said("chunk", job="c")[0].payload, b'{"__wire__":"test.summary","data":{"text":"x"}}')

    def test_a_tool_without_execute_says_so(self) -> None:
        for w in self.each(adapters=self.adapters):
            for stream in (False, True):
                error = w.execute("a", stream=stream).error
                self.assertEqual(error["data"]["category"], "user_input")
                self.assertIn("name one of its tasks: summary", error["message"])

    def test_the_call_is_known_to_the_library_and_forgotten_after_it(self) -> None:
        for w in self.each():
            envelope = {"actor": "me", "control": {"force": True}, "new": 1}
            self.assertEqual(w.task("a", "", "who", envelope=envelope).json(), ["a", "me", {"force": True}])
            self.assertEqual(w.task("b", "", "who").json(), ["b", None, {}])

    def test_errors_keep_their_category_by_class_name(self) -> None:
        for w in self.each():
            data = w.task("a", "", "fail", kind="input").error["data"]
            self.assertEqual((data["category"], data["retriable"], data["fields"]), ("user_input", False, ["path"]))
            data = w.task("b", "", "fail", kind="busy").error["data"]
            self.assertEqual((data["category"], data["retriable"], data["retry_after"]), ("transient", True, 2.5))
            self.assertEqual(w.task("c", "", "fail", kind="x").error["data"]["category"], "fatal")

    def test_a_cancel_that_is_obeyed_ends_cancelled_and_leaves_no_flag(self) -> None:
        for w in self.each():
            call = w.send("execute", {"job": "a", "method": "wait"}, b'{"args": [], "kwargs": {}}')
            w.until(lambda f: f.method == "progress" and f.params.get("job") == "a")
            w.cancel("a")
            answer = w.answer(call)
            self.assertEqual((answer.error["code"], answer.error["data"]["category"]), (-32002, "cancelled"))
            self.assertEqual(w.task("b", "", "state").json()["cancel"], False)

    def test_reconfigure_is_applied_whatever_the_library_does(self) -> None:
        for w in self.each({"model": "a"}):
            answer = w.ask("configure", {}, b'{"old": {"model": "a"}, "new": {"model": "b"}}')
            self.assertIn(answer.result["applied"], ("initialized", "reconfigured"))
            self.assertEqual(w.ask("config").json(), {"model": "b"})

    def test_the_other_hooks(self) -> None:
        for w in self.each({"model": "a"}):
            self.assertEqual(w.ask("options").json()["model"]["options"][0]["value"], "a")
            w.ask("disable")
            self.assertEqual(w.ask("config").json()["disabled"], True)
            w.ask("enable")
            self.assertEqual(w.ask("config").json()["disabled"], False)
            self.assertEqual(w.ask("prefetch").result, {})
            self.assertEqual(w.ask("release").error["code"], -32001)
            names = {method["name"] for method in w.ask("surface").json()["methods"]}
            self.assertLessEqual({"summarise", "wait", "get_config_options"}, names)

    def test_usage_of_a_paid_service_is_in_the_stats_until_the_next_call(self) -> None:
        for w in self.each():
            w.task("a", "", "bill")
            self.assertEqual(w.ask("stats").json()["api_usage"], {"tokens": 12})
            w.task("b", "", "state")
            self.assertNotIn("api_usage", w.ask("stats").json())

    def test_the_librarys_heartbeat_is_pushed(self) -> None:
        for w in self.each():
            held = w.dir / "held"
            held.write_text("")
            w.ask("configure", {}, b'{"old": {}, "new": {"model": "%s"}}' % str(held).encode())
            call = w.send("execute", {"job": "a", "method": "load"}, b'{"args": [], "kwargs": {}}')
            w.until(lambda f: f.method == "progress" and f.params["message"].startswith("loading ("))
            held.unlink()
            self.assertIn("result", w.answer(call).header)


if __name__ == "__main__":
    unittest.main()
