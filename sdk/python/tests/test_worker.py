"""Real worker processes: load, execute, stream, progress, logs, control."""
from __future__ import annotations

import os
from pathlib import Path

from .harness import WorkerTest

ECHO = """
class Plugin:
    name = "echo"
    version = "2.1"
    def initialize(self, config):
        self.config = dict(config)
    def get_config_schema(self):
        return {"type": "object", "properties": {"a": {"type": "integer", "default": 1}}}
    def get_current_config(self):
        return self.config
    def execute(self, *args, **kwargs):
        return {"args": args, "kwargs": kwargs}
"""


# A torch with two devices, of which the first is used; what a call takes is given back.
TORCH = """
import sys, types
from types import SimpleNamespace
torch = sys.modules["torch"] = types.ModuleType("torch")
reserved = [{"current": 0, "peak": 0}, {"current": 0, "peak": 0}]
uuids = ["aaaa", "bbbb"]

def take(n):
    reserved[0]["current"] += n
    reserved[0]["peak"] = max(reserved[0]["peak"], reserved[0]["current"])

torch.cuda = SimpleNamespace(
    is_initialized=lambda: True,
    device_count=lambda: 2,
    memory_stats_as_nested_dict=lambda i: {"reserved_bytes": {"all": reserved[i]}},
    get_device_properties=lambda i: SimpleNamespace(**({} if uuids[i] is None else {"uuid": uuids[i]})),
)

class Plugin:
    def initialize(self, config):
        if "uuid" in config:
            uuids[0] = config["uuid"]
        take(config.get("load", 0))
    def execute(self, n=0):
        take(n)
        take(-n)
"""


class Load(WorkerTest):
    def test_ready_record_names_plugin_and_capabilities(self) -> None:
        w = self.worker(ECHO)
        answer = w.hello({"a": 7})
        self.assertEqual(answer.result["protocol"], 1)
        self.assertEqual((answer.result["name"], answer.result["version"]), ("echo", "2.1"))
        self.assertEqual(answer.result["pid"], w.process.pid)
        self.assertIn("execute", answer.result["capabilities"])
        self.assertNotIn("stream", answer.result["capabilities"])
        self.assertEqual(answer.json()["config"], {"a": 7})
        self.assertEqual(answer.json()["schema"]["properties"]["a"]["default"], 1)

    def test_initialize_is_called_with_an_empty_config(self) -> None:
        w = self.loaded("class Plugin:\n  got='never'\n  def initialize(self, c): self.got=c\n  def execute(self): return self.got")
        self.assertEqual(w.execute("j").json(), {})

    def test_initialize_without_argument_and_class_without_initialize(self) -> None:
        w = self.loaded("class Plugin:\n  def initialize(self): self.x=1\n  def execute(self): return self.x")
        self.assertEqual(w.execute("j").json(), 1)
        self.loaded("class Plugin:\n  def execute(self): pass")

    def test_import_error_is_reported_with_pythons_words_and_exit_1(self) -> None:
        w = self.worker("import no_such_module_here\nclass Plugin: pass")
        answer = w.hello()
        self.assertIn("No module named 'no_such_module_here'", answer.error["message"])
        self.assertEqual(answer.error["data"]["type"], "ModuleNotFoundError")
        self.assertIn("subject.py", answer.error["data"]["traceback"])
        self.assertEqual(w.wait(), 1)
        self.assertIn("no_such_module_here", w.stderr())

    def test_missing_class_names_near_matches(self) -> None:
        w = self.worker("class Plugins:\n  def execute(self): pass")
        self.assertIn("did you mean Plugins?", w.hello().error["message"])
        self.assertEqual(w.wait(), 1)

    def test_class_without_execute_is_refused(self) -> None:
        w = self.worker("class Plugin:\n  def exekute(self): pass")
        self.assertIn("no execute method; did you mean exekute?", w.hello().error["message"])

    def test_initialize_error_and_sys_exit_while_loading(self) -> None:
        w = self.worker("class Plugin:\n  def initialize(self, c): raise ValueError('no model at x')\n  def execute(self): pass")
        answer = w.hello()
        self.assertIn("no model at x", answer.error["message"])
        self.assertEqual(answer.error["data"]["type"], "ValueError")
        self.assertEqual(w.wait(), 1)
        w = self.worker("import sys\nsys.exit(3)")
        self.assertIn("SystemExit", w.hello().error["message"])
        self.assertEqual(w.wait(), 1)

    def test_progress_and_logs_while_loading_carry_no_job(self) -> None:
        w = self.loaded("""
            class Plugin:
                def initialize(self, config):
                    self.report_progress(0.5, "half")
                    print("loading")
                def execute(self): pass
            """)
        self.assertEqual(w.said("progress")[0].params, {"fraction": 0.5, "message": "half"})
        self.assertNotIn("job", w.said("log", message="loading")[0].params)

    def test_control_is_answered_during_a_long_initialize(self) -> None:
        w = self.worker("""
            import os
            class Plugin:
                def initialize(self, config):
                    print("in")
                    r = os.open(config["fifo"], os.O_RDONLY)
                    os.read(r, 1)
                def execute(self): pass
            """)
        fifo = str(w.dir / "fifo")
        os.mkfifo(fifo)
        hello = w.send_hello({"fifo": fifo})
        w.wait_log("in")
        self.assertEqual(w.ask("ping").result, {})
        self.assertEqual(w.ask("cancel", {"job": "x", "mode": "cooperative"}).result["accepted"], False)
        self.assertEqual(w.ask("stats").json()["pid"], w.process.pid)
        self.assertEqual(w.ask("schema").error["code"], -32600)
        with open(fifo, "wb") as out:
            out.write(b"x")
        self.assertIn("result", w.answer(hello).header)

    def test_secrets_become_environment_and_ours_leaves_it(self) -> None:
        w = self.loaded("""
            import os, subprocess, sys
            class Plugin:
                def execute(self):
                    child = subprocess.run([sys.executable, "-c", "import os;print('CJM_WORKER_FD' in os.environ, len(os.listdir('/proc/self/fd')))"], capture_output=True, text=True)
                    return [os.environ["TOKEN"], os.environ.get("CJM_WORKER_FD"), os.environ.get("PYTHONPATH"), child.stdout.split()]
            """, secrets={"TOKEN": "s3"})
        token, fd, path, child = w.execute("j").json()
        self.assertEqual((token, fd, path), ("s3", None, str(w.dir)))
        self.assertEqual(child[0], "False")
        self.assertLessEqual(int(child[1]), 4)


