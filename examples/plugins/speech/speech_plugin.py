"""Speech recognition with PocketSphinx, whose wheel brings its English model.

``execute`` gives the transcript with the time of every word. ``execute_stream``
yields what is understood so far (``partial``) and each finished segment, and
returns the same transcript.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Dict, Iterator, List, Optional

import speech_audio
from cjmworker import UserInputError, cancelled
from pocketsphinx import Decoder, Endpointer

RATE = speech_audio.RATE
FRAMES_PER_SECOND = 100  # of the recogniser's own clock
# The second pass is one call into C, which nothing can interrupt: it stays short.
SECOND_PASS_MAX = 20 * RATE * 2


@dataclass
class Word:
    word: str
    start: float  # seconds
    end: float
    confidence: float


@dataclass
class Segment:
    """One stretch of speech between two pauses."""

    start: float
    end: float
    text: str
    words: List[Word] = field(default_factory=list)


@dataclass
class Transcript:
    text: str
    duration: float
    segments: List[Segment] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    hmm: str = ""  # acoustic model directory; empty: the model in the wheel
    lm: str = ""
    dict: str = ""
    chunk_ms: int = 240
    pause_ms: int = 300
    beam: float = 1e-48
    second_pass: bool = True


SCHEMA: Dict[str, Any] = {
    "type": "object",
    "title": "Speech recognition",
    "properties": {
        "hmm": {"type": "string", "default": "", "description": "Directory of the acoustic model; empty: US English"},
        "lm": {"type": "string", "default": "", "description": "Language model file; empty: US English"},
        "dict": {"type": "string", "default": "", "description": "Pronunciation dictionary; empty: US English"},
        "chunk_ms": {"type": "integer", "default": 240, "minimum": 30, "maximum": 5000,
                     "description": "Audio between two looks at the partial result"},
        "pause_ms": {"type": "integer", "default": 300, "minimum": 100, "maximum": 3000,
                     "description": "A pause of this length ends a segment"},
        "beam": {"type": "number", "default": 1e-48, "minimum": 1e-90, "maximum": 1e-10,
                 "description": "Search beam; wider (smaller) is slower and more accurate"},
        "second_pass": {"type": "boolean", "default": True,
                        "description": "Recognise each finished segment again as a whole: more accurate, twice the work"},
    },
}  # fmt: skip


class Speech:
    name = "speech"
    version = "1.0.0"

    def __init__(self) -> None:
        self.config = Config()
        self.decoder: Optional[Decoder] = None
        self.levels = ""  # the decoder's means before it heard anything

    def initialize(self, config: Dict[str, Any]) -> None:
        wanted = replace(Config(), **config)
        self.report_progress(-1, "loading the acoustic and language model")
        options = {name: value for name in ("hmm", "lm", "dict") if (value := getattr(wanted, name))}
        self.decoder = Decoder(samprate=RATE, loglevel="FATAL", beam=wanted.beam, **options)
        self.levels = self.decoder.get_cmn()
        self.config = wanted

    def get_config_schema(self) -> Dict[str, Any]:
        return SCHEMA

    def get_current_config(self) -> Config:
        return self.config

    def execute(self, audio: Any) -> Transcript:
        events = self.execute_stream(audio)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value

    def execute_stream(self, audio: Any) -> Iterator[Dict[str, Any]]:
        pcm = speech_audio.load(audio)
        # Without this a result would depend on what was recognised before.
        self.decoder.set_cmn(self.levels)
        run = _Run(self.decoder, self.config, len(pcm) / 2 / RATE)
        print("recognising %.1f s of speech" % run.duration)
        try:
            for event in run.events(pcm):
                self.report_progress(run.at / run.duration, "%.1f of %.1f s" % (run.at, run.duration))
                yield event
        finally:
            run.close()
        return Transcript(" ".join(s.text for s in run.segments), round(run.duration, 2), run.segments)

    def report_progress(self, progress: float, message: str = "") -> None:
        """Replaced by the runtime; here so that the class works without it."""

    def cleanup(self) -> None:
        self.decoder = None


class _Run:
    """One recording on its way through the recogniser."""

    def __init__(self, decoder: Decoder, config: Config, duration: float) -> None:
        if duration == 0:
            raise UserInputError("the recording is empty", fields=["audio"])
        self.duration = duration
        self.at = 0.0
        self.segments: List[Segment] = []
        self._decoder = decoder
        self._ears = Endpointer(window=config.pause_ms / 1000, sample_rate=RATE)
        self._chunk = max(1, round(config.chunk_ms / 1000 / self._ears.frame_length))
        self._second_pass = config.second_pass
        self._listening = False
        self._said = ""
        self._heard: List[bytes] = []  # the segment so far

    def events(self, pcm: bytes) -> Iterator[Dict[str, Any]]:
        size = self._ears.frame_bytes
        for number, start in enumerate(range(0, len(pcm), size)):
            frame = pcm[start : start + size]
            last = start + size >= len(pcm)
            speech = self._ears.end_stream(frame) if last else self._ears.process(frame)
            self.at = min((start + len(frame)) / 2 / RATE, self.duration)
            if cancelled():
                self._stop_here()
                return
            if speech:
                self._hear(speech)
            if self._listening and (last or not self._ears.in_speech):
                yield from self._finish()
            elif number % self._chunk == 0:
                yield from self._partial()

    def _stop_here(self) -> None:
        """Keep what was understood before a cancel: it becomes the partial result."""
        self._second_pass = False
        if self._listening:
            list(self._finish())

    def _hear(self, speech: bytes) -> None:
        if not self._listening:
            self._decoder.start_utt()
            self._listening = True
            self._begun = self._ears.speech_start
        self._decoder.process_raw(speech)
        self._heard.append(speech)

    def _partial(self) -> Iterator[Dict[str, Any]]:
        hypothesis = self._decoder.hyp() if self._listening else None
        if hypothesis is not None and hypothesis.hypstr != self._said:
            self._said = hypothesis.hypstr
            yield {"type": "partial", "time": round(self.at, 2), "text": self._said}

    def _finish(self) -> Iterator[Dict[str, Any]]:
        self._decoder.end_utt()
        self._listening = False
        self._said = ""
        self._again()
        words = [
            Word(
                entry.word.partition("(")[0],
                round(self._begun + entry.start_frame / FRAMES_PER_SECOND, 2),
                round(self._begun + (entry.end_frame + 1) / FRAMES_PER_SECOND, 2),
                round(min(entry.prob, 1.0), 3),
            )
            for entry in self._decoder.seg() or ()
            if entry.word[0] not in "<["
        ]
        if words:
            segment = Segment(words[0].start, words[-1].end, " ".join(w.word for w in words), words)
            self.segments.append(segment)
            yield {"type": "segment", **vars(segment)}

    def _again(self) -> None:
        whole = b"".join(self._heard)
        self._heard = []
        if self._second_pass and len(whole) <= SECOND_PASS_MAX:
            self._decoder.start_utt()
            self._decoder.process_raw(whole, full_utt=True)
            self._decoder.end_utt()

    def close(self) -> None:
        """Leave the decoder ready for the next recording, also after a cancel."""
        if self._listening:
            self._decoder.end_utt()
            self._listening = False
