"""How a worker ends: shutdown, SIGTERM, end of file, broken frames, crashes, forks."""
from __future__ import annotations

import signal
import subprocess
import time

from .harness import WorkerTest, wait_gone
from .test_worker import ECHO


class End(WorkerTest):
    def test_shutdown_cleans_up_and_exits_0(self) -> None:
        w = self.worker("class Plugin:\n  def execute(self): pass\n  def cleanup(self): open('cleaned', 'w').close()")
        w.hello()
        self.assertEqual(w.ask("shutdown").result, {})
        self.assertEqual(w.wait(), 0)
        self.assertTrue((w.dir / "cleaned").exists())

    def test_sigterm_while_idle_and_while_executing(self) -> None:
        source = "import time\nclass Plugin:\n  def execute(self):\n    print('in')\n    time.sleep(60)\n  def cleanup(self): open('cleaned', 'w').close()"
        for busy in (False, True):
            w = self.worker(source)
            w.hello()
            if busy:
                w.start("j")
                w.wait_log("in")
            else:
                w.ask("ping")
            w.process.send_signal(signal.SIGTERM)
            w.wait()
            self.assertTrue((w.dir / "cleaned").exists(), busy)

    def test_sigterm_that_meets_our_own_code_comes_again(self) -> None:
        w = self.loaded("""
            import logging, os, signal, time
            class Loud:
                def __str__(self):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return "formatted by the runtime"
            class Plugin:
                def execute(self):
                    logging.warning("%s", Loud())
                    time.sleep(60)
                def cleanup(self): open("cleaned", "w").close()
            """)
        w.start("j")
        self.assertEqual(w.wait(), 143)
        self.assertTrue((w.dir / "cleaned").exists())

    def test_sigterm_while_the_guard_reads(self) -> None:
        w = self.worker("import time\nclass Plugin:\n  def execute(self): time.sleep(0.05)\n  def cleanup(self): open('cleaned', 'w').close()")
        w.hello()
        w.execute("long enough for the guard to take over")
        w.process.send_signal(signal.SIGTERM)
        self.assertEqual(w.wait(), 143)
        self.assertTrue((w.dir / "cleaned").exists())

    def test_a_thread_that_never_ends_does_not_survive_a_second_sigterm(self) -> None:
        w = self.loaded("import threading, time\nclass Plugin:\n  def execute(self): threading.Thread(target=time.sleep, args=(60,)).start()\n  def cleanup(self): open('cleaned', 'w').close()")
        w.execute("j")
        w.ask("shutdown")
        for _ in range(100):  # the first may still meet our own handler
            w.process.send_signal(signal.SIGTERM)
            try:
                self.assertEqual(w.process.wait(0.2), -signal.SIGTERM)
                break
            except subprocess.TimeoutExpired:
                continue
        self.assertIsNotNone(w.process.returncode)
        self.assertTrue((w.dir / "cleaned").exists())

    def test_a_crash_in_c_leaves_its_stack_in_the_log(self) -> None:
        w = self.loaded("import ctypes\nclass Plugin:\n  def execute(self): ctypes.string_at(0)")
        w.start("j")
        self.assertEqual(w.wait(), -signal.SIGSEGV)
        self.assertIn("Segmentation fault", w.stderr())
        self.assertIn("subject.py", w.stderr())

    def test_end_of_file_kills_the_whole_group_at_once(self) -> None:
        for idle in (True, False):
            w = self.loaded("""
                import subprocess, time
                class Plugin:
                    def execute(self, wait):
                        kids = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
                        print(*[k.pid for k in kids])
                        if wait: time.sleep(60)
                """)
            w.start("j", not idle)
            pids = [int(p) for p in w.until(lambda f: f.method == "log").params["message"].split()]
            begun = time.monotonic()
            w.sock.close()
            self.assertEqual(w.wait(), -signal.SIGKILL)
            self.assertEqual(wait_gone(pids), (True, []))
            self.assertLess(time.monotonic() - begun, 5)

    def test_end_of_file_without_an_own_group_kills_the_children(self) -> None:
        w = self.worker("import subprocess\nclass Plugin:\n  def execute(self): return subprocess.Popen(['sleep', '60']).pid", own_group=False)
        w.hello()
        pid = w.execute("j").json()
        w.sock.close()
        self.assertEqual(w.wait(), 70)
        self.assertEqual(wait_gone([pid]), (True, []))

    def test_protocol_errors_end_the_worker_with_a_text(self) -> None:
        for raw, text in (
            (b"\xff" * 16, "over the limit"),
            (b"\0\0\0\2\0\0\0\0{]", "header is no JSON"),
            (b'\0\0\0\2\0\0\0\0{}', "bad_jsonrpc"),
        ):
            w = self.loaded(ECHO)
            w.sock.sendall(raw)
            w.wait()
            self.assertIn(text, w.stderr())

    def test_misplaced_requests_are_refused_and_change_nothing(self) -> None:
        w = self.worker(ECHO)
        self.assertEqual(w.execute("early").error["code"], -32600)
        w.hello()
        self.assertEqual(w.hello().error["code"], -32600)
        self.assertEqual(w.execute("j", 1).json()["args"], [1])

    def test_unknown_protocol_version_and_cut_frame(self) -> None:
        w = self.worker(ECHO)
        w.send_hello(protocol=[9])
        w.wait()
        self.assertIn("this worker speaks 1", w.stderr())
        w = self.loaded(ECHO)
        w.sock.sendall(b"\0\0\0\5\0")
        w.sock.shutdown(1)
        w.wait()
        self.assertIn("end of file inside a frame", w.stderr())

    def test_forked_children_neither_answer_nor_hold_the_socket(self) -> None:
        w = self.loaded("""
            import os, multiprocessing as mp
            def work(n):
                print("child print")
                return n * n
            class Plugin:
                def execute(self, how):
                    if how == "fork":
                        if os.fork() == 0:
                            return "child"
                        os.wait()
                        return "parent"
                    with mp.get_context(how).Pool(2) as pool:
                        return pool.map(work, range(4))
            """)
        self.assertEqual(w.execute("a", "fork").json(), "parent")
        self.assertEqual(w.execute("b", "fork").json(), "parent")
        for how in ("spawn", "forkserver"):
            self.assertEqual(w.execute(how, how).json(), [0, 1, 4, 9])
        self.assertEqual(w.ask("shutdown").result, {})
        self.assertEqual(w.wait(), 0)
        self.assertIsNone(w.read(5))


if __name__ == "__main__":
    import unittest

    unittest.main()
