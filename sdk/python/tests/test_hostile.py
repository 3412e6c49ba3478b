"""Plugins that do to their process what no guest should: the worker goes on, or ends in a
way that can be told."""
from __future__ import annotations

import signal
import unittest

from .harness import WorkerTest, alive, wait_gone


class AtImport(WorkerTest):
    def test_megabytes_of_prints_and_of_raw_bytes(self) -> None:
        w = self.loaded("""
            import os, sys
            for n in range(40_000):
                print("line %d %s" % (n, "x" * 90))
            os.write(1, b"y" * 3_000_000)
            sys.stderr.write("z" * 2_000_000)
            class Plugin:
                def execute(self): return "alive"
            """)
        lines = w.said("log", stream="stdout")
        self.assertEqual(len(lines), 40_000)
        self.assertTrue(lines[-1].params["message"].startswith("line 39999 "))
        self.assertNotIn("job", lines[0].params)
        self.assertEqual((w.dir / "stdout").stat().st_size, 3_000_000)
        self.assertEqual(w.execute("a").json(), "alive")

    def test_replaced_streams_and_a_closed_stdin(self) -> None:
        w = self.loaded("""
            import io, sys
            sys.stdout = io.StringIO()
            sys.stderr = None
            sys.stdin.close()
            class Plugin:
                def execute(self): print("into nowhere"); return "alive"
            """)
        self.assertEqual(w.execute("a").json(), "alive")

    def test_threads_left_by_a_failed_load_do_not_keep_the_process(self) -> None:
        w = self.worker("import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\nraise RuntimeError('half')")
        self.assertIn("half", w.hello().error["message"])
        self.assertEqual(w.wait(), 1)


class Exits(WorkerTest):
    SOURCE = """
        import os, sys, threading
        class Plugin:
            def execute(self, how):
                if how == "exit": sys.exit(3)
                if how == "quit": raise SystemExit
                if how == "thread":
                    thread = threading.Thread(target=sys.exit, args=(4,)); thread.start(); thread.join()
                if how == "atexit":
                    import atexit; atexit.register(print, "at exit")
                if how == "now": os._exit(5)
                return how
            def execute_stream(self, how):
                yield 1
                sys.exit(how)
            def cancel(self): sys.exit(6)
        """

    def test_sys_exit_ends_the_job_not_the_worker(self) -> None:
        w = self.loaded(self.SOURCE)
        error = w.execute("a", "exit").error
        self.assertEqual((error["message"], error["data"]["type"], error["data"]["category"]), ("the plugin called sys.exit(3)", "SystemExit", "fatal"))
        self.assertEqual(w.execute("b", "quit").error["data"]["type"], "SystemExit")
        self.assertIn("sys.exit(bye)", w.execute("c", "bye", stream=True).error["message"])
        self.assertEqual(w.execute("d", "thread").json(), "thread")
        self.assertEqual(w.execute("e", "atexit").json(), "atexit")
        self.assertEqual(w.ask("shutdown").result, {})
        self.assertEqual(w.wait(), 0)

    def test_os_exit_is_an_end_of_file(self) -> None:
        w = self.loaded(self.SOURCE)
        w.start("a", "now")
        while w.read() is not None:
            pass
        self.assertEqual(w.wait(), 5)


class Signals(WorkerTest):
    SOURCE = """
        import asyncio, signal, time
        class Plugin:
            def execute(self, how):
                if how == "all":
                    for number in range(1, 65):
                        try: signal.signal(number, lambda *a: None)
                        except (OSError, ValueError): pass
                if how == "wakeup": signal.set_wakeup_fd(-1)
                if how == "asyncio":
                    async def main():
                        loop = asyncio.get_running_loop()
                        for number in (signal.SIGTERM, signal.SIGINT):
                            loop.add_signal_handler(number, lambda: None)
                        await asyncio.sleep(0)
                    asyncio.run(main())
                if how == "sleep":
                    print("sleeping"); time.sleep(600)
                if how == "heard":
                    fd = signal.set_wakeup_fd(-1)
                    signal.set_wakeup_fd(fd)
                    return fd
                return how
        """

    def test_handlers_for_everything_keep_no_interrupt_away(self) -> None:
        w = self.loaded(self.SOURCE)
        self.assertEqual(w.execute("a", "all").json(), "all")
        call = w.start("b", "sleep")
        w.wait_log("sleeping")
        w.cancel("b", "interrupt")
        self.assertEqual(w.answer(call).error["data"]["category"], "cancelled")
        self.assertEqual(w.execute("c", "x").json(), "x")

    def test_sigterm_is_heard_while_idle_whatever_a_plugin_left(self) -> None:
        for how in ("wakeup", "asyncio"):
            w = self.loaded(self.SOURCE)
            w.execute("a", how)
            self.assertNotEqual(w.execute("b", "heard").json(), -1)
            w.process.send_signal(signal.SIGTERM)
            self.assertIn(w.wait(), (143, -signal.SIGTERM))

    def test_ignored_sigterm_does_not_matter_at_shutdown(self) -> None:
        w = self.loaded(self.SOURCE)
        w.execute("a", "all")
        w.ask("shutdown")
        self.assertEqual(w.wait(), 0)