class Execute(WorkerTest):
    def test_round_trip(self) -> None:
        w = self.loaded(ECHO)
        for n in range(50):
            answer = w.execute("j%d" % n, n, "ü", x=[1, None])
            self.assertEqual(answer.json(), {"args": [n, "ü"], "kwargs": {"x": [1, None]}})
        self.assertEqual(answer.result, {"chunks": 0})

    def test_large_arguments_and_results(self) -> None:
        w = self.loaded(ECHO)
        text = "x" * (8 << 20)
        self.assertEqual(len(w.execute("j", text).json()["args"][0]), 8 << 20)

    def test_result_over_the_limit_is_an_error_and_the_worker_lives(self) -> None:
        w = self.loaded("class Plugin:\n  def execute(self, n): return 'x' * n", limits={"max_header": 65536, "max_payload": 100_000})
        answer = w.execute("j", 100_000)
        self.assertIn("write large results to a file", answer.error["message"])
        self.assertEqual(w.execute("k", 1).json(), "x")

    def test_bad_arguments(self) -> None:
        w = self.loaded(ECHO)
        for payload in (b"{", b"[]", b'{"args":{}}', b'{"kwargs":[]}'):
            answer = w.answer(w.send("execute", {"job": "j"}, payload))
            self.assertEqual(answer.error["code"], -32602, payload)
            self.assertEqual(answer.error["data"]["category"], "user_input")
        self.assertEqual(w.answer(w.send("execute", {})).error["code"], -32602)

    def test_plugin_errors_have_category_type_and_traceback(self) -> None:
        w = self.loaded("""
            class PluginError(Exception): pass
            class PluginTransientError(PluginError):
                retry_after_seconds = 3
            class OutOfMemoryError(RuntimeError): pass
            from cjmworker import UserInputError
            class Plugin:
                def execute(self, what=0):
                    if what == 1: raise PluginTransientError("busy")
                    if what == 2: raise OutOfMemoryError("CUDA out of memory")
                    if what == 3: raise MemoryError()
                    if what == 4: raise UserInputError("no such file", fields=["audio"])
                    if what == 5: raise SystemExit(4)
                    if what == 6: raise KeyError("k")
                    raise ValueError("boom")
            """)
        def error(n):  # type: ignore[no-untyped-def]
            return w.execute("j%d" % n, n).error
        plain = error(0)
        self.assertEqual((plain["code"], plain["message"]), (-32000, "boom"))
        self.assertEqual((plain["data"]["category"], plain["data"]["type"], plain["data"]["retriable"]), ("fatal", "ValueError", False))
        self.assertIn("raise ValueError", plain["data"]["traceback"])
        self.assertNotIn("_execute.py", plain["data"]["traceback"])
        self.assertEqual([error(1)["data"][k] for k in ("category", "retriable", "retry_after")], ["transient", True, 3])
        self.assertEqual([error(n)["data"]["category"] for n in (2, 3)], ["oom", "oom"])
        self.assertEqual([error(4)["data"][k] for k in ("category", "fields")], ["user_input", ["audio"]])
        self.assertIn("sys.exit(4)", error(5)["message"])
        self.assertEqual(error(6)["message"], "KeyError: 'k'")

    def test_arguments_that_do_not_fit_are_the_callers_fault(self) -> None:
        w = self.loaded("class Plugin:\n  def execute(self, a):\n    return len(a)")
        error = w.execute("j", nope=1).error
        self.assertEqual(error["data"]["category"], "user_input")
        self.assertIn("nope", error["message"])
        self.assertEqual(w.execute("k", 5).error["data"]["category"], "fatal")

    def test_result_that_is_no_json_names_the_place(self) -> None:
        w = self.loaded("class Plugin:\n  def execute(self): return {'segments': [{'score': 1.0}, {'score': float('nan')}]}")
        error = w.execute("j").error
        self.assertEqual(error["message"], "result.segments[1].score is NaN, which is not JSON")
        self.assertEqual(error["data"]["category"], "fatal")

    def test_long_messages_are_cut_to_fit_the_header(self) -> None:
        w = self.loaded("class Plugin:\n  def execute(self): raise ValueError('é\\x01' * 100000)")
        error = w.execute("j").error
        self.assertLess(len(error["message"]), 65536)
        self.assertTrue(error["message"].startswith("é"))

    def test_async_execute_keeps_one_loop(self) -> None:
        w = self.loaded("""
            import asyncio
            class Plugin:
                async def initialize(self, config):
                    self.loop = asyncio.get_running_loop()
                async def execute(self):
                    await asyncio.sleep(0)
                    return asyncio.get_running_loop() is self.loop
            """)
        self.assertEqual([w.execute("a").json(), w.execute("b").json()], [True, True])

    def test_user_code_runs_in_the_main_thread(self) -> None:
        w = self.loaded("import threading\nclass Plugin:\n  def execute(self): return threading.current_thread() is threading.main_thread()")
        self.assertIs(w.execute("j").json(), True)

    def test_job_dir_and_id(self) -> None:
        w = self.loaded("import cjmworker, os\nclass Plugin:\n  def execute(self): return [cjmworker.job_id(), cjmworker.job_dir(), os.environ.get('CJM_JOB_DIR')]")
        self.assertEqual(w.execute("j1", dir="/tmp/d").json(), ["j1", "/tmp/d", "/tmp/d"])
        self.assertEqual(w.execute("j2").json(), ["j2", None, None])

    def test_usage_comes_before_the_answer(self) -> None:
        w = self.loaded(ECHO)
        w.execute("j")
        usage = w.said("usage")
        peak = int(Path("/proc/%d/status" % w.process.pid).read_text().partition("VmHWM:")[2].split()[0]) * 1024
        self.assertAlmostEqual(usage[0].params["max_rss"], peak, delta=4 << 20)
        self.assertEqual(usage[0].params["devices"], {})

    def test_usage_is_told_with_the_load(self) -> None:
        w = self.loaded(TORCH, {"load": 700})
        usage = w.said("usage")
        self.assertEqual([u.params["devices"] for u in usage], [{"GPU-aaaa": 700}])
        self.assertEqual(w.seen.index(usage[0]), len(w.seen) - 2)  # before the answer to hello
        w.execute("small")
        w.execute("big", 500)
        told = [(u.params["devices"], u.params["max_devices"]) for u in w.said("usage")]
        self.assertEqual(told[-1], ({"GPU-aaaa": 700}, {"GPU-aaaa": 1200}))

    def test_usage_of_devices_that_were_never_touched_is_not_told(self) -> None:
        w = self.loaded(TORCH)
        self.assertEqual(w.said("usage")[-1].params["devices"], {})

    def test_usage_names_devices_as_they_were_placed(self) -> None:
        for placed, uuid, name in (
            ("GPU-aaaa,GPU-bbbb", "aaaa", "GPU-aaaa"),
            ("GPU-bbbb,GPU-aaaa", "aaaa", "GPU-aaaa"),  # the plugin changed the order: the UUID knows
            ("MIG-cccc", "aaaa", "MIG-cccc"),  # torch tells the whole card's
            ("GPU-0123456789abcdef", "30313233-3435", "GPU-0123456789abcdef"),  # ROCm's spelling
            ("GPU-aaaa", None, "GPU-aaaa"),  # an old torch
            ("", None, "0"),
            ("", "GPU-dddd", "GPU-dddd"),
        ):
            with self.subTest(placed=placed, uuid=uuid):
                w = self.worker(TORCH, env={"CJM_DEVICES": placed})
                w.hello({"load": 1, "uuid": uuid})
                self.assertEqual(w.said("usage")[-1].params["devices"], {name: 1})

    def test_torch_that_is_not_as_expected_costs_no_job(self) -> None:
        w = self.loaded("""
            import sys, types
            sys.modules["torch"] = types.ModuleType("torch")
            class Plugin:
                def execute(self): return 1
            """)
        self.assertEqual(w.execute("j").json(), 1)
        self.assertEqual(w.said("usage")[-1].params["devices"], {})


