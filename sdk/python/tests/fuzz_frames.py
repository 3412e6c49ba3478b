"""Fuzzing of the frame decoder and the state machine: random bytes and mutated
transcripts, seeded, for CJM_FUZZ_SECONDS. Whatever comes, the answer is frames or
one of the named errors, and it does not depend on how the bytes were cut."""
from __future__ import annotations

import os
import random
import time
import unittest
from typing import Any, List, Optional, Tuple

from .test_transcripts import WIRE, Case, feed, pieces, raw
from cjmworker._frames import FrameDecoder, encode_frame
from cjmworker._protocol import Broken, WorkerProtocol

RULES = {
    "header_too_long", "payload_too_long", "empty_header", "truncated", "header_not_utf8", "header_not_json",
    "header_too_deep", "bad_message", "bad_jsonrpc", "bad_id", "bad_params", "unknown_id", "bad_protocol",
}  # fmt: skip
ALPHABET = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\u00", b"\xff", b"null", b"1e999", b"-", b'"id"', b'"method"', b'"params"']


def corpus() -> List[bytes]:
    found = []
    for path in sorted(WIRE.glob("*.jsonl")):
        case = Case(path)
        for side in ("d2w", "w2d"):
            found.append(b"".join(raw(line) for line in case.lines if line["dir"] == side))
    return [data for data in found if data and len(data) < 100_000]


def mutate(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and out:
            out[at % len(out)] = rng.randrange(256)
        elif kind == 1:
            out[at:at] = rng.choice(ALPHABET)
        elif kind == 2:
            del out[at : at + rng.randint(1, 20)]
        elif kind == 3:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 12)))
        else:
            out[at:at] = out[: rng.randint(0, 60)]
    return bytes(out)


def header(rng: random.Random, data: bytes) -> bytes:
    """Mutated text with correct lengths around it, to get behind them."""
    return b"".join(encode_frame(mutate(rng, data[8:200]) or b"{}", data[:5]))


class FuzzFrames(unittest.TestCase):
    def test_fuzz(self) -> None:
        seconds = float(os.environ.get("CJM_FUZZ_SECONDS", "2"))
        rng = random.Random(int(os.environ.get("CJM_FUZZ_SEED", "1")))
        seeds = corpus()
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end or count < 200:
            base = rng.choice(seeds)
            data = rng.choice((mutate, header))(rng, base) if rng.random() < 0.9 else rng.randbytes(rng.randint(1, 80))
            with self.subTest(data=data.hex()[:2000]):
                self._decoder(rng, data)
                self._machine(rng, data)
            count += 1

    def _decoder(self, rng: random.Random, data: bytes) -> None:
        results: List[Tuple[Any, Optional[str]]] = []
        for cut in ("whole", "random"):
            results.append(feed(FrameDecoder(), pieces(data, cut, rng)))
        self.assertEqual(results[0], results[1])
        self.assertIn(results[0][1], RULES | {None})

    def _machine(self, rng: random.Random, data: bytes) -> None:
        protocol = WorkerProtocol()
        broken = 0
        for part in pieces(data, "random", rng):
            if broken:
                break
            for event in protocol.receive(part):
                self.assertFalse(broken, "an event after the end")
                if isinstance(event, Broken):
                    self.assertIn(event.error.rule, RULES)
                    broken += 1


if __name__ == "__main__":
    unittest.main()
