"""JSON in and out of bytes, strict, without the import cost of ``json``.

``import json`` pulls in ``re`` and ``enum`` and costs as much as half of a bare
interpreter start. CPython's accelerator is used directly where it is there; the
``json`` package serves every other interpreter. Both refuse NaN and Infinity.
"""
from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def _refuse_constant(name: str) -> Any:
    raise ValueError("%s is not JSON" % name)


class _ScannerOptions:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)
    memo: dict = {}


_WHITESPACE = " \t\n\r"


def _accelerated() -> tuple:
    import _json

    scan = _json.make_scanner(_ScannerOptions())  # type: ignore[arg-type]

    def decode(text: str) -> Any:
        start = 0
        end = len(text)
        while start < end and text[start] in _WHITESPACE:
            start += 1
        try:
            value, stop = scan(text, start)
        except (StopIteration, SystemError):
            # Without the json package loaded, some versions cannot even say what is
            # wrong (SystemError). The package finds the same mistake and names it.
            return _portable()[0](text)
        if stop != end and text[stop:].strip(_WHITESPACE):
            raise ValueError("text after the JSON value at character %d" % stop)
        return value

    def encoder(default: Callable, ascii_only: bool = False) -> Callable:
        quote = _json.encode_basestring_ascii if ascii_only else _json.encode_basestring

        def encode(value: Any) -> str:
            # markers is per call: a failed run would leave its ids behind.
            run = _json.make_encoder({}, default, quote, None, ":", ",", False, False, False)
            return "".join(run(value, 0))

        return encode

    if decode('{"a":[1,2.5,"\\u00e9"]}') != {"a": [1, 2.5, "\u00e9"]}:
        raise ImportError("the JSON accelerator decodes differently")
    if encoder(repr)({"a": [1, 2.5, "\u00e9", None]}) != '{"a":[1,2.5,"\u00e9",null]}':
        raise ImportError("the JSON accelerator encodes differently")
    return decode, encoder


def _portable() -> tuple:
    import json

    decode = json.JSONDecoder(parse_constant=_refuse_constant).decode

    def encoder(default: Callable, ascii_only: bool = False) -> Callable:
        return json.JSONEncoder(
            ensure_ascii=ascii_only, allow_nan=False, default=default, separators=(",", ":")
        ).encode

    return decode, encoder


try:
    decode_text, make_encoder = _accelerated()
except Exception:  # a private interface: whatever is different about it, json works
    decode_text, make_encoder = _portable()


def loads(data: bytes) -> Any:
    """The value of one JSON text in UTF-8. ValueError says what is wrong."""
    try:
        return decode_text(str(data, "utf-8"))
    except UnicodeDecodeError as exc:
        raise ValueError("not UTF-8 at byte %d" % exc.start) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_default(value: Any) -> Any:
    raise TypeError("%s has no JSON form" % type(value).__name__)


_encode = make_encoder(_no_default)
_encode_ascii = make_encoder(_no_default, True)


def dumps(value: Any) -> bytes:
    """Plain values (dict, list, str, number, bool, None) as compact UTF-8 JSON."""
    try:
        return _encode(value).encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates, as in undecodable file names
        return _encode_ascii(value).encode("ascii")
