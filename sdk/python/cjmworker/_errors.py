"""Error classes for plugin authors, and the mapping of any exception to a category.

Exceptions are recognised by class name and attributes, never by import: a plugin
keeps the base library that its own environment has.
"""
from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional

CATEGORIES = ("user_input", "transient", "resource", "fatal", "timeout", "oom", "cancelled")
MAX_TRACEBACK = 24 * 1024
MAX_MESSAGE = 8 * 1024


class WorkerError(Exception):
    """An error with a category. Raise a subclass to say what the caller should do.

    ``retriable`` overrides the category's default, ``retry_after`` is in seconds,
    ``fields`` names the arguments or settings that are wrong.
    """

    category = "fatal"
    retriable = False

    def __init__(
        self,
        message: str,
        *,
        retriable: "Optional[bool]" = None,
        retry_after: "Optional[float]" = None,
        fields: "Optional[List[str]]" = None,
    ) -> None:
        super().__init__(message)
        if retriable is not None:
            self.retriable = retriable
        self.retry_after = retry_after
        self.fields = list(fields or ())


class UserInputError(WorkerError):
    """The caller's arguments or files are wrong; the same call will fail again."""

    category = "user_input"


class TransientError(WorkerError):
    """A passing trouble (network, busy service): the same call may succeed later."""

    category = "transient"
    retriable = True


class ResourceError(WorkerError):
    """Memory, disk or a device is short; it may succeed when others have finished."""

    category = "resource"
    retriable = True


class FatalError(WorkerError):
    """The plugin cannot do this, whoever asks and whenever."""

    category = "fatal"


class Cancelled(BaseException):
    """The call was asked to stop. A BaseException, so that ``except Exception`` in a
    loop over items does not swallow the cancel."""


# Class names of the older Python libraries, and of what is raised most. Searched
# along the method resolution order, most derived first.
_BY_NAME = {
    "PluginUserInputError": "user_input",
    "PluginInputError": "user_input",
    "PluginValidationError": "user_input",
    "PluginTransientError": "transient",
    "PluginResourceError": "resource",
    "PluginFatalError": "fatal",
    "PluginTimeoutError": "timeout",
    "PluginTimeout": "timeout",
    "PluginCancelledError": "cancelled",
    "PluginCancelled": "cancelled",
    "CapabilityUserInputError": "user_input",
    "CapabilityInputError": "user_input",
    "CapabilityTransientError": "transient",
    "CapabilityResourceError": "resource",
    "CapabilityFatalError": "fatal",
    "CapabilityTimeoutError": "timeout",
    "CapabilityCancelledError": "cancelled",
    "JobCancelledError": "cancelled",
    "UserInputError": "user_input",
    "TransientError": "transient",
    "ResourceError": "resource",
    "FatalError": "fatal",
    "Cancelled": "cancelled",
    "CancelledError": "cancelled",
    "PluginOOMError": "oom",
    "WorkerOOMError": "oom",
    "OutOfMemoryError": "oom",  # torch.cuda, torch, cupy
    "MemoryError": "oom",
    "ResourceExhaustedError": "oom",  # tensorflow
    "PluginError": "fatal",
    "CapabilityError": "fatal",
}
# The older libraries know four categories only: what they call transient or resource is
# a cancel, a timeout or a lack of memory by the name of its class.
_OVERRULES = ("cancelled", "timeout", "oom")
_RETRIABLE = {"transient": True, "resource": True, "oom": True}


def category_of(exc: BaseException) -> str:
    """The category of any exception. Unknown ones are ``fatal``."""
    named = next((_BY_NAME[cls.__name__] for cls in type(exc).__mro__ if cls.__name__ in _BY_NAME), None)
    if named in _OVERRULES:
        return str(named)
    said = _plain(getattr(exc, "category", None))
    if isinstance(said, str) and said.lower() in CATEGORIES:
        return said.lower()
    if named is not None:
        return named
    # torch before OutOfMemoryError, and other CUDA libraries, raise RuntimeError.
    if isinstance(exc, RuntimeError) and "out of memory" in str(exc).lower():
        return "oom"
    return "fatal"


def is_cancel(exc: BaseException) -> bool:
    return isinstance(exc, KeyboardInterrupt) or category_of(exc) == "cancelled"


def describe(exc: BaseException, skip: str = "") -> dict:
    """The ``error.data`` record of an exception. Frames of files under ``skip`` are
    left out of the traceback: people want their own lines."""
    category = category_of(exc)
    data: dict = {
        "category": category,
        "type": type(exc).__name__,
        "retriable": _retriable(exc, category),
        "traceback": traceback_text(exc, skip),
    }
    after = _first(exc, "retry_after", "retry_after_seconds")
    if isinstance(after, (int, float)) and not isinstance(after, bool) and 0 <= after < 1e9:
        data["retry_after"] = after
    fields = _first(exc, "fields", "fields_invalid")
    if isinstance(fields, (list, tuple)) and fields:
        data["fields"] = [str(name)[:200] for name in fields[:50]]
    return data


def message_of(exc: BaseException) -> str:
    """The sentence for people: the exception's text, or its class when it has none."""
    try:
        text = str(exc)
    except Exception:
        text = ""
    if isinstance(exc, SystemExit):
        return "the plugin called sys.exit(%s)" % (exc.code if exc.code is not None else "")
    if isinstance(exc, KeyError):
        text = "KeyError: %s" % text
    elif not text.strip():
        text = type(exc).__name__
    return cut(text, MAX_MESSAGE)


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters: the start and the end, which say most."""
    if len(text) <= limit:
        return text
    half = (limit - 20) // 2
    return "%s\n… %d cut …\n%s" % (text[:half], len(text) - 2 * half, text[-half:])


def traceback_text(exc: BaseException, skip: str = "") -> str:
    import traceback

    tb = exc.__traceback__
    while skip and tb is not None and tb.tb_frame.f_code.co_filename.startswith(skip):
        tb = tb.tb_next
    try:
        lines = traceback.format_exception(type(exc), exc, tb)
    except Exception:  # a __str__ that raises must not hide the error itself
        lines = ["%s\n" % type(exc).__name__]
    return cut("".join(lines), MAX_TRACEBACK)


def _retriable(exc: BaseException, category: str) -> bool:
    said = getattr(exc, "retriable", None)
    if isinstance(said, bool):
        return said
    if category != "user_input":  # there the older libraries mean "ask the user again"
        said = getattr(exc, "default_retriable", None)
        if isinstance(said, bool):
            return said
    return _RETRIABLE.get(category, False)


def _plain(value: "Any") -> "Any":
    return getattr(value, "value", value)  # an Enum's value


def _first(exc: BaseException, *names: str) -> "Any":
    for name in names:
        value = getattr(exc, name, None)
        if value is not None:
            return value
    return None
