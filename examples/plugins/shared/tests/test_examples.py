"""What holds for every example: it can be imported without its libraries, and its
manifest declares the configuration that its class takes."""
import importlib
import re
import sys
import unittest
from dataclasses import asdict
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2]
NAMES = ("embed", "filetype", "ocr", "torch-burn", "vad", "whisper")
PROPERTY = re.compile(r"^    (\w+): \{type: (\w+), default: ([^,}]+),", re.M)


def plain(value):
    """A default as a manifest spells it."""
    return {True: "true", False: "false", "": '""'}.get(value, str(value)) if isinstance(value, (bool, str)) else str(value)


class ExampleTest(unittest.TestCase):
    def test_manifest_class_and_config_agree(self):
        for name in NAMES:
            with self.subTest(plugin=name):
                manifest = (EXAMPLES / name / "manifest.yaml").read_text()
                for folder in (EXAMPLES / name, EXAMPLES / "shared", EXAMPLES / "speech"):
                    sys.path.insert(0, str(folder))
                    self.addCleanup(sys.path.remove, str(folder))
                module = importlib.import_module(re.search(r"^module: (\w+)$", manifest, re.M).group(1))
                plugin = getattr(module, re.search(r"^class: (\w+)$", manifest, re.M).group(1))
                self.assertEqual(plugin.name, re.search(r"^name: (\S+)$", manifest, re.M).group(1))
                self.assertEqual(plugin.version, re.search(r"^version: (\S+)$", manifest, re.M).group(1))
                declared = {key: (kind, default.strip()) for key, kind, default in PROPERTY.findall(manifest)}
                wanted = {key: (spec["type"], plain(spec["default"])) for key, spec in module.SCHEMA["properties"].items()}
                self.assertEqual(declared, wanted)
                self.assertEqual(asdict(module.Config()), {key: spec["default"] for key, spec in module.SCHEMA["properties"].items()})


if __name__ == "__main__":
    unittest.main()
