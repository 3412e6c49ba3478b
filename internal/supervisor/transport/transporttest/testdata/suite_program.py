"""The suite's plugin as a program that is run once per job."""
import json
import os
import signal
import sys

from suite_plugin import SuitePlugin

plugin = SuitePlugin()
plugin.report_progress = lambda fraction, message: print("CJM_PROGRESS", fraction, message, file=sys.stderr, flush=True)
job = json.load(sys.stdin)
args, kwargs = job["args"], job["kwargs"]
op = kwargs.get("op", "echo")
signal.signal(signal.SIGINT, (lambda *_: None) if kwargs.get("deaf") else (lambda *_: plugin.cancel()))
if op == "init_count":
    kwargs = {"op": "echo"}
stream = os.environ["CJM_JOB_STREAM"] == "1"
dying, kwargs["op"] = op == "die", op if op != "die" else "count"
try:
    if stream:
        result = 0
        for chunk in plugin.execute_stream(*args, **kwargs):
            print(json.dumps(chunk), flush=True)
            result += 1
    elif not dying:
        result = plugin.execute(*args, **kwargs)
    if dying:
        os.kill(os.getppid(), signal.SIGKILL)  # the worker: the death of a program is an error, not the loss of a worker
        signal.pause()
    with open("result.json", "w") as f:
        json.dump({"chunks": result} if stream else result, f)
except Exception as e:
    said = {"category": getattr(e, "category", "fatal"), "message": str(e), "type": type(e).__name__, "retriable": getattr(e, "retriable", False)}
    print("CJM_ERROR", json.dumps(said), file=sys.stderr)
    sys.exit(1)
