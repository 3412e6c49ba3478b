import base64
import io
import sys
import unittest
import wave
from pathlib import Path
from unittest import mock

EXAMPLES = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(EXAMPLES / "speech"))

import cjmworker
import vad_plugin
from vad_plugin import WINDOW, WINDOW_SECONDS, Config, Vad, spans


def windows(text):
    """One window a character: digits are tenths."""
    return iter([int(c) / 10 for c in text])


def stretches(text, **config):
    found = spans(windows(text), Config(**{"pad_ms": 0, "min_speech_ms": 64, "min_silence_ms": 96, **config}), len(text) * WINDOW_SECONDS)
    return [(round(s.start / WINDOW_SECONDS), round(s.end / WINDOW_SECONDS)) for s in found]


class SpansTest(unittest.TestCase):
    def test_where_a_stretch_begins_and_ends(self):
        for text, want in {
            "0000": [],
            "0099900000": [(2, 5)],
            "00999": [(2, 5)],  # speech up to the end
            "9990099900000": [(0, 8)],  # a short silence is part of it
            "99900009990000": [(0, 3), (7, 10)],
            "0090000": [],  # too short for speech
            "0099444900000": [(2, 8)],  # weak syllables do not end it
            "0044400000": [],  # and do not begin one
        }.items():
            with self.subTest(windows=text):
                self.assertEqual(stretches(text), want)

    def test_padding_stays_inside_and_never_overlaps(self):
        found = list(spans(windows("9990000099900"), Config(pad_ms=1000, min_speech_ms=64, min_silence_ms=96), 13 * WINDOW_SECONDS))
        self.assertEqual(found[0].start, 0)
        self.assertEqual(found[0].end, found[1].start)
        self.assertEqual(found[1].end, round(13 * WINDOW_SECONDS, 3))

    def test_a_stretch_is_told_as_soon_as_it_ended(self):
        source = windows("99900000009990000")
        first = next(spans(source, Config(pad_ms=0, min_speech_ms=64, min_silence_ms=96), 1))
        self.assertEqual(first.start, 0)
        self.assertGreater(len(list(source)), 8)


class Detector:
    """Loud is speech."""

    def __init__(self):
        self.resets = 0

    def reset(self):
        self.resets += 1

    def __call__(self, window):
        assert len(window) == WINDOW * 2, len(window)
        return 0.9 if any(window) else 0.0


def recording(*parts):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        for loud, seconds in parts:
            file.writeframes((b"\0\x10" if loud else b"\0\0") * int(16000 * seconds))
    return {"encoding": "base64", "data": base64.b64encode(out.getvalue()).decode()}


class VadTest(unittest.TestCase):
    def setUp(self):
        self.detector = Detector()
        self.progress = []
        self.plugin = Vad()
        self.plugin.load_detector = lambda: self.detector
        self.plugin.report_progress = lambda fraction, message="": self.progress.append(fraction)
        self.plugin.initialize({"pad_ms": 0})

    def test_result_and_stream_agree(self):
        audio = recording((False, 1), (True, 1), (False, 1), (True, 0.5), (False, 0.6))
        stream = list(self.plugin.execute_stream(audio))
        result = self.plugin.execute(audio)
        self.assertEqual([chunk["start"] for chunk in stream], [s.start for s in result.segments])
        self.assertEqual(len(stream), 2)
        self.assertAlmostEqual(stream[0]["start"], 1, delta=WINDOW_SECONDS)
        self.assertAlmostEqual(result.speech_seconds, 1.5, delta=4 * WINDOW_SECONDS)
        self.assertEqual(self.detector.resets, 2)
        half = len(self.progress) // 2
        self.assertEqual(self.progress[:half], sorted(self.progress[:half]))
        self.assertGreater(self.progress[half - 1], 0.9)

    def test_a_cancel_keeps_what_was_found(self):
        audio = recording((True, 1), (False, 1), (True, 5))
        with mock.patch.object(vad_plugin, "cancelled", side_effect=[False] * 80 + [True]):
            result = self.plugin.execute(audio)
        self.assertEqual(result.segments[0].start, 0)
        self.assertLess(result.segments[-1].end, 3)

    def test_nothing_is_said_and_nothing_at_all(self):
        self.assertEqual(self.plugin.execute(recording((False, 1))).segments, [])
        with self.assertRaisesRegex(cjmworker.UserInputError, "empty"):
            self.plugin.execute(recording())


if __name__ == "__main__":
    unittest.main()
