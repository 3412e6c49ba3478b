import sys
import unittest
from pathlib import Path
from unittest import mock

EXAMPLES = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(EXAMPLES / "shared"))

import cjmworker
import ocr_plugin
from ocr_plugin import Ocr

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
BOX = [[1.04, 2], [30, 2], [30, 9.96], [1, 10]]


class LoadImageError(Exception):
    pass


class Engine:
    def __init__(self):
        self.calls = []

    def __call__(self, source, **options):
        self.calls.append((source, options))
        if source == b"no picture":
            raise LoadImageError("cannot identify image file")
        if source == b"bug":
            raise ZeroDivisionError("division by zero")
        if source == b"blank":
            return None, None
        return [[BOX, "first", 0.98765], [BOX, "second", 0.7]], [0.1, 0.1, 0.1]


def data(content):
    import base64

    return {"encoding": "base64", "data": base64.b64encode(content).decode()}


class OcrTest(unittest.TestCase):
    def setUp(self):
        self.engine = Engine()
        self.plugin = Ocr()
        self.plugin.load_engine = lambda config: self.engine
        self.plugin.initialize({"min_confidence": 0.6, "rotated": False})

    def test_a_page_is_its_lines_from_top_to_bottom(self):
        result = self.plugin.execute(str(SAMPLES / "receipt.png"))
        self.assertEqual(result.text, "first\nsecond")
        line = result.pages[0].lines[0]
        self.assertEqual((line.text, line.confidence, line.box[0]), ("first", 0.988, [1.0, 2.0]))
        self.assertEqual(self.engine.calls[0][1], {"use_cls": False, "text_score": 0.6})

    def test_pages_come_one_by_one(self):
        stream = self.plugin.execute_stream([data(b"one"), data(b"blank"), data(b"three")])
        self.assertEqual(next(stream)["page"], 1)
        self.assertEqual(len(self.engine.calls), 1)
        self.assertEqual([page["text"] for page in stream], ["", "first\nsecond"])

    def test_a_cancel_keeps_the_pages_so_far(self):
        with mock.patch.object(ocr_plugin, "cancelled", side_effect=[False, True]):
            result = self.plugin.execute([data(b"one"), data(b"two")])
        self.assertEqual([page.page for page in result.pages], [1])

    def test_whose_fault_an_error_is(self):
        for wrong in ([], data(b"no picture"), [data(b"one"), "/no/such/page.png"]):
            with self.subTest(image=wrong), self.assertRaises(cjmworker.UserInputError):
                self.plugin.execute(wrong)
        with self.assertRaises(ZeroDivisionError):
            self.plugin.execute(data(b"bug"))


if __name__ == "__main__":
    unittest.main()
