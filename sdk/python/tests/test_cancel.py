"""Cancel and interrupt: the right job stops, and no other one ever notices."""
from __future__ import annotations

import random
import time

from .harness import PATIENCE, WorkerTest

SLEEPER = """
import time
import cjmworker
class Plugin:
    done = 0
    def execute(self, how="sleep", n=1.0):
        print("in", how)
        if how == "sleep":
            time.sleep(60)
        elif how == "loop":
            while True: pass
        elif how == "check":
            while True:
                self.check_cancel(); time.sleep(0.001)
        elif how == "flag":
            while not cjmworker.cancelled(): time.sleep(0.001)
            return {"partial": True}
        elif how == "deaf":
            while True:
                try: time.sleep(60)
                except Exception: pass
        elif how == "raise":
            while not cjmworker.cancelled(): time.sleep(0.001)
            raise RuntimeError("stopped in the middle")
        elif how == "finally":
            try: time.sleep(60)
            finally: print("cleaned")
        elif how == "progress":
            i = 0
            while True:
                i += 1; self.report_progress(0.5, "x" * 200); print("line", i)
        elif how == "busy":
            end = time.monotonic() + n
            while time.monotonic() < end: pass
            self.done += 1
            return self.done
"""


class Cooperative(WorkerTest):
    def test_check_cancel_raises(self) -> None:
        w = self.loaded(SLEEPER)
        number = w.start("j", "check")
        w.wait_log("in check")
        begun = time.monotonic()
        answer = w.answer(w.cancel("j"))
        self.assertEqual(answer.result, {"accepted": True, "hook": "not_supported"})
        error = w.answer(number).error
        self.assertLess(time.monotonic() - begun, 1)
        self.assertEqual((error["code"], error["data"]["category"], error["data"]["retriable"]), (-32002, "cancelled", False))
        self.assertEqual(w.execute("k", "busy", 0).json(), 1)

    def test_a_job_that_returns_after_a_cancel_keeps_its_partial_result(self) -> None:
        w = self.loaded(SLEEPER)
        number = w.start("j", "flag")
        w.wait_log("in flag")
        w.cancel("j")
        answer = w.answer(number)
        self.assertEqual((answer.result, answer.json()), ({"chunks": 0, "cancelled": True}, {"partial": True}))

    def test_any_exception_after_a_cancel_is_cancelled_not_failed(self) -> None:
        w = self.loaded(SLEEPER)
        number = w.start("j", "raise")
        w.wait_log("in raise")
        w.cancel("j")
        error = w.answer(number).error
        self.assertEqual((error["code"], error["message"], error["data"]["type"]), (-32002, "stopped in the middle", "RuntimeError"))

    def test_cancel_hook_of_the_seeds_and_its_flag(self) -> None:
        w = self.loaded("""
            import time
            class Plugin:
                _cancel_requested = False
                def cancel(self): self._cancel_requested = True
                def execute(self):
                    print("in")
                    for _ in range(10000):
                        if self._cancel_requested: return "stopped"
                        time.sleep(0.001)
            """)
        for job in ("a", "b"):
            number = w.start(job)
            w.until(lambda f: f.method == "log" and f.params["job"] == job)
            self.assertEqual(w.answer(w.cancel(job)).result, {"accepted": True, "hook": "called"})
            answer = w.answer(number)
            self.assertEqual((answer.json(), answer.result["cancelled"]), ("stopped", True))

    def test_a_failing_or_hanging_hook_does_not_keep_the_interrupt_away(self) -> None:
        w = self.loaded("""
            import time
            class Plugin:
                def cancel(self):
                    if self.hang: time.sleep(60)
                    raise RuntimeError("no")
                def execute(self, hang):
                    self.hang = hang; print("in", hang); time.sleep(60)
            """)
        number = w.start("a", False)
        w.wait_log("in False")
        self.assertEqual(w.answer(w.cancel("a")).result, {"accepted": True, "hook": "error"})
        w.cancel("a", "interrupt")
        self.assertEqual(w.answer(number).error["code"], -32002)
        number = w.start("b", True)
        w.wait_log("in True")
        w.cancel("b")
        self.assertTrue(w.answer(w.cancel("b", "interrupt")).result["accepted"])
        self.assertEqual(w.answer(number).error["code"], -32002)

    def test_generator_stops_at_its_next_yield_and_runs_its_finally(self) -> None:
        w = self.loaded("""
            class Plugin:
                def execute(self): pass
                def execute_stream(self):
                    try:
                        n = 0
                        while True:
                            n += 1
                            yield n
                    finally:
                        print("closed")
            """)
        number = w.start("j", stream=True)
        w.until(lambda f: f.method == "chunk")
        w.cancel("j")
        answer = w.answer(number)
        self.assertTrue(answer.result["cancelled"])
        self.assertEqual(answer.result["chunks"], len(w.said("chunk")))
        self.assertEqual(answer.json(), {"chunks": answer.result["chunks"]})
        self.assertEqual(len(w.said("log", message="closed", job="j")), 1)

    def test_async_execute_gets_cancelled_error(self) -> None:
        w = self.loaded("""
            import asyncio
            class Plugin:
                async def execute(self, n=60):
                    print("in", n)
                    try: await asyncio.sleep(n)
                    finally: print("tidy")
                    return n
                async def execute_stream(self):
                    while True:
                        await asyncio.sleep(0.001)
                        yield 1
            """)
        number = w.start("j")
        w.wait_log("in 60")
        w.cancel("j")
        self.assertEqual(w.answer(number).error["code"], -32002)
        self.assertEqual(len(w.said("log", message="tidy")), 1)
        self.assertEqual(w.execute("k", 0).json(), 0)
        number = w.start("s", stream=True)
        w.until(lambda f: f.method == "chunk")
        w.cancel("s")
        self.assertEqual(w.answer(number).header.get("error", {}).get("code", -32002), -32002)

    def test_cancel_of_a_job_that_has_not_begun_and_of_an_unknown_one(self) -> None:
        w = self.loaded(SLEEPER)
        self.assertFalse(w.answer(w.cancel("nobody")).result["accepted"])
        self.assertFalse(w.answer(w.cancel("nobody", "interrupt")).result["accepted"])
        configure = w.send("configure", {}, b"{}")  # whatever it does, the main thread is on its way
        number, cancel = w.start("j", "loop"), w.cancel("j", "interrupt")
        self.assertTrue(w.answer(cancel).result["accepted"])
        self.assertEqual(w.answer(number).error["code"], -32002)
        w.answer(configure)


