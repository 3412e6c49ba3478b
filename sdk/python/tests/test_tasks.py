"""Adapters, tasks and methods, and what the runtime tells about them."""
from __future__ import annotations

import unittest

from .harness import WorkerTest

TOOL = """
import sys

class Plugin:
    name = "tool"
    limit = 7

    def initialize(self, config):
        self.config = dict(config)

    def count(self, text: str, *, by: str = "word") -> int:
        return len(text.split()) if by == "word" else len(text)

    async def later(self):
        return "later"

    @property
    def size(self):
        raise RuntimeError("properties are not touched")

    def _hidden(self):
        return "hidden"

    def cleanup(self):
        pass


class Summarise:
    task_name = "summarise"

    def __init__(self, tool):
        self.tool = tool

    def run(self, text: str, words: int = 2):
        return {"text": " ".join(text.split()[:words]), "of": self.tool.count(text)}

    def each(self, text: str):
        for word in text.split():
            yield word


class Single:
    task_name = "single"

    def __init__(self, tool):
        pass

    def only(self):
        return "only"


class Nameless:
    def __init__(self, tool):
        pass


class Again(Single):
    pass


class Broken:
    task_name = "broken"

    def __init__(self, tool):
        raise OSError("no weights")
"""
ADAPTERS = ["subject:Summarise", "subject:Single"]


class TaskCalls(WorkerTest):
    def test_a_task_is_a_method_of_its_adapter(self) -> None:
        w = self.loaded(TOOL, adapters=ADAPTERS)
        self.assertEqual(w.task("a", "summarise", "run", text="a b c", words=1).json(), {"text": "a", "of": 3})
        self.assertEqual(w.task("b", "single").json(), "only")

    def test_a_method_of_the_plugin_itself(self) -> None:
        w = self.loaded(TOOL, adapters=ADAPTERS)
        self.assertEqual(w.task("a", "", "count", text="a b c", by="letter").json(), 5)
        self.assertEqual(w.task("b", "", "later").json(), "later")

    def test_a_task_can_stream(self) -> None:
        w = self.loaded(TOOL, adapters=ADAPTERS)
        self.assertEqual(w.task("a", "summarise", "each", stream=True, text="x y").json(), {"chunks": 2})
        self.assertEqual([f.payload for f in w.said("chunk")], [b'"x"', b'"y"'])

    def test_what_is_not_there_is_the_callers_fault_and_says_what_is(self) -> None:
        w = self.loaded(TOOL, adapters=ADAPTERS)
        cases = {
            ("translate", "run"): "no adapter is bound for task 'translate'; there is single, summarise",
            ("sumarise", "run"): "did you mean summarise?",
            ("summarise", ""): "name a method of the adapter of task 'summarise': each, run",
            ("summarise", "ran"): "did you mean run?",
            ("summarise", "__init__"): "has no method '__init__'",
            ("", "_hidden"): "has no method '_hidden'",
            ("", "cleanup"): "has no method 'cleanup'",
            ("", "initialize"): "has no method 'initialize'",
            ("", "limit"): "has no method 'limit'",
            ("", "tool.count"): "has no method 'tool.count'",
        }
        for n, ((task, method), text) in enumerate(cases.items()):
            with self.subTest(task=task, method=method):
                error = w.task(str(n), task, method).error
                self.assertIn(text, error["message"])
                self.assertEqual(error["data"]["category"], "user_input")
                self.assertFalse(error["data"]["retriable"])

    def test_arguments_by_position_are_refused(self) -> None:
        w = self.loaded(TOOL, adapters=ADAPTERS)
        number = w.send("execute", {"job": "a", "task": "single", "method": "only"}, b'{"args": [1], "kwargs": {}}')
        self.assertIn("kwargs only", w.answer(number).error["message"])

    def test_wrong_kwargs_are_the_callers_fault(self) -> None:
        w = self.loaded(TOOL, adapters=ADAPTERS)
        error = w.task("a", "summarise", "run", words=1).error
        self.assertEqual((error["data"]["category"], error["data"]["type"]), ("user_input", "TypeError"))

    def test_a_plugin_without_execute_says_what_to_name(self) -> None:
        w = self.loaded(TOOL, adapters=ADAPTERS)
        self.assertIn("name one of its tasks: single, summarise", w.execute("a").error["message"])
        self.assertIn("name one of its tasks: single, summarise", w.execute("b", stream=True).error["message"])

    def test_an_adapter_that_fails_leaves_the_others_in_use(self) -> None:
        bad = ["subject:Broken", "subject:Nameless", "subject:Again", "subject:Nobody", "nowhere:X", "subject"]
        w = self.loaded(TOOL, adapters=ADAPTERS + bad)
        self.assertEqual(w.task("a", "single").json(), "only")
        message = w.task("b", "broken").error["message"]
        for text in ("no weights", "no task_name", "bound to subject:Single already", "No module named 'nowhere'", "module:Class"):
            self.assertIn(text, message)
        self.assertEqual(len([f for f in w.said("log", level="error") if "cannot bind adapter" in f.params["message"]]), len(bad))

    def test_the_surface_names_what_can_be_called(self) -> None:
        w = self.loaded(TOOL, adapters=ADAPTERS)
        surface = w.ask("surface").json()
        self.assertEqual(surface["properties"], ["size"])
        self.assertIn({"name": "name", "type": "str"}, surface["attributes"])
        methods = {method["name"]: method for method in surface["methods"]}
        self.assertEqual(methods["count"]["params"], ["text", "by"])
        self.assertNotIn("_hidden", methods)
        self.assertEqual(
            surface["tasks"],
            [
                {"task": "single", "adapter": "subject:Single", "methods": ["only"]},
                {"task": "summarise", "adapter": "subject:Summarise", "methods": ["each", "run"]},
            ],
        )

    def test_odd_members_do_not_spoil_the_surface(self) -> None:
        w = self.loaded("""
            class Odd:
                def __get__(self, instance, owner): raise RuntimeError("not now")
            class Plugin:
                odd = Odd()
                def execute(self): pass
                def strange(self): pass
                strange.__signature__ = "none"
                def plain(self, a): pass
            """)
        methods = {method["name"]: method["params"] for method in w.ask("surface").json()["methods"]}
        self.assertEqual(methods, {"execute": [], "plain": ["a"], "strange": []})
        self.assertIn("there is execute, plain, strange", w.task("a", "", "xyz").error["message"])

    def test_a_class_with_neither_execute_nor_adapters_is_refused(self) -> None:
        w = self.worker(TOOL)
        self.assertIn("has no execute method", w.hello().error["message"])


