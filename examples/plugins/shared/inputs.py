"""What several of the examples take: a file by its path, or its bytes as base64. Standard library only."""
from __future__ import annotations

import base64
import binascii
import os
from typing import Any, Union

from cjmworker import UserInputError, job_dir


def source(value: Any, field: str) -> Union[str, bytes]:
    """The path of an existing file (absolute, or inside the job's directory), or the
    bytes of ``{"encoding": "base64", "data": "…"}``. Anything else is the caller's fault."""
    if isinstance(value, dict):
        try:
            return base64.b64decode(str(value["data"]), validate=True)
        except (KeyError, binascii.Error) as exc:
            raise UserInputError("%s.data is no base64: %s" % (field, exc), fields=[field]) from exc
    path = located(value, field)
    if not os.path.isfile(path):
        raise UserInputError("there is no file %s" % value, fields=[field])
    return path


def located(value: Any, field: str) -> str:
    """An absolute path, which need not exist."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise UserInputError("%s must be a path or an object with base64 data" % field, fields=[field])
    return value if os.path.isabs(value) else os.path.join(job_dir() or os.getcwd(), value)
