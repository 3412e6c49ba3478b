"""The worker runtime of cjmd, and what plugin code may import from it.

The daemon starts ``python -m cjmworker``; the plugin is any class with ``execute``.
Nothing here needs to be imported by a plugin: the runtime puts ``report_progress``
and ``check_cancel`` on the instance. Standard library only, Python 3.9 or newer.
"""
from ._calls import cancelled, check_cancel, envelope, heartbeat, job_dir, job_id, report_progress
from ._errors import Cancelled, FatalError, ResourceError, TransientError, UserInputError, WorkerError

__version__ = "1.0"
__all__ = [
    "Cancelled",
    "FatalError",
    "ResourceError",
    "TransientError",
    "UserInputError",
    "WorkerError",
    "cancelled",
    "check_cancel",
    "envelope",
    "heartbeat",
    "job_dir",
    "job_id",
    "report_progress",
]