class Stream(WorkerTest):
    SOURCE = """
    import os
    class Plugin:
        def execute(self, n=1): return {"n": n}
        def execute_stream(self, n=1, ret=None, fail=-1):
            for i in range(n):
                if i == fail: raise RuntimeError("at %d" % i)
                yield {"i": i}
            return ret
    """

    def test_chunks_are_numbered_without_gap_and_before_the_answer(self) -> None:
        w = self.loaded(self.SOURCE)
        answer = w.execute("j", 5000, stream=True)
        chunks = w.said("chunk", job="j")
        self.assertEqual([c.params["n"] for c in chunks], list(range(1, 5001)))
        self.assertEqual([c.json()["i"] for c in chunks], list(range(5000)))
        self.assertIs(w.seen[-1], answer)
        self.assertEqual((answer.result["chunks"], answer.json()), (5000, {"chunks": 5000}))

    def test_return_value_is_the_result(self) -> None:
        w = self.loaded(self.SOURCE)
        self.assertEqual(w.execute("j", 2, ret=[1, 2], stream=True).json(), [1, 2])

    def test_error_in_the_middle_keeps_earlier_chunks(self) -> None:
        w = self.loaded(self.SOURCE)
        answer = w.execute("j", 9, fail=3, stream=True)
        self.assertEqual(answer.error["message"], "at 3")
        self.assertEqual(len(w.said("chunk")), 3)

    def test_class_without_execute_stream_gives_one_chunk(self) -> None:
        w = self.loaded("class Plugin:\n  def execute(self): return 42")
        answer = w.execute("j", stream=True)
        self.assertEqual([c.json() for c in w.said("chunk")], [42])
        self.assertEqual((answer.json(), answer.result["chunks"]), (42, 1))

    def test_slow_chunks_leave_at_once(self) -> None:
        w = self.loaded("""
            import os
            class Plugin:
                def execute(self): pass
                def execute_stream(self, fifo):
                    yield 1
                    yield 2
                    os.read(os.open(fifo, os.O_RDONLY), 1)
                    yield 3
            """)
        fifo = str(w.dir / "fifo")
        os.mkfifo(fifo)
        number = w.start("j", fifo, stream=True)
        self.assertEqual(w.until(lambda f: f.method == "chunk" and f.params["n"] == 2, 2).json(), 2)
        with open(fifo, "wb") as out:
            out.write(b"x")
        self.assertEqual(w.answer(number).result["chunks"], 3)

    def test_async_generator_and_chunk_that_is_no_json(self) -> None:
        w = self.loaded("""
            class Plugin:
                def execute(self): pass
                async def execute_stream(self, bad=False):
                    yield 1
                    yield float("inf") if bad else 2
            """)
        self.assertEqual(w.execute("a", stream=True).result["chunks"], 2)
        self.assertEqual(w.execute("b", bad=True, stream=True).error["message"], "chunk 2: chunk is Infinity, which is not JSON")


