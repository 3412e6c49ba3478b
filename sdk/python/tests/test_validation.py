"""The validation module: the facts of the original, and what is mended."""
from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
import typing
import unittest
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, NewType, Optional, Sequence, Set, Tuple, Union

from .harness import SDK
from cjmd import validation as v


@dataclass
class Plain:
    """Settings of a plugin."""

    name: str = field(default="tiny", metadata={v.SCHEMA_TITLE: "Model", v.SCHEMA_ENUM: ["tiny", "base"], v.RELOAD_TRIGGER: "model"})
    size: int = field(default=1, metadata={v.SCHEMA_MIN: 1, v.SCHEMA_MAX: 5, v.SCHEMA_DESC: "how many"})
    rate: float = 0.5
    fast: bool = True
    words: List[str] = field(default_factory=list)
    grid: List[List[int]] = field(default_factory=lambda: [[1]])
    maybe: Optional[str] = None
    several: Optional[List[int]] = None
    key: str = field(default="abc", metadata={v.SCHEMA_MIN_LEN: 1, v.SCHEMA_MAX_LEN: 3, v.SCHEMA_PATTERN: "^a", v.SCHEMA_FORMAT: "uri"})


@dataclass
class Titled:
    __schema_name__ = "titled"
    __schema_title__ = "A title"
    __schema_description__ = "A description"
    a: int = 1


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    depth: int = field(default=1, metadata={v.SCHEMA_MIN: 1})
    color: Color = Color.RED


@dataclass
class Node:
    value: int = 0
    children: List["Node"] = field(default_factory=list)


@dataclass
class Mended:
    must: int
    mode: typing.Literal["a", "b"] = "a"
    level: typing.Literal[1, "x", None] = 1
    color: Color = Color.BLUE
    inner: Inner = field(default_factory=Inner)
    inners: List[Inner] = field(default_factory=list)
    table: Dict[str, int] = field(default_factory=dict)
    named: Dict[str, Inner] = field(default_factory=dict)
    free: dict = field(default_factory=dict)
    pair: Tuple[int, str] = (1, "x")
    many: Tuple[int, ...] = ()
    tags: Set[str] = field(default_factory=set)
    row: Sequence[float] = ()
    either: Union[int, str] = 1
    either_list: Union[int, List[str]] = 1
    bar: "int | None" = None
    bars: "int | str | None" = None
    builtin: "list[int] | None" = None
    bare: list = field(default_factory=list)
    anything: Any = None
    where: Path = Path("/tmp")
    new: NewType("Meters", int) = 1  # type: ignore[valid-type]
    unknown: "NoSuchName" = "x"  # type: ignore[name-defined]  # noqa: F821
    fixed: int = field(default=7, init=False)


