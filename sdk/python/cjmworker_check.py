"""The plugin that ``cjmd worker-check`` talks to when CJM_WORKER_CHECK=1: it shows
what the protocol promises. Beside the runtime, not in it: interrupts treat it as
any other user code."""
from __future__ import annotations

import os
import subprocess
import time
from typing import Any, Dict, Generator

import cjmworker


class CheckPlugin:
    name = "worker-check"
    version = cjmworker.__version__

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        op = str(kwargs.get("op"))
        handler = getattr(self, "_op_" + op, None)
        if handler is None:
            raise cjmworker.UserInputError("unknown op %r" % op, fields=["op"])
        return handler(args, kwargs)

    def execute_stream(self, *args: Any, **kwargs: Any) -> Generator[Any, None, Any]:
        if kwargs.get("op") != "count":
            return self.execute(*args, **kwargs)
        to = int(kwargs["to"])
        for number in range(1, to + 1):
            yield number
        return to

    def cancel(self) -> None:
        """The runtime's flag is all that is needed; offered so that the hook is seen."""

    def _op_echo(self, args: Any, kwargs: Dict[str, Any]) -> Any:
        return {"args": args, "kwargs": kwargs}

    def _op_count(self, args: Any, kwargs: Dict[str, Any]) -> int:
        return int(kwargs["to"])

    def _op_fail(self, args: Any, kwargs: Dict[str, Any]) -> None:
        kinds = {
            "user_input": cjmworker.UserInputError,
            "transient": cjmworker.TransientError,
            "resource": cjmworker.ResourceError,
        }
        kind = kinds.get(str(kwargs.get("category")), cjmworker.FatalError)
        error = kind(str(kwargs.get("message")), retriable=kwargs.get("retriable"))
        if kwargs.get("category"):
            error.category = str(kwargs["category"])
        raise error

    def _op_wait(self, args: Any, kwargs: Dict[str, Any]) -> None:
        cjmworker.report_progress(-1, "waiting")
        while True:
            if not kwargs.get("deaf"):
                cjmworker.check_cancel()
            time.sleep(0.005)

    def _op_big(self, args: Any, kwargs: Dict[str, Any]) -> str:
        return "x" * int(kwargs["bytes"])

    def _op_noise(self, args: Any, kwargs: Dict[str, Any]) -> int:
        left = count = int(kwargs["bytes"])
        line = b"noise " * 10 + b"\n"
        while left > 0:
            left -= os.write(1, line[:left])
        return count

    def _op_spawn(self, args: Any, kwargs: Dict[str, Any]) -> int:
        return subprocess.Popen(["sleep", "300"]).pid
