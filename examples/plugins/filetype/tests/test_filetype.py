import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

EXAMPLES = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(EXAMPLES / "shared"))

import cjmworker
import filetype_plugin
from filetype_plugin import FileType

MIXED = Path(__file__).resolve().parents[1] / "samples" / "mixed"


class Model:
    """Knows PNG."""

    def identify_path(self, path):
        return self.identify_bytes(Path(path).read_bytes())

    def identify_bytes(self, content):
        if content == b"unreadable":
            return SimpleNamespace(ok=False, status="permission_error")
        label = "png" if content.startswith(b"\x89PNG") else "txt"
        kind = SimpleNamespace(label=label, mime_type="x/" + label, group="g", description="d", is_text=label == "txt")
        return SimpleNamespace(ok=True, output=kind, score=0.99999)


class FileTypeTest(unittest.TestCase):
    def setUp(self):
        self.modes = []
        self.plugin = FileType()
        self.plugin.load_model = lambda config: (self.modes.append(config.mode), Model())[1]
        self.plugin.initialize({})

    def test_a_folder_is_walked_in_order(self):
        result = self.plugin.execute(str(MIXED))
        self.assertEqual([file.path for file in result.files], ["a", "b", "c", "d", "e", "f"])
        self.assertEqual(result.labels, {"txt": 5, "png": 1})
        self.assertEqual([chunk["path"] for chunk in self.plugin.execute_stream([str(MIXED / "b"), {"data": ""}])], [str(MIXED / "b"), "data"])

    def test_links_are_not_followed_and_a_huge_folder_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "loop").symlink_to(folder)
            Path(folder, "one").write_text("1")
            self.assertEqual([file.path for file in self.plugin.execute(folder).files], ["one"])
            Path(folder, "two").write_text("2")
            self.plugin.initialize({"max_files": 1})
            with self.assertRaisesRegex(cjmworker.UserInputError, "more than 1 files"):
                self.plugin.execute(folder)

    def test_a_cancel_keeps_what_is_known(self):
        with mock.patch.object(filetype_plugin, "cancelled", side_effect=[False, False, True]):
            self.assertEqual(len(self.plugin.execute(str(MIXED)).files), 2)

    def test_wrong_input_is_the_callers_fault(self):
        with tempfile.TemporaryDirectory() as empty:
            for wrong in (None, [], "/no/such/file", {"data": "%"}, {"data": "dW5yZWFkYWJsZQ=="}, empty):
                with self.subTest(path=wrong), self.assertRaises(cjmworker.UserInputError):
                    self.plugin.execute(wrong)

    def test_another_mode_loads_again(self):
        self.plugin.initialize({"max_files": 5})
        self.plugin.initialize({"mode": "best_guess"})
        self.assertEqual(self.modes, ["high_confidence", "best_guess"])


if __name__ == "__main__":
    unittest.main()