class Schema(unittest.TestCase):
    def test_top_level(self) -> None:
        schema = v.dataclass_to_jsonschema(Plain)
        self.assertEqual([schema[key] for key in ("name", "title", "description", "type")], ["Plain", "Plain", "Settings of a plugin.", "object"])
        self.assertEqual(sorted(schema), ["description", "name", "properties", "title", "type"])
        titled = v.dataclass_to_jsonschema(Titled)
        self.assertEqual([titled[key] for key in ("name", "title", "description")], ["titled", "A title", "A description"])

    def test_what_the_original_does_right(self) -> None:
        facts = {
            "name": {"type": "string", "title": "Model", "enum": ["tiny", "base"], "default": "tiny"},
            "size": {"type": "integer", "description": "how many", "minimum": 1, "maximum": 5, "default": 1},
            "rate": {"type": "number", "default": 0.5},
            "fast": {"type": "boolean", "default": True},
            "words": {"type": "array", "items": {"type": "string"}, "default": []},
            "grid": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "default": [[1]]},
            "maybe": {"type": ["string", "null"], "default": None},
            "several": {"type": ["array", "null"], "items": {"type": "integer"}, "default": None},
            "key": {"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^a", "format": "uri", "default": "abc"},
        }
        self.assertEqual(v.dataclass_to_jsonschema(Plain)["properties"], facts)

    def test_what_is_mended(self) -> None:
        inner = {
            "type": "object",
            "properties": {
                "depth": {"type": "integer", "minimum": 1, "default": 1},
                "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            },
        }
        facts = {
            "must": {"type": "integer"},
            "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "level": {"type": ["integer", "string", "null"], "enum": [1, "x", None], "default": 1},
            "color": {"type": "string", "enum": ["red", "blue"], "default": "blue"},
            "inner": {**inner, "default": {"depth": 1, "color": "red"}},
            "inners": {"type": "array", "items": inner, "default": []},
            "table": {"type": "object", "additionalProperties": {"type": "integer"}, "default": {}},
            "named": {"type": "object", "additionalProperties": inner, "default": {}},
            "free": {"type": "object", "default": {}},
            "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2, "default": [1, "x"]},
            "many": {"type": "array", "items": {"type": "integer"}, "default": []},
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "default": []},
            "row": {"type": "array", "items": {"type": "number"}, "default": []},
            "either": {"type": ["integer", "string"], "default": 1},
            "either_list": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}], "default": 1},
            "bar": {"type": ["integer", "null"], "default": None},
            "bars": {"type": ["integer", "string", "null"], "default": None},
            "builtin": {"type": ["array", "null"], "items": {"type": "integer"}, "default": None},
            "bare": {"type": "array", "default": []},
            "anything": {"default": None},
            "where": {"type": "string", "default": "/tmp"},
            "new": {"type": "integer", "default": 1},
            "unknown": {"type": "string", "default": "x"},
        }
        schema = v.dataclass_to_jsonschema(Mended)
        self.assertEqual(schema["properties"], facts)
        self.assertEqual(schema["required"], ["must"])
        json.dumps(schema, allow_nan=False)

    def test_a_class_that_contains_itself(self) -> None:
        children = v.dataclass_to_jsonschema(Node)["properties"]["children"]
        self.assertEqual(children, {"type": "array", "items": {"type": "object"}, "default": []})

    def test_a_default_without_json_form_is_left_out(self) -> None:
        @dataclass
        class Odd:
            what: Any = field(default_factory=object)
            infinite: float = float("inf")

        self.assertEqual(v.dataclass_to_jsonschema(Odd)["properties"], {"what": {}, "infinite": {"type": "number"}})

    def test_what_is_no_dataclass(self) -> None:
        with self.assertRaisesRegex(TypeError, "is not a dataclass"):
            v.dataclass_to_jsonschema(int)