class Interrupt(WorkerTest):
    def _interrupted(self, how: str, **hello: int) -> None:
        w = self.loaded(SLEEPER, **hello)
        number = w.start("j", how)
        w.wait_log("in " + how)
        begun = time.monotonic()
        w.cancel("j", "interrupt")
        error = w.answer(number).error
        self.assertEqual((error["code"], error["data"]["type"]), (-32002, "KeyboardInterrupt"))
        self.assertLess(time.monotonic() - begun, 2)
        self.assertEqual(w.execute("k", "busy", 0.0).json(), 1)

    def test_out_of_sleep(self) -> None:
        self._interrupted("sleep")

    def test_out_of_a_tight_loop(self) -> None:
        self._interrupted("loop")

    def test_out_of_except_exception(self) -> None:
        self._interrupted("deaf")

    def test_in_the_midst_of_our_own_frames(self) -> None:
        for _ in range(10):
            self._interrupted("progress")

    def test_pool_thread(self) -> None:
        self._interrupted("loop", concurrency=2)
        self._interrupted("progress", concurrency=2)

    def test_finally_blocks_run(self) -> None:
        w = self.loaded(SLEEPER)
        number = w.start("j", "finally")
        w.wait_log("in finally")
        w.cancel("j", "interrupt")
        w.answer(number)
        self.assertEqual(len(w.said("log", message="cleaned", job="j")), 1)

    def test_plugin_that_takes_sigint_and_blocks_signals(self) -> None:
        w = self.loaded("""
            import signal, time
            class Plugin:
                def execute(self, block):
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                    if block: signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
                    print("in", block)
                    while True: time.sleep(0.01)
            """)
        for block in (False, True):
            number = w.start("j%s" % block, block)
            w.wait_log("in %s" % block)
            w.cancel("j%s" % block, "interrupt")
            self.assertEqual(w.answer(number).error["code"], -32002)

    def test_async_code(self) -> None:
        w = self.loaded("""
            import asyncio, time
            class Plugin:
                async def execute(self, n=60):
                    print("in", n)
                    while n:
                        try: await asyncio.sleep(n)
                        except asyncio.CancelledError:
                            print("deaf")
                            time.sleep(60)
                    return n
            """)
        number = w.start("j")
        w.wait_log("in 60")
        w.cancel("j")
        w.wait_log("deaf")
        w.cancel("j", "interrupt")
        self.assertEqual(w.answer(number).error["code"], -32002)
        self.assertEqual(w.execute("k", 0).json(), 0)

    def _race(self, rounds: int, **hello: int) -> None:
        """Interrupts aimed at the last instants of jobs: each job must be answered once,
        no later job and no idle moment may be hit."""
        w = self.loaded(SLEEPER, **hello)
        rng = random.Random(11)
        hit = 0
        for n in range(rounds):
            length = rng.choice((0.0, 0.0002, 0.001, 0.003))
            number = w.start("j%d" % n, "busy", length)
            deadline = time.perf_counter() + rng.uniform(0, 2 * length + 0.0004)
            while time.perf_counter() < deadline:
                pass
            cancel = w.cancel("j%d" % n, "interrupt")
            answer = w.answer(number, PATIENCE)
            if "error" in answer.header:
                self.assertEqual(answer.error["code"], -32002, answer)
                hit += 1
            w.answer(cancel, PATIENCE)
            if n % 3 == 0:
                innocent = w.execute("i%d" % n, "busy", 0.0003)
                self.assertIn("result", innocent.header, innocent)
                self.assertNotIn("cancelled", innocent.result)
            w.seen.clear()
        self.assertEqual(w.ask("ping").result, {})
        self.assertEqual(w.ask("shutdown").result, {})
        self.assertEqual(w.wait(), 0)
        self.assertGreater(hit, 0)
        self.assertLess(hit, rounds)

    def test_race_with_the_end_of_the_job(self) -> None:
        self._race(600)

    def test_race_in_a_pool_thread(self) -> None:
        self._race(300, concurrency=2)
