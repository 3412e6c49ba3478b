"""The wheel and the source package."""
from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile
from pathlib import Path
from typing import Any

from .harness import SDK
import cjmworker


def backend(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("backend", root / "packaging" / "backend.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Packages(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = Path(folder.name)
        self.wheel, self.sdist = (self.out / name for name in backend(SDK).main(str(self.out)))

    def test_the_wheel_holds_both_packages_typed_and_its_record_is_true(self) -> None:
        with zipfile.ZipFile(self.wheel) as archive:
            names = set(archive.namelist())
            for package in ("cjmd", "cjmworker"):
                ours = {path.relative_to(SDK).as_posix() for path in (SDK / package).glob("*.py")}
                self.assertLessEqual(ours | {package + "/py.typed"}, names)
            info = "cjmd_sdk-%s.dist-info/" % cjmworker.__version__
            self.assertIn("Requires-Python: >=3.9", archive.read(info + "METADATA").decode())
            rows = list(csv.reader(io.StringIO(archive.read(info + "RECORD").decode())))
            self.assertEqual({row[0] for row in rows}, names)
            for path, digest, size in rows[:-1]:
                data = archive.read(path)
                self.assertEqual(digest, "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode())
                self.assertEqual(int(size), len(data))

    def test_the_source_package_builds_the_same_wheel(self) -> None:
        with tarfile.open(self.sdist) as archive:
            archive.extractall(self.out / "src")
        (root,) = (self.out / "src").iterdir()
        again = self.out / "again"
        wheel, sdist = backend(root).main(str(again))
        self.assertEqual((again / wheel).read_bytes(), self.wheel.read_bytes())
        self.assertEqual((again / sdist).read_bytes(), self.sdist.read_bytes())

    def test_pip_installs_it(self) -> None:
        if importlib.util.find_spec("pip") is None:
            self.skipTest("this Python has no pip")
        target = self.out / "target"
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
        done = subprocess.run([*install, str(self.wheel)], capture_output=True, text=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
        self.assertEqual(done.returncode, 0, done.stderr)
        code = "import cjmd, cjmworker, cjmd.testing; print(cjmd.__version__)"
        said = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=str(target), env={"PYTHONPATH": str(target)})
        self.assertEqual(said.stdout.strip(), cjmworker.__version__, said.stderr)


if __name__ == "__main__":
    unittest.main()
