"""Between Python values of a configuration and what JSON has."""
from __future__ import annotations

import enum
import math
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import Any, Callable, Tuple, get_args, get_origin

from ._schema import ARRAYS, OBJECTS, is_union


def to_plain(value: Any) -> Any:
    """``value`` in JSON's types. TypeError when it has no such form."""
    if value is None or isinstance(value, (bool, str, int)) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError("%s is not JSON" % value)
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {name: to_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(to_plain(key)): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((to_plain(item) for item in value), key=repr)
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError("%s has no JSON form" % type(value).__name__)


def from_plain(hint: Any, value: Any, make: Callable[..., Any], strict: bool) -> Any:
    """``value`` of a dict as its annotation wants it: dataclasses by ``make``, enum members
    by their value, tuples, sets and paths. What does not fit is left as it is."""
    if value is None or hint is None:
        return value
    origin, args = get_origin(hint), get_args(hint)
    if is_union(hint):
        return _of_union(args, value, make, strict)
    if isinstance(hint, type):
        return _of_class(hint, value, make, strict)
    if origin in ARRAYS and isinstance(value, (list, tuple)):
        return _of_array(origin, args, value, make, strict)
    if origin in OBJECTS and isinstance(value, dict) and len(args) == 2:
        return {key: from_plain(args[1], item, make, strict) for key, item in value.items()}
    return value


def _of_class(kind: type, value: Any, make: Callable[..., Any], strict: bool) -> Any:
    if is_dataclass(kind) and isinstance(value, dict):
        return make(kind, value, False, strict)
    if issubclass(kind, enum.Enum) and not isinstance(value, kind):
        try:
            return kind(value)
        except ValueError:
            return value  # validate_config says which values there are
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    if kind in (tuple, set, frozenset) and isinstance(value, list):
        return kind(value)
    return value


def _of_union(args: Tuple[Any, ...], value: Any, make: Callable[..., Any], strict: bool) -> Any:
    """The first member that makes something else of the value, else the value."""
    for member in args:
        if member is type(None) or isinstance(member, type) and type(value) is member:
            continue
        made = from_plain(member, value, make, strict)
        if made is not value:
            return made
    return value


def _of_array(origin: Any, args: Tuple[Any, ...], value: Any, make: Callable[..., Any], strict: bool) -> Any:
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        hints = list(args) + [None] * (len(value) - len(args))
    else:
        hints = [args[0] if args else None] * len(value)
    items = [from_plain(hint, item, make, strict) for hint, item in zip(hints, value)]
    return origin(items) if origin in (tuple, set, frozenset) else type(value)(items)


