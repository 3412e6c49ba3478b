"""Builds the wheel and the source package of the SDK with the standard library alone
(PEP 517 and 660): nothing is fetched, and the same sources give the same bytes."""
from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
NAME = "cjmd-sdk"
PACKAGES = ("cjmd", "cjmworker")
SUMMARY = "Write and test plugins for cjmd, the job server of a GPU box"
WHEN = (2020, 1, 1, 0, 0, 0)  # of every file in the archives
_Files = Dict[str, bytes]


def version() -> str:
    text = (ROOT / "cjmworker" / "__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "([0-9][0-9a-z.]*)"$', text, re.M)
    if found is None:
        raise RuntimeError("cjmworker/__init__.py has no __version__")
    return found.group(1)


def _stem() -> str:
    return "%s-%s" % (NAME.replace("-", "_"), version())


def _license() -> bytes:
    """Beside the packages in a source package, at the top of a checkout."""
    for place in (ROOT, ROOT.parents[1]):
        if (place / "LICENSE").is_file():
            return (place / "LICENSE").read_bytes()
    raise RuntimeError("cannot find LICENSE")


def _metadata() -> bytes:
    lines = [
        "Metadata-Version: 2.1",
        "Name: " + NAME,
        "Version: " + version(),
        "Summary: " + SUMMARY,
        "Requires-Python: >=3.9",
        "License-File: LICENSE",
        "Classifier: Programming Language :: Python :: 3",
        "Classifier: Operating System :: POSIX",
        "Classifier: Typing :: Typed",
        "Description-Content-Type: text/markdown",
        "",
        (ROOT / "README.md").read_text("utf-8"),
    ]
    return "\n".join(lines).encode("utf-8")


def _sources() -> _Files:
    found: _Files = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and (path.suffix == ".py" or path.name == "py.typed"):
                found[path.relative_to(ROOT).as_posix()] = path.read_bytes()
    return found


def _info(editable: bool = False) -> _Files:
    wheel = "Wheel-Version: 1.0\nGenerator: cjmd-sdk\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    folder = _stem() + ".dist-info/"
    return {
        folder + "LICENSE": _license(),
        folder + "METADATA": _metadata(),
        folder + "WHEEL": wheel.encode("ascii"),
        folder + "top_level.txt": "".join(name + "\n" for name in ([] if editable else PACKAGES)).encode("ascii"),
    }


def _write_wheel(directory: str, files: _Files) -> str:
    name = _stem() + "-py3-none-any.whl"
    record = _stem() + ".dist-info/RECORD"
    rows: List[str] = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
        rows.append("%s,sha256=%s,%d\n" % (path, digest, len(data)))
    rows.append(record + ",,\n")
    with zipfile.ZipFile(os.path.join(directory, name), "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in [*files.items(), (record, "".join(rows).encode("ascii"))]:
            entry = zipfile.ZipInfo(path, WHEN)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    return name


# -- the hooks that pip and build call ---------------------------------------------------


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Optional[str] = None) -> str:
    return _write_wheel(wheel_directory, {**_sources(), **_info()})


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: Optional[str] = None) -> str:
    return _write_wheel(wheel_directory, {"cjmd_sdk.pth": (str(ROOT) + "\n").encode("utf-8"), **_info(editable=True)})


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    name = _stem() + ".tar.gz"
    files = {**_sources(), "LICENSE": _license(), "PKG-INFO": _metadata()}
    for path in ("README.md", "pyproject.toml", "packaging/backend.py"):
        files[path] = (ROOT / path).read_bytes()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, data in sorted(files.items()):
            entry = tarfile.TarInfo("%s/%s" % (_stem(), path))
            entry.size, entry.mode, entry.mtime = len(data), 0o644, 1577836800
            archive.addfile(entry, io.BytesIO(data))
    with open(os.path.join(sdist_directory, name), "wb") as out, gzip.GzipFile("", "wb", 9, out, 0) as packed:
        packed.write(plain.getvalue())
    return name


def main(directory: str) -> Tuple[str, str]:
    os.makedirs(directory, exist_ok=True)
    return build_wheel(directory), build_sdist(directory)


if __name__ == "__main__":
    import sys

    for made in main(sys.argv[1]):
        print(os.path.join(sys.argv[1], made))
