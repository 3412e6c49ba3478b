import sys
import unittest
from collections import namedtuple
from pathlib import Path
from unittest import mock

EXAMPLES = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(EXAMPLES / "shared"))

import cjmworker
import whisper_plugin
from whisper_plugin import RATE, Whisper

Raw = namedtuple("Raw", "start end text avg_logprob words")
Info = namedtuple("Info", "language")
Word = namedtuple("Word", "word start end probability")


class Model:
    """Says one segment a second, when it is asked for it."""

    def __init__(self):
        self.said = 0
        self.options = None

    def transcribe(self, samples, **options):
        self.options = options
        return self._segments(len(samples) // RATE), Info("en")

    def _segments(self, seconds):
        for n in range(seconds):
            self.said += 1
            yield Raw(n, n + 1, " part %d " % n, -0.1, [Word(" part", n, n + 0.5, 0.9)])


class WhisperTest(unittest.TestCase):
    def setUp(self):
        self.models = []
        self.progress = []
        self.plugin = Whisper()
        self.plugin.load_model = self.load
        self.plugin.decode_audio = lambda file: [0.0] * (3 * RATE)
        self.plugin.report_progress = lambda fraction, message="": self.progress.append(fraction)
        self.plugin.initialize({})
        quiet = mock.patch("builtins.print")
        quiet.start()
        self.addCleanup(quiet.stop)

    def load(self, config):
        self.models.append(Model())
        return self.models[-1]

    def test_segments_arise_one_by_one_and_make_the_transcript(self):
        stream = self.plugin.execute_stream(__file__)
        self.assertEqual(next(stream)["text"], "part 0")
        self.assertEqual(self.models[0].said, 1)
        self.assertEqual([chunk["text"] for chunk in stream], ["part 1", "part 2"])
        result = self.plugin.execute(__file__)
        self.assertEqual((result.text, result.language, result.duration), ("part 0 part 1 part 2", "en", 3.0))
        self.assertEqual(result.segments[0].words, [{"word": "part", "start": 0, "end": 0.5, "confidence": 0.9}])
        self.assertEqual(self.progress[-1], 1.0)

    def test_a_cancel_keeps_what_was_understood(self):
        with mock.patch.object(whisper_plugin, "cancelled", side_effect=[False, True]):
            result = self.plugin.execute(__file__)
        self.assertEqual(result.text, "part 0 part 1")
        self.assertEqual(self.models[0].said, 2)

    def test_only_the_stretches_with_speech_are_heard(self):
        self.plugin.execute(__file__, speech=[{"start": 0.5, "end": 1}, {"start": 2, "end": 2.5, "confidence": 1}])
        self.assertEqual(self.models[0].options["clip_timestamps"], [0.5, 1.0, 2.0, 2.5])
        self.assertEqual(self.plugin.execute(__file__, speech=[]).text, "")
        for wrong in ([{"start": 1}], [1], "x", [{"start": 2, "end": 1}], [{"start": 0, "end": 2}, {"start": 1, "end": 3}]):
            with self.subTest(speech=wrong), self.assertRaises(cjmworker.UserInputError):
                self.plugin.execute(__file__, speech=wrong)

    def test_a_new_model_only_where_the_config_asks_for_one(self):
        self.plugin.initialize({"beam_size": 5, "words": True})
        self.assertEqual(len(self.models), 1)
        self.plugin.initialize({"compute_type": "float32"})
        self.assertEqual(len(self.models), 2)
        with self.assertRaises(TypeError):
            self.plugin.initialize({"nonsense": 1})

    def test_what_cannot_be_decoded_is_the_callers_fault(self):
        def broken(file):
            raise ValueError("Invalid data found")

        self.plugin.decode_audio = broken
        with self.assertRaisesRegex(cjmworker.UserInputError, "Invalid data found"):
            self.plugin.execute(__file__)
        with self.assertRaisesRegex(cjmworker.UserInputError, "there is no file"):
            self.plugin.execute("/no/such/recording.wav")


if __name__ == "__main__":
    unittest.main()
