"""Runs a plugin in a real worker, without a daemon, and then its own tests. Started by
cjm-ctl plugin test in the plugin's environment, with the runtime on PYTHONPATH:
plugintest.py QUESTION FD. What happens goes to FD, one JSON object a line."""
import json
import os
import sys
import time
import unittest

from cjmd.testing import JobError, Worker, WorkerDied


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        question = json.load(file)
    with os.fdopen(int(sys.argv[2]), "w", buffering=1, encoding="utf-8") as out:

        def tell(event, **facts):
            out.write(json.dumps(dict(facts, event=event)) + "\n")

        loaded, sound = try_plugin(question, tell)
        if loaded and question["tests"]:
            sound = run_tests(question, tell) and sound
    return 0 if sound else 1


def try_plugin(question, tell):
    """Whether it was loaded, and whether every sample ran."""
    began = time.monotonic()
    try:
        worker = Worker(
            question["module"] + ":" + question["class"], question["config"], path=question["code_dirs"],
            env=question["env"], secrets=question["secrets"], adapters=question["adapters"], timeout=question["timeout"],
        )  # fmt: skip
    except (JobError, WorkerDied, TimeoutError) as exc:
        tell("failed", what="load", **facts_of(exc))
        return False, False
    with worker:
        ready = worker.ready
        tell("loaded", seconds=time.monotonic() - began, name=ready.get("name"), version=ready.get("version"), capabilities=ready.get("capabilities"))
        return True, all(try_sample(worker, sample, question, tell) for sample in question["samples"])


def try_sample(worker, sample, question, tell):
    streams = "stream" in (worker.ready.get("capabilities") or ())
    for stream in [False, True] if streams else [False]:
        began = time.monotonic()
        call = worker.start(*sample.get("args", ()), stream=stream, **sample.get("kwargs", {}))
        try:
            chunks = list(call.chunks(question["timeout"])) if stream else []
            result = call.result(question["timeout"])
        except (JobError, WorkerDied, TimeoutError) as exc:
            tell("failed", what="stream" if stream else "execute", progress=call.progress, **facts_of(exc))
            return False
        tell(
            "ran", what="stream" if stream else "execute", seconds=time.monotonic() - began, result=result,
            chunks=chunks, progress=call.progress,
        )  # fmt: skip
    return True


def facts_of(exc):
    return {
        "message": str(exc),
        "category": getattr(exc, "category", "worker_lost" if isinstance(exc, WorkerDied) else "timeout"),
        "type": getattr(exc, "type", ""),
        "traceback": getattr(exc, "traceback", ""),
    }


def run_tests(question, tell):
    sys.path[:0] = question["code_dirs"]
    suite = unittest.defaultTestLoader.discover(question["tests"], top_level_dir=question["tests"])
    done = unittest.TextTestRunner(stream=sys.stderr, verbosity=1).run(suite)
    bad = len(done.failures) + len(done.errors) + len(done.unexpectedSuccesses)
    tell("tested", run=done.testsRun, failed=bad, skipped=len(done.skipped))
    return bad == 0


if __name__ == "__main__":
    sys.exit(main())
