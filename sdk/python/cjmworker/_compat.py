"""What the older base libraries in a plugin's environment expect of whoever calls it.

They are never imported here: only what the plugin has loaded already is spoken to,
by name. Their typed results travel in an envelope ``{"__wire__": kind, "data": …}``,
and code deep inside a plugin asks their context variable which job it works for.
"""
from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Tuple

    from ._calls import Call

_WIRE_MODULES = ("cjm_substrate.core.wire", "cjm_plugin_system.core.wire")
# Packages whose classes are bases of plugins: what a plugin merely inherits from them
# is a default, not something it can do. (A package of ours has the same role.)
_BASES = ("cjm_substrate.", "cjm_plugin_system.", "cjmd.")


def encode(value: "Any") -> "Any":
    """``value`` in its library's envelope where its class is registered there."""
    modules = sys.modules
    for name in _WIRE_MODULES:
        module = modules.get(name)
        if module is not None:
            wrap = getattr(module, "wire_encode", None)
            if wrap is not None:
                value = wrap(value)
    return value


def begin(call: "Call") -> "List[Tuple[Any, Any]]":
    """Tell the loaded libraries which call runs on this thread; for ``end``."""
    begun: "List[Tuple[Any, Any]]" = []
    for name in _WIRE_MODULES:
        module = sys.modules.get(name)
        if module is None or not hasattr(module, "set_call_envelope"):
            continue
        said = {"job_id": call.job}
        if isinstance(call.envelope, dict):
            said.update(call.envelope)
        begun.append((module, module.set_call_envelope(module.CallEnvelope.from_wire(said))))
    return begun


def end(begun: "List[Tuple[Any, Any]]") -> None:
    for module, token in begun:
        module.reset_call_envelope(token)


def is_default(method: "Any") -> bool:
    """Whether a bound method is what a base library gives to every class."""
    module = getattr(getattr(method, "__func__", method), "__module__", None)
    return isinstance(module, str) and (module + ".").startswith(_BASES)
