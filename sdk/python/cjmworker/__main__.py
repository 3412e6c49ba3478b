"""``python -m cjmworker``: one worker process. Started by cjmd, not by hand."""
import os
import sys


def main() -> int:
    number = os.environ.pop("CJM_WORKER_FD", "")
    if not number.isdigit():
        sys.stderr.write("cjmworker: CJM_WORKER_FD names no socket; this program is started by cjmd\n")
        return 2
    from cjmworker._server import Server

    return Server(int(number)).run()


if __name__ == "__main__":
    sys.exit(main())
