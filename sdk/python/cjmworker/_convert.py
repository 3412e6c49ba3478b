"""Results to JSON, as people expect it, or an error that names the place.

The fast path is one run of the C encoder with a hook for what JSON lacks. When
that fails, the value is walked in Python to find the path of the offender.
"""
from __future__ import annotations

import sys

from . import _jsonio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional

# A larger array belongs in a file: as JSON text it would be ten times its size.
MAX_ARRAY = 1_000_000
MAX_DEPTH = 200


class ConvertError(ValueError):
    """A result has no JSON form. The text names the path inside the result."""

    category = "fatal"
    retriable = False


def to_json(value: "Any", root: str = "result", file_dir: "Optional[str]" = None) -> bytes:
    """``value`` as JSON. ConvertError says which part of it cannot be sent."""
    if value is None:
        return b"null"
    hook = _hook if file_dir is None else _hook_into(file_dir)
    try:
        return _jsonio.make_encoder(hook)(value).encode("utf-8")
    except UnicodeEncodeError:
        return _jsonio.make_encoder(hook, True)(value).encode("ascii")
    except (ValueError, TypeError, RecursionError, OverflowError):
        pass
    # The walk has its own rules for odd keys, so it may succeed where C did not.
    return _jsonio.dumps(_Walk(hook).walk(value, root))


def _hook(value: "Any") -> "Any":
    return simplify(value, None)


def _hook_into(file_dir: str) -> "Callable":
    return lambda value: simplify(value, file_dir)


def simplify(value: "Any", file_dir: "Optional[str]" = None) -> "Any":
    """One step from a Python object towards JSON types. TypeError: there is none."""
    kind = type(value)
    if isinstance(value, type):
        raise TypeError("is the class %s, not a value" % _type_name(value))
    if hasattr(kind, "__dataclass_fields__") and not callable(getattr(value, "to_temp_file", None)):
        fields = sys.modules["dataclasses"].fields(value)
        return {field.name: getattr(value, field.name) for field in fields}
    if isinstance(value, (bytes, bytearray, memoryview)):
        import base64

        return {"type": "bytes", "encoding": "base64", "data": base64.b64encode(value).decode("ascii")}
    if isinstance(value, (set, frozenset)):
        return _ordered(value)
    for convert in (_from_stdlib, _from_libraries):
        found = convert(value, file_dir)
        if found is not _NOTHING:
            return found
    if hasattr(kind, "__next__") or hasattr(kind, "__iter__"):
        return dict(value.items()) if hasattr(kind, "items") and hasattr(kind, "keys") else list(value)
    raise TypeError("is a %s, which has no JSON form" % _type_name(kind))


_NOTHING = object()


def _from_stdlib(value: "Any", file_dir: "Optional[str]") -> "Any":
    # Modules that nobody has imported cannot have made the value.
    modules = sys.modules
    enum = modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return value.value
    if hasattr(type(value), "__fspath__"):
        return str(value)
    datetime = modules.get("datetime")
    if datetime is not None:
        if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
            return value.isoformat()
        if isinstance(value, datetime.timedelta):
            return value.total_seconds()
    name = _type_name(type(value))
    if name in ("decimal.Decimal", "uuid.UUID", "fractions.Fraction") or name.startswith("ipaddress."):
        if getattr(value, "is_finite", None) is not None and not value.is_finite():
            raise ValueError("is %s, which is not JSON" % value)
        return str(value)
    return _NOTHING


def _from_libraries(value: "Any", file_dir: "Optional[str]") -> "Any":
    """Objects of libraries that we never import, known by their shape."""
    to_file = getattr(value, "to_temp_file", None)
    if callable(to_file):
        return _into_dir(str(to_file()), file_dir)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy, torch, cupy, jax
        count = 1
        for extent in getattr(value, "shape", ()):
            count *= int(extent)
        if count > MAX_ARRAY:
            raise ValueError(
                "is an array of %d elements; over %d, write a file and return its path" % (count, MAX_ARRAY)
            )
        return value.tolist()
    for method in ("model_dump", "to_dict", "_asdict"):  # pydantic; many; namedtuple-likes
        dump = getattr(type(value), method, None)
        if callable(dump):
            return dump(value)
    attrs = getattr(type(value), "__attrs_attrs__", None)
    if attrs is not None:
        return {field.name: getattr(value, field.name) for field in attrs}
    return _NOTHING


def _into_dir(path: str, file_dir: "Optional[str]") -> str:
    """Move a temporary file into the call's own directory, which is removed with it."""
    import os

    if not file_dir or os.path.dirname(os.path.abspath(path)) == os.path.abspath(file_dir):
        return path
    import shutil

    target = os.path.join(file_dir, os.path.basename(path))
    if os.path.exists(target):
        stem, ext = os.path.splitext(target)
        target = "%s-%x%s" % (stem, os.stat(path).st_ino, ext)
    return shutil.move(path, target)


def _ordered(value: "Any") -> "List[Any]":
    try:
        return sorted(value)
    except TypeError:
        return list(value)


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else "%s.%s" % (kind.__module__, kind.__qualname__)


class _Walk:
    """The slow way: every container by hand, with its path, to name what is wrong."""

    def __init__(self, hook: "Callable") -> None:
        self._hook = hook
        self._open: set = set()

    def walk(self, value: "Any", path: str, depth: int = 0) -> "Any":
        if value is None or isinstance(value, (bool, str)):
            return value if not isinstance(value, str) else str(value)
        if isinstance(value, int):
            return self._integer(value, path)
        if isinstance(value, float):
            if value != value or value in (float("inf"), float("-inf")):
                raise ConvertError("%s is %s, which is not JSON" % (path, _float_name(value)))
            return float(value)
        if depth > MAX_DEPTH:
            raise ConvertError("%s is nested more than %d levels deep" % (path, MAX_DEPTH))
        mark = id(value)
        if mark in self._open:
            raise ConvertError("%s refers to an object that contains it" % path)
        self._open.add(mark)
        try:
            return self._container(value, path, depth)
        finally:
            self._open.discard(mark)

    def _integer(self, value: int, path: str) -> int:
        try:
            str(int(value))
        except ValueError:  # Python's own limit on digits
            raise ConvertError("%s is an integer with too many digits" % path) from None
        return int(value)

    def _container(self, value: "Any", path: str, depth: int) -> "Any":
        if isinstance(value, dict):
            return {
                self._key(key, path): self.walk(item, _member(path, key), depth + 1) for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.walk(item, "%s[%d]" % (path, n), depth + 1) for n, item in enumerate(value)]
        try:
            simpler = self._hook(value)
        except (TypeError, ValueError, RecursionError) as exc:
            raise ConvertError("%s %s" % (path, exc)) from None
        return self.walk(simpler, path, depth + 1)

    def _key(self, key: "Any", path: str) -> str:
        if isinstance(key, str):
            return str(getattr(key, "value", key))
        if key is None or isinstance(key, bool):
            return {None: "null", True: "true", False: "false"}[key]
        simple = key
        if not isinstance(key, (int, float)):
            try:
                simple = self._hook(key)
            except (TypeError, ValueError):
                simple = None
        if isinstance(simple, float) and simple != simple:
            simple = None
        if not isinstance(simple, (str, int, float)):
            raise ConvertError("%s has a key of type %s, which has no JSON form" % (path, _type_name(type(key))))
        return str(simple)


def _member(path: str, key: "Any") -> str:
    if isinstance(key, str) and key.isidentifier():
        return "%s.%s" % (path, key)
    return "%s[%.80r]" % (path, key)


def _float_name(value: float) -> str:
    if value != value:
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