class Values(unittest.TestCase):
    def test_messages(self) -> None:
        facts = [
            ("z", {v.SCHEMA_ENUM: ["a"]}, "F: 'z' is not one of ['a']"),
            (0, {v.SCHEMA_MIN: 1}, "F: 0 is less than minimum 1"),
            (9, {v.SCHEMA_MAX: 5}, "F: 9 is greater than maximum 5"),
            ("", {v.SCHEMA_MIN_LEN: 1}, "F: string length 0 is less than minimum 1"),
            ("abcd", {v.SCHEMA_MAX_LEN: 3}, "F: string length 4 is greater than maximum 3"),
            ("b", {v.SCHEMA_PATTERN: "^a"}, "F: 'b' does not match pattern '^a'"),
            ("z", {v.SCHEMA_ENUM: ["a"], v.SCHEMA_MIN_LEN: 5}, "F: 'z' is not one of ['a']"),
            (None, {v.SCHEMA_ENUM: ["a"]}, "F: None is not one of ['a']"),
        ]
        for value, metadata, message in facts:
            self.assertEqual(v.validate_field_value(value, metadata, "F"), (False, message))

    def test_what_passes(self) -> None:
        facts = [
            (True, {v.SCHEMA_MAX: 0}), (None, {v.SCHEMA_MIN: 1}), ("x", {v.SCHEMA_MIN: 1}), (3, {v.SCHEMA_PATTERN: "a"}),
            ("ab", {v.SCHEMA_PATTERN: "a"}), ([], {v.SCHEMA_MIN_LEN: 1}), (1.0, {v.SCHEMA_ENUM: [1]}), ("x", {v.SCHEMA_FORMAT: "email"}),
        ]  # fmt: skip
        for value, metadata in facts:
            self.assertEqual(v.validate_field_value(value, metadata), (True, None))

    def test_a_config_is_checked_field_by_field(self) -> None:
        self.assertEqual(v.validate_config(Plain()), (True, None))
        self.assertEqual(v.validate_config(Plain(size=0, key="b")), (False, "size: 0 is less than minimum 1"))
        for wrong, message in (({}, "Expected dataclass instance, got dict"), (Plain, "Expected dataclass instance, got type")):
            with self.assertRaisesRegex(TypeError, message):
                v.validate_config(wrong)

    def test_literals_enums_and_what_is_inside_are_checked(self) -> None:
        bad = Mended(1, mode="z")  # type: ignore[arg-type]
        self.assertEqual(v.validate_config(bad), (False, "mode: 'z' is not one of ['a', 'b']"))
        self.assertEqual(v.validate_config(Mended(1, inner=Inner(0))), (False, "inner.depth: 0 is less than minimum 1"))
        self.assertEqual(v.validate_config(v.dict_to_config(Mended, {"must": 1, "color": "pink"})), (False, "color: 'pink' is not one of ['red', 'blue']"))


class Conversion(unittest.TestCase):
    def test_from_a_dict_and_back(self) -> None:
        self.assertEqual(v.dict_to_config(Plain), Plain())
        self.assertEqual(v.dict_to_config(Plain, {"size": "no number"}).size, "no number")
        config = v.dict_to_config(Plain, {"name": "base", "size": 9})
        self.assertEqual(v.config_to_dict(config)["size"], 9)
        self.assertEqual(v.config_to_dict({"a": 1}), {"a": 1})
        self.assertEqual(v.extract_defaults(Plain)["words"], [])

    def test_what_is_inside_is_made_too(self) -> None:
        raw = {
            "must": 1, "color": "red", "inner": {"depth": 3, "color": "blue"}, "inners": [{"depth": 2}], "named": {"a": {"depth": 4}},
            "pair": [2, "y"], "many": [1, 2], "tags": ["a", "a"], "where": "/data", "bar": 5, "builtin": [1],
        }  # fmt: skip
        config = v.dict_to_config(Mended, raw, validate=True)
        self.assertEqual(config.color, Color.RED)
        self.assertEqual(config.inner, Inner(3, Color.BLUE))
        self.assertEqual((config.inners, config.named), ([Inner(2)], {"a": Inner(4)}))
        self.assertEqual((config.pair, config.many, config.tags, config.where), ((2, "y"), (1, 2), {"a"}, Path("/data")))
        again = v.dict_to_config(Mended, {k: x for k, x in v.config_to_dict(config).items() if k != "fixed"})
        self.assertEqual(again, config)

    def test_unknown_missing_and_wrong(self) -> None:
        text = r"Unknown config keys for Plain: \['a', 'zz'\]. Pass strict=False to ignore unknown keys \(forward-compat\)."
        with self.assertRaisesRegex(ValueError, text) as caught:
            v.dict_to_config(Plain, {"zz": 1, "a": 2})
        self.assertEqual((caught.exception.category, caught.exception.fields), ("user_input", ["a", "zz"]))
        with self.assertLogs("cjmd.validation", "WARNING") as logs:
            self.assertEqual(v.dict_to_config(Plain, {"zz": 1}, strict=False), Plain())
        self.assertIn("ignoring unknown config keys ['zz']", logs.output[0])
        with self.assertRaisesRegex(ValueError, r"Unknown config keys for Inner: \['deep'\]"):
            v.dict_to_config(Mended, {"must": 1, "inner": {"deep": 1}})
        with self.assertRaisesRegex(ValueError, r"Missing config keys for Mended: \['must'\]"):
            v.dict_to_config(Mended)
        with self.assertRaisesRegex(ValueError, "^size: 0 is less than minimum 1$"):
            v.dict_to_config(Plain, {"size": 0}, validate=True)
        with self.assertRaisesRegex(TypeError, "Expected dataclass type, got type"):
            v.dict_to_config(int)
        with self.assertRaisesRegex(TypeError, "Expected dataclass type, got dict"):
            v.extract_defaults({})  # type: ignore[arg-type]
        with self.assertRaisesRegex(TypeError, "Expected dataclass instance or dict, got list"):
            v.config_to_dict([])