class Progress(WorkerTest):
    def test_first_at_once_then_thinned_and_the_last_always(self) -> None:
        w = self.loaded("""
            class Base:
                def report_progress(self, progress, message=""):
                    self._progress = progress
            class Plugin(Base):
                def execute(self):
                    for i in range(1001):
                        self.report_progress(i / 1000, "step %d" % i)
            """)
        w.execute("j")
        seen = [f.params["fraction"] for f in w.said("progress", job="j")]
        self.assertEqual((seen[0], seen[-1]), (0.0, 1.0))
        self.assertLess(len(seen), 60)
        self.assertEqual(seen, sorted(seen))

    def test_last_value_arrives_while_the_job_goes_on(self) -> None:
        w = self.loaded("""
            import os
            class Plugin:
                def execute(self, fifo):
                    self.report_progress(0.1); self.report_progress(0.2); self.report_progress(2, "x" * 5000)
                    os.read(os.open(fifo, os.O_RDONLY), 1)
            """)
        fifo = str(w.dir / "fifo")
        os.mkfifo(fifo)
        number = w.start("j", fifo)
        last = w.until(lambda f: f.method == "progress" and f.params["fraction"] == 1.0, 2)
        self.assertEqual(len(last.params["message"]), 1000)
        with open(fifo, "wb") as out:
            out.write(b"x")
        w.answer(number)

    def test_classes_that_guard_their_attributes_are_plugins_too(self) -> None:
        w = self.loaded("""
            import cjmworker
            class Plugin:
                __slots__ = ()
                def __setattr__(self, name, value): raise ValueError("no field " + name)
                def report_progress(self, fraction, message=""): cjmworker.report_progress(fraction, message)
                def execute(self): self.report_progress(0.5, "half")
            """)
        w.execute("j")
        self.assertEqual(w.said("progress")[0].params["message"], "half")

    def test_unknown_fraction(self) -> None:
        w = self.loaded("class Plugin:\n  def execute(self): self.report_progress(float('nan'), 'hm')")
        w.execute("j")
        self.assertEqual(w.said("progress")[0].params["fraction"], -1.0)


