import time

import cjmworker


class SlowInit:
    def initialize(self, config):
        for n in range(16):
            cjmworker.report_progress(n / 16, "loading %d" % n)
            time.sleep(0.5)

    def execute(self):
        return "initialized"
