"""What a plugin can do to a card, on demand: hold memory, take more while it runs,
keep some of that, ask for more than there is. Plain torch; what its allocator holds
is reported by the worker runtime. There is no cleanup(): memory comes back when the
process is gone, which is what most plugins leave it at."""
import os
import time

import torch

import cjmworker

MIB = 1 << 20


def _take(megabytes, device=0):
    """Memory of the card, touched."""
    block = torch.empty(int(megabytes) * MIB, dtype=torch.uint8, device="cuda:%d" % device)
    block.fill_(1)
    torch.cuda.synchronize(device)
    return block


def _count(path):
    """One more line in a file: how often something was tried, across processes."""
    with open(path, "a") as file:
        file.write("%d\n" % os.getpid())
    with open(path) as file:
        return len(file.readlines())


class Tensor:
    name = "tensor"
    version = "1.0.0"

    def initialize(self, config):
        self.config = dict(config)
        self.kept = []
        if config.get("count_loads"):
            _count(config["count_loads"])
        # The context comes with the first call; what is free right after it is what the
        # driver, not the scheduler, says that this worker found.
        self.found = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
        self.report_progress(0.5, "allocating")
        wanted = config.get("resident_mb", 0)
        self.resident = [_take(wanted, index) for index in range(torch.cuda.device_count())] if wanted else []

    def get_current_config(self):
        return self.config

    def execute(self, take_mb=0, seconds=0.0, leak_mb=0, too_much_once=""):
        """take_mb is given back at the end, leak_mb is not. too_much_once names a file:
        the first call that finds it missing asks for more than any card has."""
        if too_much_once and _count(too_much_once) == 1:
            _take(torch.cuda.mem_get_info(0)[1] // MIB + 1024)
        block = _take(take_mb) if take_mb else None
        if leak_mb:
            self.kept.append(_take(leak_mb))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            cjmworker.check_cancel()
            self.report_progress(-1, "holding")
            time.sleep(0.02)
        seen = self._facts()
        del block
        torch.cuda.empty_cache()
        return seen

    def _facts(self):
        count = torch.cuda.device_count()
        return {
            "pid": os.getpid(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "devices": [str(getattr(torch.cuda.get_device_properties(index), "uuid", "")) for index in range(count)],
            "reserved": [torch.cuda.memory_reserved(index) for index in range(count)],
            "found_free": self.found,
        }


class NoGPU:
    """A plugin without a need for the card: what does it see?"""

    name = "nogpu"
    version = "1.0.0"

    def execute(self):
        return {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "sees": torch.cuda.device_count()}