class Logs(WorkerTest):
    def test_print_stderr_and_logging_carry_the_job(self) -> None:
        w = self.loaded("""
            import logging, sys, threading
            class Plugin:
                def execute(self):
                    print("one"); print("two", end=""); sys.stderr.write("err\\nrest")
                    logging.getLogger("m.n").warning("careful %d", 7)
                    logging.debug("not shown")
                    sys.stdout.reconfigure(encoding="utf-8")
                    sys.stdout.buffer.write("ü\\n".encode())
                    t = threading.Thread(target=print, args=("from a thread",)); t.start(); t.join()
            """)
        w.execute("j")
        logs = [(f.params["message"], f.params.get("stream"), f.params["level"], f.params.get("logger")) for f in w.said("log", job="j")]
        self.assertIn(("one", "stdout", "info", None), logs)
        self.assertIn(("twoü", "stdout", "info", None), logs)
        self.assertIn(("err", "stderr", "info", None), logs)
        self.assertIn(("rest", "stderr", "info", None), logs)
        self.assertIn(("careful 7", None, "warning", "m.n"), logs)
        self.assertIn(("from a thread", "stdout", "info", None), logs)
        self.assertEqual(len(w.said("log")), 6)

    def test_logging_imported_late_and_level(self) -> None:
        w = self.worker("class Plugin:\n  def execute(self):\n    import logging\n    logging.debug('deep')", env={"CJM_LOG_LEVEL": "debug"})
        w.hello()
        w.execute("j")
        self.assertEqual(w.said("log", message="deep")[0].params["level"], "debug")

    def test_endless_line_is_cut_and_progress_bars_keep_the_newest(self) -> None:
        w = self.loaded("""
            class Plugin:
                def execute(self):
                    print("x" * 300_000)
                    for i in range(1000): print("\\r%d%%" % i, end="")
                    print()
            """)
        w.execute("j")
        lines = [f.params["message"] for f in w.said("log")]
        self.assertEqual(lines[-1], "999%")
        self.assertGreaterEqual(sum(len(line) for line in lines), 300_000)
        self.assertTrue(all(len(line) <= 65536 for line in lines))

    def test_finalizers_may_print_while_a_frame_is_being_made(self) -> None:
        w = self.loaded("""
            import gc
            class Noisy:
                def __init__(self): self.me = self
                def __del__(self): print("gone")
            class Plugin:
                def execute(self): pass
                def execute_stream(self, n):
                    gc.set_threshold(3)
                    for i in range(n):
                        Noisy()
                        yield [i]
                    gc.collect()
            """)
        self.assertEqual(w.execute("j", 3000, stream=True).result["chunks"], 3000)
        self.assertGreater(len(w.said("log", message="gone")), 2900)

    def test_ten_megabytes_of_prints(self) -> None:
        w = self.loaded("class Plugin:\n  def execute(self):\n    for i in range(100000): print('%0100d' % i)\n    return 1")
        self.assertEqual(w.execute("j").json(), 1)
        self.assertEqual(len(w.said("log")), 100000)


