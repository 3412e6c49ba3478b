"""Text in pictures, with RapidOCR: the wheel brings its detection and recognition models.

``execute`` reads one picture or a list of pages; ``execute_stream`` yields page by page.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, Iterator, List

import inputs
from cjmworker import UserInputError, cancelled


@dataclass
class Line:
    text: str
    confidence: float
    box: List[List[float]]  # four corners, clockwise from the top left, in pixels


@dataclass
class Page:
    page: int  # from 1
    text: str
    lines: List[Line] = field(default_factory=list)


@dataclass
class Document:
    text: str
    pages: List[Page] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    min_confidence: float = 0.5
    rotated: bool = True
    threads: int = 2


SCHEMA: Dict[str, Any] = {
    "type": "object",
    "title": "Text recognition",
    "properties": {
        "min_confidence": {"type": "number", "default": 0.5, "minimum": 0, "maximum": 1, "description": "Lines below it are left out"},
        "rotated": {"type": "boolean", "default": True, "description": "Also recognise lines that stand on their head"},
        "threads": {"type": "integer", "default": 2, "minimum": 1, "maximum": 64, "description": "Threads of the models"},
    },
}  # fmt: skip


def load_engine(config: Config) -> Any:
    """Import and load. Only here, so that the class can be imported without its libraries."""
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=config.threads)


class Ocr:
    name = "ocr"
    version = "1.0.0"

    load_engine = staticmethod(load_engine)  # what a test replaces

    def __init__(self) -> None:
        self.config = Config()
        self.engine: Any = None

    def initialize(self, config: Dict[str, Any]) -> None:
        wanted = replace(Config(), **config)
        if self.engine is None or wanted.threads != self.config.threads:
            self.report_progress(-1, "loading the models")
            self.engine = self.load_engine(wanted)
        self.config = wanted

    def get_config_schema(self) -> Dict[str, Any]:
        return SCHEMA

    def get_current_config(self) -> Config:
        return self.config

    def execute(self, image: Any) -> Document:
        pages = self.execute_stream(image)
        while True:
            try:
                next(pages)
            except StopIteration as end:
                return end.value

    def execute_stream(self, image: Any) -> Iterator[Dict[str, Any]]:
        images = image if isinstance(image, list) else [image]
        if not images:
            raise UserInputError("image must be a picture or a list of at least one", fields=["image"])
        sources = [inputs.source(one, "image") for one in images]  # a missing last page fails at once
        pages: List[Page] = []
        for number, source in enumerate(sources, 1):
            if cancelled():
                break  # the pages so far become the partial result
            page = self._read(number, source)
            pages.append(page)
            self.report_progress(number / len(sources), "page %d of %d" % (number, len(sources)))
            yield asdict(page)
        return Document("\n\n".join(page.text for page in pages), pages)

    def _read(self, number: int, source: Any) -> Page:
        try:
            found, _ = self.engine(source, use_cls=self.config.rotated, text_score=self.config.min_confidence)
        except Exception as exc:
            if type(exc).__name__ in ("LoadImageError", "UnidentifiedImageError"):
                raise UserInputError("page %d is no picture that can be read: %s" % (number, exc), fields=["image"]) from exc
            raise
        lines = [
            Line(text, round(float(score), 3), [[round(float(x), 1), round(float(y), 1)] for x, y in box])
            for box, text, score in found or ()
        ]
        return Page(number, "\n".join(line.text for line in lines), lines)

    def report_progress(self, progress: float, message: str = "") -> None:
        """Replaced by the runtime; here so that the class works without it."""

    def cleanup(self) -> None:
        self.engine = None
