import time

time.sleep(8)


class SlowImport:
    def execute(self):
        return "imported"