class Heartbeat(WorkerTest):
    def test_a_quiet_load_is_seen_to_live(self) -> None:
        w = self.worker("""
            import os, cjmworker
            class Plugin:
                def initialize(self, config):
                    with cjmworker.heartbeat("loading", interval=0.02, progress=0.25):
                        os.read(os.open(config["fifo"], os.O_RDONLY), 1)
                def execute(self): pass
            """)
        import os

        fifo = str(w.dir / "fifo")
        os.mkfifo(fifo)
        hello = w.send_hello({"fifo": fifo})
        w.until(lambda f: f.method == "progress" and f.params["message"].startswith("loading ("))
        self.assertEqual(w.said("progress")[-1].params["fraction"], 0.25)
        with open(fifo, "wb") as out:
            out.write(b"x")
        self.assertIn("result", w.answer(hello).header)

    def test_progress_inside_goes_on_and_names_the_beat(self) -> None:
        w = self.loaded("""
            import cjmworker
            class Plugin:
                def execute(self):
                    with cjmworker.heartbeat("work", interval=0.02):
                        cjmworker.report_progress(0.5, "half")
                        while True: cjmworker.check_cancel()
            """)
        w.start("a")
        w.until(lambda f: f.method == "progress" and f.params["message"].startswith("half ("))
        self.assertEqual(w.said("progress")[-1].params["fraction"], 0.5)
        w.cancel("a")
        w.until(lambda f: "error" in f.header)


class Reconfigure(WorkerTest):
    SOURCE = """
        class Plugin:
            how = []
            def initialize(self, config):
                if config.get("a") == "bad": raise ValueError("bad a")
                self.config = dict(config); self.how.append(["initialize", config])
            def reconfigure(self, old, new):
                self.how.append(["reconfigure", new])
                %s
            def get_current_config(self): return self.config
            def execute(self): return self.how
        """

    def configure(self, body: str) -> tuple:
        w = self.loaded(self.SOURCE % body, {"a": 1, "b": 2})
        answer = w.ask("configure", {}, b'{"old": {"a": 1, "b": 2}, "new": {"a": 3, "b": 2}}')
        return w, answer

    def test_one_that_applies_nothing_is_followed_by_initialize(self) -> None:
        w, answer = self.configure("pass")
        self.assertEqual(answer.result["applied"], "initialized")
        self.assertEqual(w.ask("config").json(), {"a": 3, "b": 2})

    def test_one_that_applies_is_believed(self) -> None:
        w, answer = self.configure("self.config = dict(new)")
        self.assertEqual(answer.result["applied"], "reconfigured")
        self.assertEqual([how for how, _ in w.execute("a").json()], ["initialize", "reconfigure"])

    def test_one_that_fails_is_undone(self) -> None:
        w, answer = self.configure("self.config = dict(new)\n" + " " * 16 + "if new['a'] == 3: raise ValueError('no')")
        self.assertEqual(answer.error["message"], "no")
        self.assertEqual(w.ask("config").json(), {"a": 1, "b": 2})


if __name__ == "__main__":
    unittest.main()
