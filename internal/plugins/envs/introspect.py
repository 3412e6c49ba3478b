"""Asks installed code what plugin it holds. Run by the installer in the plugin's own
environment: introspect.py QUESTION ANSWER, two JSON files. What plugin code prints goes to
the installation's log; the answer never passes through stdout.
"""
import hashlib
import importlib
import inspect
import json
import os
import sys
import traceback


class Refused(Exception):
    """What was installed is no plugin; the text says what is missing."""


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        question = json.load(file)
    answer = {"python": "%d.%d.%d" % sys.version_info[:3], "warnings": []}
    try:
        # Code of a plugin that lies beside its manifest, not in the environment.
        sys.path[1:1] = question.get("code_dirs") or []
        ask(question, answer)
    except Refused as exc:
        answer["error"] = str(exc)
    except BaseException as exc:  # a plugin may call sys.exit while it is imported
        traceback.print_exc()
        answer["error"] = "%s: %s" % (type(exc).__name__, exc)
    partial = sys.argv[2] + ".part"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(answer, file)
        file.flush()
    os.replace(partial, sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # threads that the plugin started do not hold us up


def ask(question, answer):
    module = question.get("module") or ""
    cls_name = question.get("class") or ""
    package = question.get("package") or ""
    metadata = None
    if not cls_name and question["dialect"] == "plugins":
        metadata = ask_metadata(module or package, answer)
    if metadata is not None:
        module, cls_name = metadata.get("module") or "", metadata.get("class") or ""
        answer["metadata"] = plain(metadata, "get_plugin_metadata()")
        if not module or not cls_name:
            raise Refused("get_plugin_metadata() of %s names no module and class" % package)
        cls = load(module, cls_name)
    elif cls_name:
        cls = load(module, cls_name)
    else:
        cls = find_class(module or package, question)
        module, cls_name = cls.__module__, cls.__qualname__
    answer["module"], answer["class"] = module, cls_name
    # A class of the Python system, which calls such a plugin by its distribution.
    bases = getattr(cls, "__mro__", ())
    answer["ecosystem"] = any(base.__module__.split(".")[0] in ("cjm_plugin_system", "cjm_substrate") for base in bases)
    describe(cls, package, metadata, answer)


def ask_metadata(package, answer):
    """<package>.meta.get_plugin_metadata(), or None where there is none."""
    for name in top_levels(package):
        meta = optional_import(name + ".meta")
        if meta is not None and hasattr(meta, "get_plugin_metadata"):
            found = meta.get_plugin_metadata()
            if not isinstance(found, dict):
                raise Refused("%s.meta.get_plugin_metadata() gives %s, not a dict" % (name, type(found).__name__))
            return found
    return None


def top_levels(package):
    """The guess, then what the distribution of that name really installs."""
    names = [package.replace("-", "_")]
    try:
        from importlib import metadata

        for guess in (package, package.replace("_", "-")):
            try:
                files = metadata.files(guess) or []
            except metadata.PackageNotFoundError:
                continue
            for file in files:
                parts = file.parts
                if len(parts) > 1 and parts[-1] == "__init__.py" and len(parts) == 2 and parts[0].isidentifier():
                    names.append(parts[0])
                elif len(parts) == 1 and parts[0].endswith(".py") and parts[0] != "setup.py":
                    names.append(parts[0][:-3])
            break
    except ImportError:
        pass
    return list(dict.fromkeys(names))


def optional_import(name):
    """The module, or None when it (not something that it imports) does not exist."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
            return None
        raise


def load(module, cls_name):
    try:
        target = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (module == exc.name or module.startswith(exc.name + ".")):
            raise Refused("there is no module %r in the environment" % module) from exc
        raise
    for part in cls_name.split("."):
        if not hasattr(target, part):
            raise Refused("module %r has no class %r" % (module, cls_name))
        target = getattr(target, part)
    return target


def find_class(package, question):
    """Exactly one concrete plugin class, in the module where it is expected."""
    places = ["capability"] if question["dialect"] == "capabilities" else ["plugin", "capability", ""]
    tried = []
    for name in top_levels(package):
        for place in places:
            where = name + "." + place if place else name
            module = optional_import(where)
            if module is None:
                tried.append(where)
                continue
            found = [cls for cls in classes_of(module, name) if is_plugin(cls)]
            if len(found) == 1:
                return found[0]
            if found:
                raise Refused(
                    "%s has %d classes that could be the plugin (%s); name one with module and class"
                    % (where, len(found), ", ".join(sorted(cls.__qualname__ for cls in found)))
                )
            tried.append(where)
    raise Refused(
        "no plugin was found in %s: there is no get_plugin_metadata() and no class with execute; "
        "name them with module and class" % ", ".join(tried)
    )


def classes_of(module, package):
    for value in vars(module).values():
        if inspect.isclass(value) and (value.__module__ + ".").startswith(package + "."):
            yield value


def is_plugin(cls):
    if inspect.isabstract(cls) or cls.__name__.startswith("_"):
        return False
    names = [base.__name__ for base in cls.__mro__[1:]]
    if "ToolCapability" in names or "PluginInterface" in names:
        return True
    return callable(getattr(cls, "execute", None)) or callable(getattr(cls, "get_system_status", None))


def describe(cls, package, metadata, answer):
    schema = (metadata or {}).get("config_schema")
    instance = None
    try:
        instance = cls() if callable(cls) else cls
    except Exception as exc:
        answer["warnings"].append("cannot make an instance of %s: %s: %s" % (answer["class"], type(exc).__name__, exc))
    if instance is not None:
        for fact in ("name", "version"):
            value = attribute(instance, fact)
            if value:
                answer[fact] = value
        if callable(getattr(instance, "get_config_schema", None)):
            try:
                schema = instance.get_config_schema()
            except Exception as exc:
                answer["warnings"].append("get_config_schema() failed: %s: %s" % (type(exc).__name__, exc))
        try:
            if callable(getattr(instance, "cleanup", None)):
                instance.cleanup()
        except Exception as exc:
            answer["warnings"].append("cleanup() failed: %s: %s" % (type(exc).__name__, exc))
    answer["summary"] = distribution_facts(package, answer) or first_line(cls)
    if schema is not None:
        take_schema(schema, answer)


def attribute(instance, name):
    try:
        value = getattr(instance, name, "")
        return str(value() if callable(value) else value)
    except Exception:
        return ""


def distribution_facts(package, answer):
    try:
        from importlib import metadata

        for guess in (package, package.replace("_", "-"), answer["module"].split(".")[0].replace("_", "-")):
            try:
                found = metadata.metadata(guess) if guess else None
            except (metadata.PackageNotFoundError, ValueError):
                continue
            if found is not None:
                answer["distribution"] = {"name": found["Name"], "version": found["Version"], "author": found.get("Author") or ""}
                return found.get("Summary") or ""
    except ImportError:
        pass
    return ""


def first_line(cls):
    text = (inspect.getdoc(cls) or "").strip()
    return text.splitlines()[0] if text else ""


def take_schema(schema, answer):
    if not isinstance(schema, dict):
        answer["warnings"].append("the config schema is %s, not an object: it is left out" % type(schema).__name__)
        return
    schema = plain(schema, "the config schema")
    answer["schema"] = schema
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    answer["schema_hash"] = "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def plain(value, what):
    """value as JSON has it; enums, paths and dataclasses become what they stand for."""
    import dataclasses
    import enum
    import pathlib

    def convert(x):
        if isinstance(x, enum.Enum):
            return x.value
        if isinstance(x, pathlib.PurePath):
            return str(x)
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return dataclasses.asdict(x)
        if isinstance(x, (set, frozenset, tuple)):
            return list(x)
        raise TypeError("%s cannot be written as JSON" % type(x).__name__)

    try:
        return json.loads(json.dumps(value, default=convert, allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise Refused("%s is no JSON: %s" % (what, exc))


if __name__ == "__main__":
    main()