# Run where the original is installed: the same questions to both.
COMPARE = """
import json, sys
from dataclasses import dataclass, field
from typing import *
import cjmd.validation as ours, cjm_plugin_system.utils.validation as theirs

def plain(m):
    @dataclass
    class Plain:
        '''Settings of a plugin.'''
        name: str = field(default="tiny", metadata={m.SCHEMA_TITLE: "Model", m.SCHEMA_ENUM: ["tiny", "base"], "other": 1})
        size: int = field(default=1, metadata={m.SCHEMA_MIN: 1, m.SCHEMA_MAX: 5, m.SCHEMA_DESC: "how many"})
        rate: float = 0.5
        fast: bool = True
        words: List[str] = field(default_factory=list)
        bare: List = field(default_factory=list)
        grid: List[List[int]] = field(default_factory=lambda: [[1]])
        maybe: Optional[str] = None
        several: Optional[List[int]] = None
        key: str = field(default="abc", metadata={m.SCHEMA_MIN_LEN: 1, m.SCHEMA_MAX_LEN: 3, m.SCHEMA_PATTERN: "^a", m.SCHEMA_FORMAT: "uri"})
    return Plain

def answers(m):
    Plain = plain(m)
    yield m.dataclass_to_jsonschema(Plain), m.extract_defaults(Plain), m.config_to_dict(Plain())
    for change in ({}, {"name": "z"}, {"name": None}, {"size": 0}, {"size": 9}, {"size": True}, {"size": "x"}, {"key": ""}, {"key": "abcd"}, {"key": "b"}, {"key": "ab"}):
        yield m.validate_config(m.dict_to_config(Plain, change))
    for call in (lambda: m.validate_config({}), lambda: m.dict_to_config(int), lambda: m.extract_defaults(3), lambda: m.config_to_dict([]),
                 lambda: m.dict_to_config(Plain, {"size": 0}, validate=True)):
        try:
            yield call()
        except (TypeError, ValueError) as exc:
            yield isinstance(exc, ValueError), str(exc)

names = sorted(name for name in theirs.__all__ if not hasattr(ours, name))
pairs = list(zip(answers(ours), answers(theirs)))
json.dump({"missing": names, "asked": len(pairs), "different": [repr(pair) for pair in pairs if pair[0] != pair[1]]}, sys.stdout)
"""


class AgainstTheOriginal(unittest.TestCase):
    def test_same_answers(self) -> None:
        asked = 0
        for python in filter(None, os.environ.get("CJM_OLDER_PYTHONS", "").split(os.pathsep)):
            if subprocess.run([python, "-c", "import cjm_plugin_system.utils.validation"], capture_output=True).returncode:
                continue
            out = subprocess.run([python, "-c", COMPARE], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SDK)})
            self.assertEqual(out.returncode, 0, out.stderr)
            said = json.loads(out.stdout)
            self.assertEqual((said["missing"], said["different"]), ([], []))
            asked += said["asked"]
        if not asked:
            self.skipTest("CJM_OLDER_PYTHONS names no interpreter that has cjm-plugin-system")


if __name__ == "__main__":
    sys.exit(unittest.main())
