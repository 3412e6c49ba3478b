"""Results to JSON: what people expect, or the name of the place that is wrong."""
from __future__ import annotations

import array
import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import os
import tempfile
import unittest
import uuid
from pathlib import Path
from typing import Any, List

from .harness import SDK  # noqa: F401  (puts the runtime on the path)
from cjmworker._convert import ConvertError, to_json


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: float
    tags: List[Any] = dataclasses.field(default_factory=list)


class Numpyish:
    """What a numpy value looks like from outside."""

    dtype = "float32"

    def __init__(self, value: Any, shape: Any = ()) -> None:
        self.value, self.shape = value, shape

    def tolist(self) -> Any:
        return self.value


class Pydanticish:
    def model_dump(self) -> Any:
        return {"m": Colour.RED}


class Slotted:
    __slots__ = ("a",)


def back(value: Any) -> Any:
    return json.loads(to_json(value))


class Converts(unittest.TestCase):
    def test_as_people_expect(self) -> None:
        when = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.timezone.utc)
        cases = [
            (None, None), (True, True), ("ü\u2028\0", "ü\u2028\0"), (2**70, 2**70), (0.1, 0.1),
            ((1, [2]), [1, [2]]), (Colour.RED, "red"), (Level.HIGH, 3), (Path("/a/b"), "/a/b"),
            (when, "2024-05-06T07:08:09+00:00"), (when.date(), "2024-05-06"), (when.time(), "07:08:09"),
            (datetime.timedelta(minutes=1.5), 90.0), (decimal.Decimal("1.10"), "1.10"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"), (ipaddress.ip_address("::1"), "::1"),
            ({3, 1, 2}, [1, 2, 3]), (frozenset(["b", "a"]), ["a", "b"]), ({1, "a"}, None), (range(3), [0, 1, 2]),
            ((n * n for n in range(3)), [0, 1, 4]), (collections.deque([1]), [1]), ({"a": 1}.keys(), ["a"]),
            (collections.OrderedDict(a=1), {"a": 1}), (array.array("h", [1, 2]), [1, 2]),
            (Point(1.5, [Colour.RED]), {"x": 1.5, "tags": ["red"]}), (Pydanticish(), {"m": "red"}),
            (Numpyish(1.5), 1.5), (Numpyish([[1, 2]], (1, 2)), [[1, 2]]),
            ({1: "a", None: "b", True: "c"}, None), ({Colour.RED: 1}, {"red": 1}), ({(1).real: Path("x")}, {"1": "x"}),
            ({uuid.UUID(int=2): 1}, {"00000000-0000-0000-0000-000000000002": 1}),
        ]  # fmt: skip
        for value, expected in cases:
            with self.subTest(value=repr(value)[:60]):
                got = back(value)
                if expected is not None or value is None:
                    self.assertEqual(got, expected)

    def test_bytes(self) -> None:
        for value in (b"\0\xff", bytearray(b"\0\xff"), memoryview(b"\0\xff")):
            self.assertEqual(back([value]), [{"type": "bytes", "encoding": "base64", "data": base64.b64encode(b"\0\xff").decode()}])

    def test_lone_surrogates_of_file_names_survive(self) -> None:
        self.assertEqual(back(os.fsdecode(b"a\xff")), "a\udcff")

    def test_temporary_files_move_into_the_jobs_directory(self) -> None:
        class Dto:
            def to_temp_file(self) -> str:
                fd, path = tempfile.mkstemp(suffix=".txt")
                os.close(fd)
                return path

        with tempfile.TemporaryDirectory() as home:
            first, second = json.loads(to_json([Dto(), Dto()], file_dir=home))
            self.assertEqual({os.path.dirname(first), os.path.dirname(second)}, {home})
            self.assertEqual(len(os.listdir(home)), 2)
        path = back(Dto())
        self.addCleanup(os.unlink, path)
        self.assertTrue(os.path.exists(path))

    def test_errors_name_the_path(self) -> None:
        loop: List[Any] = [1]
        loop.append({"again": loop})
        deep: Any = 1
        for _ in range(500):
            deep = [deep]
        nan, inf = float("nan"), float("inf")
        cases = [
            ({"segments": [0, 1, 2, {"score": nan}]}, "result.segments[3].score is NaN, which is not JSON"),
            ([-inf], "result[0] is -Infinity, which is not JSON"),
            (Point(inf), "result.x is Infinity, which is not JSON"),
            (Numpyish([1.0, nan], (2,)), "result[1] is NaN, which is not JSON"),
            ({"a b": nan}, "result['a b'] is NaN, which is not JSON"),
            (loop, "result[1].again refers to an object that contains it"),
            ({"f": object()}, "result.f is a object, which has no JSON form"),
            ({"f": print}, "result.f is a builtin_function_or_method, which has no JSON form"),
            ([Slotted()], "Slotted, which has no JSON form"),
            ([Point], "is the class tests.test_convert.Point, not a value"),
            (1 + 2j, "result is a complex, which has no JSON form"),
            (decimal.Decimal("NaN"), "result is NaN, which is not JSON"),
            ({(1, 2): 1}, "result has a key of type tuple, which has no JSON form"),
            (Numpyish(None, (2000, 2000)), "result is an array of 4000000 elements; over 1000000, write a file"),
        ]
        for value, text in cases:
            with self.subTest(text=text):
                with self.assertRaises(ConvertError) as raised:
                    to_json(value)
                self.assertIn(text, str(raised.exception))
        with self.assertRaisesRegex(ConvertError, "nested more than 200 levels deep"):
            to_json({"x": deep, "y": nan})

    def test_shared_objects_are_no_circle(self) -> None:
        shared = [1]
        self.assertEqual(back({"a": shared, "b": shared, "c": Colour.RED, "d": Point(1, [shared, shared])})["d"]["tags"], [[1], [1]])


if __name__ == "__main__":
    unittest.main()
