"""Has the installer that an environment brings write the manifest of a plugin in it, as
its install-all would: ``own_manifest.py ENVIRONMENT PACKAGE DIRECTORY``. With
``ENVIRONMENT --adapter MODULE DIRECTORY`` that of the module's generic task adapter."""
import importlib
import inspect
import sys
from pathlib import Path

try:
    from cjm_substrate import cli
except ImportError:
    from cjm_plugin_system import cli


def generic_adapter(name):
    """``module:Class`` of the one adapter that an adapter library implements."""
    module = importlib.import_module(name + ".generic")
    found = [c.__name__ for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    if len(found) != 1:
        raise SystemExit("%s has the adapters %s, want one" % (name, found))
    return "%s:%s" % (module.__name__, found[0])


environment, *what, directory = sys.argv[1:]
directory = Path(directory)
before = set(directory.glob("*.json"))
if what[0] == "--adapter":
    cli._generate_adapter_manifest(environment, generic_adapter(what[1]), directory)
else:
    cli._generate_manifest(environment, what[0], directory)
if set(directory.glob("*.json")) == before:
    raise SystemExit("no manifest was written for %s" % what[-1])
