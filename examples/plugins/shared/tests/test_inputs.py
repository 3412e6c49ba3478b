import tempfile
import unittest
from pathlib import Path

import cjmworker
import inputs


class SourceTest(unittest.TestCase):
    def test_a_file_and_bytes(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "a.bin")
            file.write_bytes(b"x")
            self.assertEqual(inputs.source(str(file), "audio"), str(file))
        self.assertEqual(inputs.source({"encoding": "base64", "data": "aGk="}, "audio"), b"hi")

    def test_what_is_no_file_is_the_callers_fault(self):
        for value in (None, 5, "", "/no/such/file", "a\0b", "/", {}, {"data": "%"}):
            with self.subTest(value=value), self.assertRaises(cjmworker.UserInputError) as raised:
                inputs.source(value, "audio")
            self.assertEqual(raised.exception.fields, ["audio"])


if __name__ == "__main__":
    unittest.main()
