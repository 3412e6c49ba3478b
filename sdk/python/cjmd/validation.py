"""Configuration dataclasses: their JSON Schema, their checks, and the way from and to dicts.

Fields say more about themselves in their metadata::

    @dataclass
    class Config:
        model: str = field(default="tiny", metadata={SCHEMA_TITLE: "Model", SCHEMA_ENUM: ["tiny", "base"]})
        beam: int = field(default=5, metadata={SCHEMA_MIN: 1, SCHEMA_MAX: 10, RELOAD_TRIGGER: "model"})

The functions and constants are those of the Python system that came before, with its
results wherever those were right; docs/plugins.md lists what they mend.
"""
from __future__ import annotations

import enum
import logging
import re
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Dict, List, Optional, Tuple, Type, TypeVar

from ._convert import from_plain, to_plain
from ._schema import hints_of, schema_of_class, schema_of_type
from .errors import ConfigError

T = TypeVar("T")

SCHEMA_TITLE = "title"  # what a form shows as the name
SCHEMA_DESC = "description"  # its help text
SCHEMA_MIN = "minimum"  # of a number
SCHEMA_MAX = "maximum"
SCHEMA_ENUM = "enum"  # the values there are
SCHEMA_MIN_LEN = "minLength"  # of a text
SCHEMA_MAX_LEN = "maxLength"
SCHEMA_PATTERN = "pattern"  # regular expression, from the start of the text on
SCHEMA_FORMAT = "format"  # email, uri, date, …: for forms, never checked
RELOAD_TRIGGER = "reload_trigger"  # a change of the field calls _release_<value>()

__all__ = [
    "RELOAD_TRIGGER", "SCHEMA_DESC", "SCHEMA_ENUM", "SCHEMA_FORMAT", "SCHEMA_MAX", "SCHEMA_MAX_LEN", "SCHEMA_MIN",
    "SCHEMA_MIN_LEN", "SCHEMA_PATTERN", "SCHEMA_TITLE", "T", "ConfigError", "config_to_dict", "dataclass_to_jsonschema",
    "dict_to_config", "extract_defaults", "validate_config", "validate_field_value",
]  # fmt: skip

_logger = logging.getLogger(__name__)


def validate_field_value(value: Any, metadata: Dict[str, Any], field_name: str = "") -> Tuple[bool, Optional[str]]:
    """Check one value against the constraints of a field. (True, None), or (False, why).

    ``enum`` holds for any value, the limits for numbers (not bools), lengths and pattern
    for texts. A value of another type passes: the annotation is a hint.
    """
    if SCHEMA_ENUM in metadata and value not in metadata[SCHEMA_ENUM]:
        return False, "%s: %r is not one of %s" % (field_name, value, metadata[SCHEMA_ENUM])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if SCHEMA_MIN in metadata and value < metadata[SCHEMA_MIN]:
            return False, "%s: %s is less than minimum %s" % (field_name, value, metadata[SCHEMA_MIN])
        if SCHEMA_MAX in metadata and value > metadata[SCHEMA_MAX]:
            return False, "%s: %s is greater than maximum %s" % (field_name, value, metadata[SCHEMA_MAX])
    if isinstance(value, str):
        return _validate_text(value, metadata, field_name)
    return True, None


def _validate_text(value: str, metadata: Dict[str, Any], name: str) -> Tuple[bool, Optional[str]]:
    size = len(value)
    if SCHEMA_MIN_LEN in metadata and size < metadata[SCHEMA_MIN_LEN]:
        return False, "%s: string length %d is less than minimum %s" % (name, size, metadata[SCHEMA_MIN_LEN])
    if SCHEMA_MAX_LEN in metadata and size > metadata[SCHEMA_MAX_LEN]:
        return False, "%s: string length %d is greater than maximum %s" % (name, size, metadata[SCHEMA_MAX_LEN])
    if SCHEMA_PATTERN in metadata and not re.match(metadata[SCHEMA_PATTERN], value):
        return False, "%s: %r does not match pattern %r" % (name, value, metadata[SCHEMA_PATTERN])
    return True, None