class Control(WorkerTest):
    def test_hooks(self) -> None:
        w = self.loaded("""
            class Plugin:
                def execute(self): return self.state
                def initialize(self, c):
                    if c.get("bad"): raise ValueError("bad config")
                    self.state = c
                def on_enable(self): self.state = "enabled"
                def get_system_status(self): return {"cpu_percent": 1.5}
                def prefetch(self): raise NotImplementedError
            """)
        self.assertEqual(w.ask("enable").result, {})
        self.assertEqual(w.execute("j").json(), "enabled")
        self.assertEqual(w.ask("system_status").json(), {"cpu_percent": 1.5})
        for method in ("disable", "prefetch", "release", "options", "processes", "schema"):
            self.assertEqual(w.ask(method).error["code"], -32001, method)
        self.assertEqual(w.ask("frobnicate").error["code"], -32601)
        answer = w.ask("configure", payload=b'{"old":{"a":1},"new":{"a":2}}')
        self.assertEqual(answer.result, {"applied": "initialized"})
        self.assertEqual(w.execute("k").json(), {"a": 2})
        answer = w.ask("configure", payload=b'{"old":{"a":2},"new":{"bad":1}}')
        self.assertEqual(answer.error["message"], "bad config")
        self.assertEqual(w.execute("l").json(), {"a": 2})

    def test_reconfigure_is_preferred(self) -> None:
        w = self.loaded("class Plugin:\n  def execute(self): return self.c\n  def reconfigure(self, old, new): self.c = [old, new]")
        self.assertEqual(w.ask("configure", payload=b'{"old":{},"new":{"x":1}}').result, {"applied": "reconfigured"})
        self.assertEqual(w.execute("j").json(), [{}, {"x": 1}])

    def test_control_is_answered_beside_a_long_execute(self) -> None:
        w = self.loaded("""
            class Plugin:
                def execute(self):
                    print("in")
                    while not self.stop: pass
                stop = False
                def cancel(self): self.stop = True
                def get_current_config(self): return {"live": True}
            """)
        number = w.start("j")
        w.wait_log("in")
        self.assertEqual(w.ask("ping").result, {})
        self.assertEqual(w.ask("stats").json()["active"], 1)
        self.assertEqual(w.ask("config").json(), {"live": True})
        w.cancel("j")
        self.assertTrue(w.answer(number).result["cancelled"])

    def test_parallel_executes_with_concurrency(self) -> None:
        w = self.loaded("""
            import threading
            class Plugin:
                def __init__(self): self.b = threading.Barrier(3, timeout=10)
                def execute(self, n):
                    print("job", n); self.b.wait(); print("again", n); return n
            """, concurrency=3)
        numbers = [w.start("j%d" % n, n) for n in range(3)]
        self.assertEqual([w.answer(number).json() for number in numbers], [0, 1, 2])
        for n in range(3):
            self.assertEqual([f.params["message"] for f in w.said("log", job="j%d" % n)], ["job %d" % n, "again %d" % n])


if __name__ == "__main__":
    import unittest

    unittest.main()
