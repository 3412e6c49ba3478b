"""Annotations to JSON Schema."""
from __future__ import annotations

import ast
import collections.abc
import enum
import sys
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Callable, Dict, List, Tuple, Type, get_args, get_origin

ARRAYS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
OBJECTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_BASIC = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_UNION_TYPE = getattr(types, "UnionType", None)  # X | Y, from 3.10 on


def is_union(hint: Any) -> bool:
    return get_origin(hint) is typing.Union or _UNION_TYPE is not None and isinstance(hint, _UNION_TYPE)


def schema_of_type(hint: Any, seen: Tuple[type, ...] = ()) -> Dict[str, Any]:
    """The schema of an annotation. ``seen`` are the dataclasses around it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is getattr(typing, "Annotated", None) and args:
        return schema_of_type(args[0], seen)
    if is_union(hint):
        return _union(args, seen)
    if origin is typing.Literal:
        return _enum(list(args))
    if origin in ARRAYS or hint in ARRAYS:
        return _array(origin or hint, args, seen, isinstance(hint, type) and not args)
    if origin in OBJECTS or hint in OBJECTS:
        return _object(args, seen)
    if hint is Any or hint is object:
        return {}
    if isinstance(hint, type):
        if hint in _BASIC:
            return {"type": _BASIC[hint]}
        if issubclass(hint, enum.Enum):
            return _enum([member.value for member in hint])
        if is_dataclass(hint):
            from .validation import property_of

            return {"type": "object"} if hint in seen else schema_of_class(hint, property_of, seen)
    supertype = getattr(hint, "__supertype__", None)  # NewType
    return {"type": "string"} if supertype is None else schema_of_type(supertype, seen)


def schema_of_class(cls: Type[Any], make: Callable[..., Dict[str, Any]], seen: Tuple[type, ...] = ()) -> Dict[str, Any]:
    """The object schema of a dataclass, with ``make`` for each field. ``required`` is
    there only when a field has no default."""
    hints = hints_of(cls)
    inside = seen + (cls,)
    listed = [f for f in fields(cls) if f.init]
    schema: Dict[str, Any] = {
        "type": "object",
        "properties": {f.name: make(f, hints.get(f.name, str), inside) for f in listed},
    }
    required = [f.name for f in listed if f.default is MISSING and f.default_factory is MISSING]
    if required:
        schema["required"] = required
    return schema


def _union(args: Tuple[Any, ...], seen: Tuple[type, ...]) -> Dict[str, Any]:
    nullable = type(None) in args
    members = [schema_of_type(arg, seen) for arg in args if arg is not type(None)]
    if len(members) == 1:
        found = members[0]
    elif all(set(member) == {"type"} and isinstance(member["type"], str) for member in members):
        kinds = list(dict.fromkeys(member["type"] for member in members))
        found = {"type": kinds if len(kinds) > 1 else kinds[0]}
    elif all("type" in member or "enum" in member for member in members):
        found = {"anyOf": members}
        if nullable:
            members.append({"type": "null"})
        return found
    else:
        return {}  # one member is Any: so is the whole
    if nullable:
        if "type" in found:
            kinds = found["type"] if isinstance(found["type"], list) else [found["type"]]
            found["type"] = [*kinds, "null"]
        if "enum" in found:
            found["enum"] = [*found["enum"], None]
    return found


def _enum(values: List[Any]) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    kinds = list(dict.fromkeys(_BASIC[type(value)] for value in values if type(value) in _BASIC))
    if kinds and all(type(value) in _BASIC for value in values):
        found["type"] = kinds if len(kinds) > 1 else kinds[0]
    found["enum"] = values
    return found


def _array(kind: Any, args: Tuple[Any, ...], seen: Tuple[type, ...], bare: bool) -> Dict[str, Any]:
    found: Dict[str, Any] = {"type": "array"}
    if kind is tuple and args and args[-1] is not Ellipsis:
        found["prefixItems"] = [schema_of_type(arg, seen) for arg in args]
        found["minItems"] = found["maxItems"] = len(args)
    elif args:
        found["items"] = schema_of_type(args[0], seen)
    elif not bare:
        found["items"] = {"type": "string"}  # typing.List alone, as it always was
    if kind in (set, frozenset):
        found["uniqueItems"] = True
    return found


def _object(args: Tuple[Any, ...], seen: Tuple[type, ...]) -> Dict[str, Any]:
    found: Dict[str, Any] = {"type": "object"}
    values = schema_of_type(args[1], seen) if len(args) == 2 else {}
    if values:
        found["additionalProperties"] = values
    return found


def hints_of(cls: Type[Any]) -> Dict[str, Any]:
    """Annotations by field. One that cannot be resolved is left out alone, not with all others."""
    try:
        return typing.get_type_hints(cls)
    except Exception:
        pass
    hints: Dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        scope = dict(vars(sys.modules.get(base.__module__, typing)))
        scope.setdefault(base.__name__, base)
        for name, hint in base.__dict__.get("__annotations__", {}).items():
            try:
                while isinstance(hint, str):  # one in quotes under "import annotations" is a text twice
                    hint = eval(_without_bars(hint), scope)
                hints[name] = hint
            except Exception:
                hints.pop(name, None)
    return hints


def _without_bars(text: str) -> str:
    """``X | None`` as a Union, which Python 3.9 can evaluate, too."""
    if "|" not in text or not hasattr(ast, "unparse"):
        return text

    class Rewrite(ast.NodeTransformer):
        def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
            self.generic_visit(node)
            if not isinstance(node.op, ast.BitOr):
                return node
            union = ast.parse("__import__('typing').Union", mode="eval").body
            both = ast.Tuple(elts=[node.left, node.right], ctx=ast.Load())
            return ast.Subscript(value=union, slice=both, ctx=ast.Load())

    return ast.unparse(ast.fix_missing_locations(Rewrite().visit(ast.parse(text, mode="eval"))))