def validate_config(config: Any) -> Tuple[bool, Optional[str]]:
    """Check all fields, those of dataclasses inside it, too. The first failure wins."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError("Expected dataclass instance, got %s" % type(config).__name__)
    return _validate_fields(config, "")


def _validate_fields(config: Any, prefix: str) -> Tuple[bool, Optional[str]]:
    hints = hints_of(type(config))
    for f in fields(config):
        name, value = prefix + f.name, getattr(config, f.name)
        valid, error = validate_field_value(value, dict(f.metadata), name)
        if valid:
            valid, error = _validate_choice(value, hints.get(f.name), name)
        if valid and is_dataclass(value) and not isinstance(value, type):
            valid, error = _validate_fields(value, name + ".")
        if not valid:
            return False, error
    return True, None


def _validate_choice(value: Any, hint: Any, name: str) -> Tuple[bool, Optional[str]]:
    """A Literal or an Enum in the annotation is a constraint like ``enum``."""
    if hint is None or value is None:
        return True, None
    schema = schema_of_type(hint)
    if SCHEMA_ENUM not in schema:
        return True, None
    plain = value.value if isinstance(value, enum.Enum) else value
    choices = [choice for choice in schema[SCHEMA_ENUM] if choice is not None]
    return validate_field_value(plain, {SCHEMA_ENUM: choices}, name)


def config_to_dict(config: Any) -> Dict[str, Any]:
    """A configuration as a dict; a dict is returned as it is."""
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    if isinstance(config, dict):
        return config
    raise TypeError("Expected dataclass instance or dict, got %s" % type(config).__name__)


def dict_to_config(config_class: Type[T], data: Optional[Dict[str, Any]] = None, validate: bool = False, strict: bool = True) -> T:
    """Make a configuration from a dict, dataclasses and enums inside it included.

    Unknown keys are a ConfigError, or with ``strict=False`` a warning in the log. With
    ``validate`` the constraints are checked, too (ValueError).
    """
    if not is_dataclass(config_class):
        raise TypeError("Expected dataclass type, got %s" % type(config_class).__name__)
    data = {} if data is None else data
    named = {f.name: f for f in fields(config_class) if f.init}
    unknown = sorted(set(data) - set(named))
    if unknown and strict:
        raise ConfigError(
            "Unknown config keys for %s: %s. Pass strict=False to ignore unknown keys (forward-compat)." % (config_class.__name__, unknown),
            fields=unknown,
        )
    if unknown:
        _logger.warning("%s: ignoring unknown config keys %s (lenient mode)", config_class.__name__, unknown)
    missing = [name for name, f in named.items() if name not in data and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ConfigError("Missing config keys for %s: %s" % (config_class.__name__, missing), fields=missing)
    hints = hints_of(config_class)
    made = {name: from_plain(hints.get(name), value, dict_to_config, strict) for name, value in data.items() if name in named}
    config: Any = config_class(**made)
    if validate:
        valid, error = validate_config(config)
        if not valid:
            raise ConfigError(str(error), fields=[str(error).partition(":")[0]])
    return config


def extract_defaults(config_class: Type[Any]) -> Dict[str, Any]:
    """The default values of the fields that have one."""
    if not is_dataclass(config_class):
        raise TypeError("Expected dataclass type, got %s" % type(config_class).__name__)
    defaults: Dict[str, Any] = {}
    for f in fields(config_class):
        if f.default is not MISSING:
            defaults[f.name] = f.default
        elif f.default_factory is not MISSING:
            defaults[f.name] = f.default_factory()
    return defaults


_COPIED = (
    SCHEMA_TITLE, SCHEMA_DESC, SCHEMA_MIN, SCHEMA_MAX, SCHEMA_ENUM,
    SCHEMA_MIN_LEN, SCHEMA_MAX_LEN, SCHEMA_PATTERN, SCHEMA_FORMAT,
)  # fmt: skip


def dataclass_to_jsonschema(cls: Type[Any]) -> Dict[str, Any]:
    """The JSON Schema of a configuration, for forms and checks.

    ``__schema_name__``, ``__schema_title__`` and ``__schema_description__`` of the class
    replace its name and its docstring.
    """
    if not hasattr(cls, "__dataclass_fields__"):
        raise TypeError("%s is not a dataclass" % (cls,))
    schema: Dict[str, Any] = {
        "name": getattr(cls, "__schema_name__", cls.__name__),
        "title": getattr(cls, "__schema_title__", cls.__name__),
        "description": getattr(cls, "__schema_description__", cls.__doc__ or ""),
    }
    schema.update(schema_of_class(cls, property_of))
    return schema


def property_of(f: Any, hint: Any, seen: Tuple[type, ...] = ()) -> Dict[str, Any]:
    """The schema of one field: its annotation, its metadata, its default."""
    found = schema_of_type(hint, seen)
    for key in _COPIED:
        if key in f.metadata:
            found[key] = to_plain(f.metadata[key])
    default = f.default if f.default is not MISSING else f.default_factory() if f.default_factory is not MISSING else MISSING
    if default is not MISSING:
        try:
            found["default"] = to_plain(default)
        except TypeError:
            pass  # no JSON form: a schema without it is better than none at all
    return found

