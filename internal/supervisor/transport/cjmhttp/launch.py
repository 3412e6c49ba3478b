# Starts the HTTP worker of the base library that a plugin's environment has,
# unmodified, on the listening socket that cjmd made. Started with -c; what to
# load comes as one line of JSON over the socket CJM_HELLO_FD, so that secrets
# are in no command line and in no /proc/PID/environ. The end of that socket is
# the end of the daemon. Must run on every Python from 3.9 on.
import contextlib, importlib, importlib.util, inspect, json, os, signal, socket, sys, threading

DIALECTS = ("cjm_substrate", "cjm_plugin_system")


def main():
    listener = int(os.environ.pop("CJM_HTTP_FD"))
    hello_fd = int(os.environ.pop("CJM_HELLO_FD"))
    for fd in (listener, hello_fd):
        os.set_inheritable(fd, False)
    daemon = socket.socket(fileno=hello_fd)
    stream = daemon.makefile("rb")
    line = stream.readline()
    if not line.endswith(b"\n"):
        sys.exit("the daemon went away before it said what to load")
    hello = json.loads(line)
    threading.Thread(target=follow, args=(stream, daemon), name="cjmd", daemon=True).start()
    os.environ.update(hello.get("secrets") or {})
    sys.path[:] = [p for p in sys.path if p] or sys.path  # -c puts the working directory first
    module, name = hello.get("module") or "", hello.get("class") or ""
    # What an import prints is a log. Loaded here first: a failure shows with its
    # traceback, which the worker itself would leave out.
    with contextlib.redirect_stdout(sys.stderr):
        plugin = getattr(importlib.import_module(module), name)
        worker = importlib.import_module(dialect(plugin) + ".core.worker")
        app = create_app(worker, module, name, hello.get("adapters") or [])
    import uvicorn

    uvicorn.run(app, fd=listener, log_level="warning")


def follow(stream, daemon):
    while stream.read(1):
        pass
    os.kill(0, signal.SIGKILL)  # the daemon is gone: nobody waits for this work


def dialect(plugin):
    """The base library of the plugin, or else the one that is installed."""
    here = [d for d in DIALECTS if importlib.util.find_spec(d) is not None]
    own = [d for c in plugin.__mro__ for d in here if c.__module__.split(".")[0] == d]
    if not here:
        sys.exit("this environment has no HTTP worker: neither %s is installed; use runtime native" % " nor ".join(DIALECTS))
    return (own or here)[0]


def create_app(worker, module, name, adapters):
    if not adapters:
        return worker.create_app(module, name)
    if "adapter_specs" not in inspect.signature(worker.create_app).parameters:
        sys.exit("the base library of this environment is too old for task adapters; upgrade it or use runtime native")
    return worker.create_app(module, name, adapter_specs=adapters)


main()