class Processes(WorkerTest):
    def test_multiprocessing_by_fork_and_spawn_and_a_pool_that_lives_on(self) -> None:
        w = self.worker("""
            import multiprocessing as mp, os
            def double(x):
                print("in a child")
                return 2 * x
            class Plugin:
                pools = {}
                def execute(self, how, numbers):
                    if how not in self.pools:
                        self.pools[how] = mp.get_context(how).Pool(2)
                    return self.pools[how].map(double, numbers)
                def cleanup(self):
                    for pool in self.pools.values(): pool.terminate()
            """)
        self.assertIn("result", w.hello().header)
        for how in ("fork", "spawn"):
            self.assertEqual(w.execute(how + "1", how, [1, 2, 3]).json(), [2, 4, 6])
            self.assertEqual(w.execute(how + "2", how, [4]).json(), [8])
        w.ask("shutdown")
        self.assertEqual(w.wait(), 0)
        self.assertIn("in a child", (w.dir / "stdout").read_text())

    def test_children_that_ignore_everything_end_with_the_daemon(self) -> None:
        w = self.loaded("""
            import os, signal, time
            class Plugin:
                def execute(self):
                    pids = []
                    for n in range(3):
                        pid = os.fork()
                        if pid == 0:
                            for number in range(1, 32):
                                try: signal.signal(number, signal.SIG_IGN)
                                except (OSError, ValueError): pass
                            time.sleep(600)
                        pids.append(pid)
                    return pids
            """)
        pids = w.execute("a").json()
        self.assertTrue(all(map(alive, pids)))
        w.sock.close()
        gone, left = wait_gone([w.process.pid, *pids])
        self.assertTrue(gone, left)

    def test_a_child_that_outlives_its_job_neither_answers_nor_keeps_the_next_one(self) -> None:
        w = self.loaded("""
            import os
            class Plugin:
                def execute(self, how):
                    if how == "linger":
                        r, self.w = os.pipe()
                        if os.fork() == 0:
                            os.close(self.w)
                            os.read(r, 1)
                            return "from the child"
                    if how == "end": os.close(self.w); os.wait()
                    return how
            """)
        self.assertEqual(w.execute("a", "linger").json(), "linger")
        self.assertEqual(w.execute("b", "x").json(), "x")
        self.assertEqual(w.execute("c", "end").json(), "end")
        self.assertEqual(w.execute("d", "y").json(), "y")


class Threads(WorkerTest):
    SOURCE = """
        import asyncio, threading
        class Plugin:
            def initialize(self, config): self.go = threading.Event(); self.done = threading.Event()
            def execute(self, how):
                if how == "leave":
                    def later():
                        self.go.wait()
                        print("after the job")
                        self.report_progress(0.9, "after the job")
                        self.done.set()
                    threading.Thread(target=later).start()
                if how == "go":
                    print("mine")
                return how
            def prefetch(self): self.go.set(); self.done.wait()
            async def later(self):
                asyncio.get_running_loop().create_task(self._tick())
                return "later"
            async def _tick(self):
                await asyncio.sleep(0)
                self.ticked = True
            async def ticked_now(self):
                await asyncio.sleep(0)
                return self.ticked
        """

    def test_a_thread_that_outlives_its_job_speaks_for_none(self) -> None:
        w = self.loaded(self.SOURCE)
        w.execute("a", "leave")
        self.assertEqual(w.ask("prefetch").result, {})
        found = w.wait_log("after the job")
        self.assertNotIn("job", found.params)
        self.assertEqual(w.said("progress", job="a"), [])
        self.assertEqual(w.execute("b", "x").json(), "x")
        w.ask("shutdown")
        self.assertEqual(w.wait(), 0)

    def test_tasks_left_in_the_loop_go_on_with_the_next_async_job(self) -> None:
        w = self.loaded(self.SOURCE)
        self.assertEqual(w.task("a", "", "later").json(), "later")
        self.assertEqual(w.task("b", "", "ticked_now").json(), True)


if __name__ == "__main__":
    unittest.main()
