"""Work for a graphics card: holds memory, multiplies matrices, and says what torch's allocator took.

For trying placement, leases and eviction on a machine with a card. Where there is none
it does not start, and says so. What the allocator holds is also reported by the worker
runtime, with each answer and at each question about the worker.
"""
from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, Iterator, List

from cjmworker import FatalError, UserInputError, cancelled

MIB = 1 << 20


@dataclass
class Card:
    index: int  # as this worker sees it
    name: str
    uuid: str
    total_mb: int
    free_mb: int
    allocated_mb: int  # in tensors
    reserved_mb: int  # by the allocator, from the driver


@dataclass
class Burnt:
    rounds: int
    seconds: float
    gflops: float  # per second, over all cards
    peak_allocated_mb: int
    cards: List[Card] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    resident_mb: int = 512
    matrix: int = 2048


SCHEMA: Dict[str, Any] = {
    "type": "object",
    "title": "Work for a graphics card",
    "properties": {
        "resident_mb": {"type": "integer", "default": 512, "minimum": 0, "maximum": 1048576, "description": "Memory of each card that the loaded plugin holds"},
        "matrix": {"type": "integer", "default": 2048, "minimum": 64, "maximum": 32768, "description": "Rows of the matrices that are multiplied"},
    },
}  # fmt: skip


def load_torch() -> Any:
    """Import. Only here, so that the class can be imported without its libraries."""
    import torch

    return torch


class TorchBurn:
    name = "torch-burn"
    version = "1.0.0"

    load_torch = staticmethod(load_torch)  # what a test replaces

    def __init__(self) -> None:
        self.config = Config()
        self.torch: Any = None
        self.resident: List[Any] = []

    def initialize(self, config: Dict[str, Any]) -> None:
        wanted = replace(Config(), **config)
        if self.torch is None:
            self.report_progress(-1, "importing torch")
            self.torch = self.load_torch()
        if not self.torch.cuda.is_available():
            raise FatalError("torch %s finds no graphics card here; torch-burn needs one" % self.torch.__version__)
        self.release()
        self.report_progress(-1, "taking %d MiB of each card" % wanted.resident_mb)
        self.resident = [self._take(wanted.resident_mb, card) for card in range(self.torch.cuda.device_count())]
        self.config = wanted

    def get_config_schema(self) -> Dict[str, Any]:
        return SCHEMA

    def get_current_config(self) -> Config:
        return self.config

    def execute(self, seconds: float = 5.0, take_mb: int = 0) -> Burnt:
        rounds = self.execute_stream(seconds, take_mb)
        while True:
            try:
                next(rounds)
            except StopIteration as end:
                return end.value

    def execute_stream(self, seconds: float = 5.0, take_mb: int = 0) -> Iterator[Dict[str, Any]]:
        """Works for so many seconds with take_mb more on each card; tells once a second how far it is."""
        if not 0 <= seconds <= 86400 or not 0 <= take_mb <= MIB:
            raise UserInputError("seconds must be 0 to 86400 and take_mb 0 to %d" % MIB, fields=["seconds", "take_mb"])
        cards = range(self.torch.cuda.device_count())
        for card in cards:
            self.torch.cuda.reset_peak_memory_stats(card)
        taken = [self._take(take_mb, card) for card in cards]
        pairs = [self._matrix(card) for card in cards]
        begun = told = time.monotonic()
        rounds = 0
        while (now := time.monotonic()) - begun < seconds and not cancelled():
            for pair in pairs:
                self.torch.mm(pair[0], pair[1], out=pair[2])
            for card in cards:
                self.torch.cuda.synchronize(card)
            rounds += 1
            if now - told >= 1:
                told = now
                self.report_progress((now - begun) / seconds, "%d rounds" % rounds)
                yield {"rounds": rounds, "cards": [asdict(card) for card in self._cards()]}
        spent = time.monotonic() - begun
        work = 2 * self.config.matrix**3 * rounds * len(cards) / 1e9
        peak = max(self.torch.cuda.max_memory_allocated(card) for card in cards) // MIB
        found = self._cards()
        del taken, pairs
        self.torch.cuda.empty_cache()
        return Burnt(rounds, round(spent, 3), round(work / spent, 1) if spent > 0 else 0.0, peak, found)

    def release(self) -> None:
        """Gives the memory of the cards back; asked for where another plugin needs it."""
        self.resident = []
        self.torch.cuda.empty_cache()

    def _take(self, megabytes: int, card: int) -> Any:
        """Memory, touched: what was never written need not exist."""
        block = self.torch.empty(megabytes * MIB, dtype=self.torch.uint8, device="cuda:%d" % card)
        return block.fill_(1)

    def _matrix(self, card: int) -> List[Any]:
        size = self.config.matrix
        return [self.torch.rand(size, size, device="cuda:%d" % card) for _ in range(3)]

    def _cards(self) -> List[Card]:
        cuda = self.torch.cuda
        found = []
        for card in range(cuda.device_count()):
            about = cuda.get_device_properties(card)
            free, total = cuda.mem_get_info(card)
            found.append(
                Card(card, about.name, str(getattr(about, "uuid", "")), total // MIB, free // MIB,
                     cuda.memory_allocated(card) // MIB, cuda.memory_reserved(card) // MIB)
            )  # fmt: skip
        return found

    def report_progress(self, progress: float, message: str = "") -> None:
        """Replaced by the runtime; here so that the class works without it."""

    def cleanup(self) -> None:
        if self.torch is not None and self.torch.cuda.is_available():
            self.release()
