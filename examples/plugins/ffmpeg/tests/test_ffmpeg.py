import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "ffmpeg.py"


def run(path, *arguments, packages=None):
    environment = {"PATH": path, "PYTHONPATH": packages or "", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-S", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)


def write_program(file, text):
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)


class FfmpegTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_becomes_the_program_of_the_path_with_its_arguments_as_they_are(self):
        write_program(self.folder / "ffmpeg", 'printf "%s|" "$@"; exit 7\n')
        done = run(str(self.folder), "-i", "a b; rm -rf *", "$HOME")
        self.assertEqual((done.stdout, done.returncode), ("-i|a b; rm -rf *|$HOME|", 7))

    def test_else_the_one_of_the_wheel(self):
        write_program(self.folder / "other", "echo wheel\n")
        module = self.folder / "imageio_ffmpeg.py"
        module.write_text("def get_ffmpeg_exe(): return %r\n" % str(self.folder / "other"))
        self.assertEqual(run(os.devnull, packages=str(self.folder)).stdout, "wheel\n")

    def test_without_any_it_says_so(self):
        done = run(os.devnull)
        self.assertEqual(done.returncode, 127)
        self.assertIn("there is no ffmpeg on the PATH", done.stderr)


if __name__ == "__main__":
    unittest.main()
