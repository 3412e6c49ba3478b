"""A plugin for the tests of the whole daemon: does what its arguments say."""

import os
import time


class Tryout:
    def initialize(self, config=None):
        self.config = dict(config or {})
        self.stop = False

    def execute(self, *args, **kw):
        """fail=…: raise it; until=PATH: run until the file exists; read=PATH, write=TEXT: files of the job."""
        self.stop = False
        print("execute", sorted(kw))
        if "fail" in kw:
            raise ValueError(kw["fail"])
        if "crash" in kw:
            os._exit(7)
        if "until" in kw:
            self.report_progress(0.5, "waiting for a file")
            while not os.path.exists(kw["until"]):
                if self.stop:
                    return "stopped"
                time.sleep(0.005)
        if "read" in kw:
            with open(kw["read"], encoding="utf-8") as f:
                kw["read"] = f.read()
        if "write" in kw:
            path = os.path.join(os.environ["CJM_JOB_DIR"], "out.txt")
            with open(path, "w", encoding="utf-8") as f:
                f.write(kw["write"])
            return {"path": path}
        return {"args": list(args), "kwargs": kw, "greeting": self.config.get("greeting")}

    def execute_stream(self, *args, **kw):
        """Yields its arguments; until=PATH: waits for the file after the first."""
        for i, arg in enumerate(args):
            self.report_progress((i + 1) / len(args), f"part {i + 1}")
            yield arg
            if i == 0 and "until" in kw:
                while not os.path.exists(kw["until"]):
                    time.sleep(0.005)

    def report_progress(self, fraction, message=""):
        """Replaced by the runtime."""

    def cancel(self):
        self.stop = True
