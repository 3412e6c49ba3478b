"""What is in a file, by its content: Google's Magika, whose wheel brings its model.

A file, a list, or a folder, which is walked. ``execute_stream`` yields file by file.
"""
from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, Iterator, List, Tuple, Union

import inputs
from cjmworker import UserInputError, cancelled


@dataclass
class File:
    path: str
    label: str
    mime_type: str
    group: str
    description: str
    is_text: bool
    confidence: float


@dataclass
class Report:
    files: List[File] = field(default_factory=list)
    labels: Dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    mode: str = "high_confidence"
    max_files: int = 10000


SCHEMA: Dict[str, Any] = {
    "type": "object",
    "title": "File types",
    "properties": {
        "mode": {"type": "string", "default": "high_confidence", "enum": ["high_confidence", "medium_confidence", "best_guess"],
                 "description": "How sure the model must be before it says more than text or binary"},
        "max_files": {"type": "integer", "default": 10000, "minimum": 1, "maximum": 1000000, "description": "A folder with more is refused"},
    },
}  # fmt: skip


def load_model(config: Config) -> Any:
    """Import and load. Only here, so that the class can be imported without its libraries."""
    from magika import Magika, PredictionMode

    return Magika(prediction_mode=PredictionMode(config.mode))


class FileType:
    name = "filetype"
    version = "1.0.0"

    load_model = staticmethod(load_model)  # what a test replaces

    def __init__(self) -> None:
        self.config = Config()
        self.model: Any = None

    def initialize(self, config: Dict[str, Any]) -> None:
        wanted = replace(Config(), **config)
        if self.model is None or wanted.mode != self.config.mode:
            self.model = self.load_model(wanted)
        self.config = wanted

    def get_config_schema(self) -> Dict[str, Any]:
        return SCHEMA

    def get_current_config(self) -> Config:
        return self.config

    def execute(self, path: Any) -> Report:
        files = self.execute_stream(path)
        while True:
            try:
                next(files)
            except StopIteration as end:
                return end.value

    def execute_stream(self, path: Any) -> Iterator[Dict[str, Any]]:
        todo = self._todo(path)
        found: List[File] = []
        for number, (name, source) in enumerate(todo, 1):
            if cancelled():
                break  # what is known so far becomes the partial result
            file = self._identify(name, source)
            found.append(file)
            self.report_progress(number / len(todo), "%d of %d files" % (number, len(todo)))
            yield asdict(file)
        return Report(found, dict(Counter(file.label for file in found).most_common()))

    def _todo(self, path: Any) -> List[Tuple[str, Union[str, bytes]]]:
        """Name and source of each file."""
        todo: List[Tuple[str, Union[str, bytes]]] = []
        for one in path if isinstance(path, list) else [path]:
            if isinstance(one, str) and os.path.isdir(folder := inputs.located(one, "path")):
                todo += self._walk(folder)
                continue
            source = inputs.source(one, "path")
            todo.append((one if isinstance(one, str) else "data", source))
        if not todo:
            raise UserInputError("there is no file to look at", fields=["path"])
        return todo

    def _walk(self, folder: str) -> Iterator[Tuple[str, str]]:
        count = 0
        for top, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                full = os.path.join(top, name)
                if os.path.islink(full) or not os.path.isfile(full):
                    continue
                count += 1
                if count > self.config.max_files:
                    raise UserInputError("%s holds more than %d files (max_files)" % (folder, self.config.max_files), fields=["path"])
                yield os.path.relpath(full, folder), full

    def _identify(self, name: str, source: Union[str, bytes]) -> File:
        if isinstance(source, bytes):
            result = self.model.identify_bytes(source)
        else:
            result = self.model.identify_path(source)
        if not result.ok:
            raise UserInputError("cannot read %s: %s" % (name, result.status), fields=["path"])
        kind = result.output
        return File(name, str(kind.label), kind.mime_type, kind.group, kind.description, kind.is_text, round(float(result.score), 3))

    def report_progress(self, progress: float, message: str = "") -> None:
        """Replaced by the runtime; here so that the class works without it."""

    def cleanup(self) -> None:
        self.model = None
