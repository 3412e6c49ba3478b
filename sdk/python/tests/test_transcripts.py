"""The transcripts that the Go side replays, replayed here."""
from __future__ import annotations

import json
import random
import unittest
from pathlib import Path
from typing import Any, Dict, List

from .harness import SDK
from cjmworker._frames import FrameDecoder, FrameError, encode_frame
from cjmworker._protocol import Broken, Refused, RemoteProtocolError, WorkerProtocol

WIRE = SDK.parents[1] / "testdata" / "wire"


class Case:
    def __init__(self, path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
        self.head, self.lines, self.expect = lines[0], lines[1:-1], lines[-1]
        self.name = self.head["case"]
        self.limits: Dict[str, int] = self.head.get("limits", {})


def raw(line: Dict[str, Any]) -> bytes:
    if "raw_hex" in line:
        return bytes.fromhex(line["raw_hex"])
    if "eof" in line:
        return b""
    if "header" in line:
        header = json.dumps(line["header"], separators=(",", ":")).encode()
    elif "header_text" in line:
        header = line["header_text"].encode()
    else:
        header = bytes.fromhex(line["header_hex"])
    if "payload_b64" in line:
        import base64

        return b"".join(encode_frame(header, base64.b64decode(line["payload_b64"])))
    return b"".join(encode_frame(header, line.get("payload", "").encode()))


def cases(level: str) -> List[Case]:
    found = [Case(path) for path in sorted(WIRE.glob("*.jsonl"))]
    return [case for case in found if case.head["level"] == level]


class Frames(unittest.TestCase):
    def test_there_are_transcripts(self) -> None:
        self.assertGreater(len(cases("frames")), 20)
        self.assertGreater(len(cases("conversation")), 20)

    def test_decoder_agrees_however_the_bytes_are_cut(self) -> None:
        rng = random.Random(7)
        for case in cases("frames"):
            for cut in ("whole", "bytes", "random"):
                with self.subTest(case=case.name, cut=cut):
                    self._decode(case, cut, rng)

    def _decode(self, case: Case, cut: str, rng: random.Random) -> None:
        rules = []
        for side in ("d2w", "w2d"):
            lines = [line for line in case.lines if line["dir"] == side]
            data = b"".join(raw(line) for line in lines)
            decoder = FrameDecoder(**self._limits(case))
            frames, rule = feed(decoder, pieces(data, cut, rng))
            if rule:
                rules.append(rule)
            good = [line for line in lines if "header" in line or "header_text" in line]
            if not rule:
                self.assertEqual(len(frames), len(good))
            else:
                self.assertIn(len(frames), (len(good), len(good) - 1))
            for (header, payload), line in zip(frames, good):
                self.assertEqual(header, line.get("header") or json.loads(line["header_text"]))
                if "payload" in line:
                    self.assertEqual(payload, line["payload"].encode())
        expected = [] if case.expect["expect"] == "ok" else [case.expect["rule"]]
        self.assertEqual(rules, expected)

    def _limits(self, case: Case) -> Dict[str, int]:
        return {name: case.limits[name] for name in ("max_header", "max_payload") if name in case.limits}


def pieces(data: bytes, cut: str, rng: random.Random) -> List[bytes]:
    if cut == "whole" or not data:
        return [data] if data else []
    if cut == "bytes" and len(data) < 5000:
        return [data[i : i + 1] for i in range(len(data))]
    found, at = [], 0
    while at < len(data):
        step = rng.randint(1, max(1, len(data) // 3))
        found.append(data[at : at + step])
        at += step
    return found


def feed(decoder: FrameDecoder, parts: List[bytes]) -> Any:
    frames: List[Any] = []
    try:
        for part in parts:
            frames += decoder.feed(part)
        decoder.end()
    except FrameError as exc:
        return frames, exc.rule
    return frames, None


class Conversations(unittest.TestCase):
    """Plays the worker: takes every d2w line, sends every w2d line through the state
    machine, and compares what would go over the wire."""

    def test_worker_side(self) -> None:
        played = 0
        for case in cases("conversation"):
            # Where the daemon is the one to object, the worker of the transcript broke
            # the rules; ours refuses to (test_protocol.py).
            if case.expect.get("by") != "daemon":
                with self.subTest(case=case.name):
                    self._play(case)
                    played += 1
        self.assertGreater(played, 10)

    def _play(self, case: Case) -> None:
        protocol = WorkerProtocol()
        names: Dict[str, Any] = {}
        for n, line in enumerate(case.lines):
            if line["dir"] == "d2w":
                if "eof" in line:
                    protocol.receive_eof()
                    continue
                for event in protocol.receive(raw(line)):
                    if isinstance(event, Broken):
                        self.assertEqual((case.expect.get("rule"), n), (event.error.rule, len(case.lines) - 1))
                        return
                    names[event.id] = event
            elif "header" in line:
                self._send(protocol, line, names)
        self.assertEqual(case.expect["expect"], "ok")

    def _send(self, protocol: WorkerProtocol, line: Dict[str, Any], requests: Dict[str, Any]) -> None:
        header, payload = line["header"], line.get("payload", "").encode()
        if "method" in header:
            params = dict(header.get("params", {}))
            if header["method"] == "chunk":
                if params["job"] not in protocol._chunks:
                    return
                sent = protocol.chunk(params["job"], payload)
            else:
                sent = protocol.notify(header["method"], params)
        else:
            request = requests[header["id"]]
            if "error" in header:
                error = header["error"]
                send = protocol.load_error if request.method == "hello" and not isinstance(request, Refused) else protocol.error
                sent = send(request.id, error["code"], error["message"], error.get("data"))
                if isinstance(request, Refused):
                    self.assertEqual(request.code, error["code"])
            elif request.method == "hello":
                sent = protocol.ready(request.id, header["result"], payload)
            else:
                sent = protocol.answer(request.id, header["result"], payload)
        decoder = FrameDecoder()
        (got_header, got_payload), = decoder.feed(b"".join(sent))
        self.assertEqual(got_header, header)
        if "result" in header or header.get("method") == "chunk":
            self.assertEqual(got_payload, payload)


if __name__ == "__main__":
    unittest.main()
