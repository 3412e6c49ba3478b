"""A plugin for trying things: it sleeps in steps, fails, ignores cancels, hangs, or
takes memory, as it is told. Nothing of it is useful; all of it happens."""
import os
import subprocess
import sys
import time

import cjmworker


class Sleeper:
    name = "sleeper"
    version = "1.0.0"

    def initialize(self, config):
        self.config = dict(config)
        load = float(config.get("load_seconds", 0))
        for step in range(20 if load else 0):
            self.report_progress(step / 20, "loading")
            time.sleep(load / 20)

    def get_current_config(self):
        return self.config

    def execute(self, seconds=1.0, **options):
        """Options: steps, fail, fail_at, category, ignore_cancel, ignore_interrupt, hang,
        memory_mb, children, exit, print_lines, result_bytes."""
        for step in self._steps(seconds, options):
            pass
        return self._result(seconds, options)

    def execute_stream(self, seconds=1.0, **options):
        for step in self._steps(seconds, options):
            yield {"step": step}
        return self._result(seconds, options)

    def _steps(self, seconds, options):
        steps = max(1, int(options.get("steps", 10)))
        held = _take_memory(int(options.get("memory_mb", 0)))
        _start_children(int(options.get("children", 0)))
        for line in range(int(options.get("print_lines", 0))):
            print("line %d of sleeper" % line)
        for step in range(1, steps + 1):
            self._misbehave(step, steps, options)
            try:
                self._sleep(seconds / steps, options)
            except KeyboardInterrupt:
                if not options.get("ignore_interrupt"):
                    raise
            self.report_progress(step / steps, "step %d of %d" % (step, steps))
            yield step
        del held

    def _sleep(self, seconds, options):
        end = time.monotonic() + seconds
        while True:
            if not options.get("ignore_cancel"):
                cjmworker.check_cancel()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.02))

    def _misbehave(self, step, steps, options):
        if step != int(options.get("fail_at", (steps + 1) // 2)):
            return
        if "exit" in options:
            os._exit(int(options["exit"]))
        if options.get("hang"):
            self._hang(options)
        if options.get("fail"):
            kinds = {
                "user_input": cjmworker.UserInputError,
                "transient": cjmworker.TransientError,
                "resource": cjmworker.ResourceError,
            }
            kind = kinds.get(options.get("category"), cjmworker.FatalError)
            raise kind(str(options["fail"]) if options["fail"] is not True else "failed as told")

    def _hang(self, options):
        while True:
            try:
                time.sleep(3600)
            except KeyboardInterrupt:
                if not options.get("ignore_interrupt"):
                    raise

    def _result(self, seconds, options):
        size = int(options.get("result_bytes", 0))
        return "x" * size if size else {"slept": seconds, "python": sys.version.split()[0]}


def _take_memory(megabytes):
    """Touched memory: it really counts."""
    block = bytearray(megabytes << 20)
    block[::4096] = b"x" * len(block[::4096])
    return block


def _start_children(count):
    """Children in sessions of their own: what a tree kill has to find."""
    for _ in range(count):
        subprocess.Popen(["sleep", "3600"], start_new_session=True)
