import array
import base64
import io
import math
import sys
import tempfile
import unittest
import wave
from pathlib import Path

import cjmworker
import speech_audio

try:
    import pocketsphinx
except ImportError:
    pocketsphinx = None

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
SPOKEN = {
    "goforward.wav": "go forward ten meters",
    "austen.wav": "had he married a more amiable woman he might have been made still more respectable",
}


def wav(values, rate=16000, channels=1, width=2):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        if width == 1:
            file.writeframes(bytes((value >> 8) + 128 for value in values))
        else:
            pad = b"\0" * (width - 2)
            file.writeframes(b"".join(pad + value.to_bytes(2, "little", signed=True) for value in values))
    return out.getvalue()


def tone(rate, seconds=0.2, hertz=300):
    return [int(8000 * math.sin(2 * math.pi * hertz * n / rate)) for n in range(int(rate * seconds))]


class AudioTest(unittest.TestCase):
    def load(self, data):
        encoded = {"encoding": "base64", "data": base64.b64encode(data).decode()}
        found = array.array("h", speech_audio.load(encoded))
        if sys.byteorder == "big":
            found.byteswap()
        return found

    def test_widths_channels_and_rates_give_the_same_tone(self):
        want = tone(16000)
        self.assertEqual(list(self.load(wav(want))), want)
        for width in (1, 3, 4):
            with self.subTest(width=width):
                self.close_to(self.load(wav(want, width=width)), want, 256)
        stereo = [value for value in want for _ in range(2)]
        self.close_to(self.load(wav(stereo, channels=2)), want, 1)
        for rate in (8000, 22050, 44100, 48000):
            with self.subTest(rate=rate):
                found = self.load(wav(tone(rate), rate=rate))
                self.assertAlmostEqual(len(found), len(want), delta=2)
                self.assertAlmostEqual(crossings(found), crossings(want), delta=1)

    def close_to(self, found, want, delta):
        self.assertEqual(len(found), len(want))
        self.assertLessEqual(max(abs(a - b) for a, b in zip(found, want)), delta)

    def test_wrong_input_is_the_callers_fault(self):
        text = tempfile.NamedTemporaryFile(suffix=".wav")
        self.addCleanup(text.close)
        text.write(b"no audio at all")
        text.flush()
        for audio in (None, 5, "", "/no/such/file.wav", text.name, {"data": "%"}, {}):
            with self.subTest(audio=audio), self.assertRaises(cjmworker.UserInputError) as raised:
                speech_audio.load(audio)
            self.assertEqual(raised.exception.fields, ["audio"])


def crossings(values):
    return sum(1 for a, b in zip(values, values[1:]) if (a < 0) != (b < 0))


@unittest.skipUnless(pocketsphinx, "pocketsphinx is not installed here")
class SpeechTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        from speech_plugin import Speech

        cls.plugin = Speech()
        cls.plugin.initialize({})

    def stream(self, name):
        events, stream = [], self.plugin.execute_stream(str(SAMPLES / name))
        while True:
            try:
                events.append(next(stream))
            except StopIteration as end:
                return events, end.value

    def test_known_words_whatever_was_heard_before(self):
        for name in ("goforward.wav", "austen.wav", "goforward.wav"):
            text = self.plugin.execute(str(SAMPLES / name)).text
            self.assertTrue(text.startswith(SPOKEN[name]), text)

    def test_stream_yields_partials_then_segments_with_word_times(self):
        events, result = self.stream("austen.wav")
        partial = [event for event in events if event["type"] == "partial"]
        segments = [event for event in events if event["type"] == "segment"]
        self.assertGreater(len(partial), 5)
        self.assertEqual([s["text"] for s in segments], [s.text for s in result.segments])
        words = [word for segment in result.segments for word in segment.words]
        for before, after in zip(words, words[1:]):
            self.assertLessEqual(before.start, after.start)
        self.assertLessEqual(words[-1].end, result.duration)

    def test_config_is_checked_and_silence_is_no_error(self):
        with self.assertRaises(TypeError):
            self.plugin.initialize({"nonsense": 1})
        silence = {"data": base64.b64encode(wav([0] * 16000)).decode()}
        self.assertEqual(self.plugin.execute(silence).text, "")
        with self.assertRaises(cjmworker.UserInputError):
            self.plugin.execute({"data": base64.b64encode(wav([])).decode()})

    def test_schema_matches_the_config(self):
        from dataclasses import asdict

        from speech_plugin import SCHEMA, Config

        defaults = {name: spec["default"] for name, spec in SCHEMA["properties"].items()}
        self.assertEqual(defaults, asdict(Config()))


if __name__ == "__main__":
    unittest.main()
