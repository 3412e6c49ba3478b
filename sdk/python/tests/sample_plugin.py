"""A plugin as an author writes one, for the tests of the SDK."""
from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Dict, Generator, List

import cjmd


@dataclass
class Config:
    greeting: str = field(default="hello", metadata={cjmd.SCHEMA_MIN_LEN: 1})
    model: str = field(default="tiny", metadata={cjmd.SCHEMA_ENUM: ["tiny", "base"], cjmd.RELOAD_TRIGGER: "model"})


class Greeter(cjmd.PluginInterface):
    name = "greeter"
    version = "1.2"
    config_class = Config
    released: List[str] = []

    def execute(self, who: str = "world", **kwargs: Any) -> Dict[str, Any]:
        self.report_progress(0.5, "half")
        return {"text": "%s %s" % (self.config.greeting, who), "kwargs": kwargs}

    def execute_stream(self, *words: str) -> Generator[str, None, int]:
        for word in words:
            yield word.upper()
        return len(words)

    def fail(self, message: str) -> None:
        raise cjmd.UserInputError(message, fields=["message"])

    def wait(self) -> None:
        self.report_progress(-1, "waiting")
        told: List[int] = []
        with self.cancel_signal_to(lambda: told.append(1)):
            while not told:
                time.sleep(0.002)
        self.check_cancel()

    def deaf(self) -> None:
        self.report_progress(-1, "waiting")
        while True:
            time.sleep(60)

    def shout(self) -> None:
        print("printed", file=sys.stderr)
        sys.stdout.flush()

    def die(self) -> None:
        os.write(2, b"last words\n")
        os._exit(9)

    def flood(self) -> None:
        os.write(2, b"x" * 1_000_000)

    def file(self) -> Any:
        class Written:
            def to_temp_file(self) -> str:
                path = os.path.join(os.environ.get("TMPDIR", "/tmp"), "written-%d" % os.getpid())
                with open(path, "w") as out:
                    out.write("content")
                return path

        return Written()

    def _release_model(self) -> None:
        self.released.append(self.config.model)


class Upper(cjmd.TaskAdapter):
    task_name = "upper"

    def run(self, who: str) -> str:
        return str(self.tool.execute(who)["text"]).upper()
