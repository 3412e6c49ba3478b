#!/usr/bin/env bash
# Builds the wheel and the source package of the SDK into dist/ and tries the wheel:
# installed on its own, it must import and run a plugin.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-python3}
out=${1:-dist}

"$python" sdk/python/packaging/backend.py "$out"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wheel=$(ls -t "$out"/cjmd_sdk-*.whl | head -n1)
"$python" - "$wheel" "$work" <<'PY'
import sys, zipfile
zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])
PY
cat > "$work/tried.py" <<'PY'
import cjmd
from cjmd.testing import Worker, run

class Hello(cjmd.PluginInterface):
    def execute(self, who="world"):
        return "hello " + who

if __name__ == "__main__":
    assert run(Hello, "you").value == "hello you"
    with Worker("tried:Hello") as worker:
        assert worker.execute("you") == "hello you"
    print("tried: a plugin runs with cjmd-sdk", cjmd.__version__)
PY
cd "$work"
"$python" -I -c 'import sys; sys.path.insert(0, "."); import runpy; runpy.run_path("tried.py", run_name="__main__")'
