"""Typed results in an envelope, and the identity of a call in a context variable."""
import contextvars
import dataclasses

_KINDS = {}
_CALL = contextvars.ContextVar("cjm_call_envelope", default=None)


def wire_type(kind):
    def register(cls):
        _KINDS[cls] = kind
        return cls

    return register


def wire_encode(obj):
    kind = _KINDS.get(type(obj))
    return obj if kind is None else {"__wire__": kind, "data": dataclasses.asdict(obj)}


@dataclasses.dataclass
class CallEnvelope:
    job_id: object = None
    actor: object = None
    control: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def from_wire(cls, data):
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in names})


def set_call_envelope(envelope):
    return _CALL.set(envelope)


def reset_call_envelope(token):
    _CALL.reset(token)


def get_call_envelope():
    return _CALL.get()
