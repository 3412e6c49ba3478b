#!/bin/sh
# Checks cjmd on this machine's NVIDIA GPU. Needs a python3 with torch (PYTHON=…
# names another interpreter), no network and no Go. Arguments go to the checks
# program; "--help" lists them. Exit: 0 all passed, 1 something failed, 3 nothing
# to check here.
set -u
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
case "$(uname -s)/$(uname -m)" in
Linux/x86_64) ;;
*)
    echo "Nothing was checked: the programs in this bundle are for Linux on x86-64, this is $(uname -s) on $(uname -m)." >&2
    exit 3
    ;;
esac
python=${PYTHON:-python3}
if ! python=$(command -v "$python"); then
    echo "Nothing was checked: there is no ${PYTHON:-python3} here; a python3 with torch is needed (PYTHON=… names it)." >&2
    exit 3
fi
if ! "$here/bin/checks" --help >/dev/null 2>&1; then
    echo "Nothing was checked: the programs do not start here; they need glibc $(cat "$here/GLIBC") or newer." >&2
    "$here/bin/checks" --help >/dev/null
    exit 3
fi
exec "$here/bin/checks" --cjmd "$here/bin/cjmd" --plugins "$here/plugins" --config "$here/cjmd.yaml" \
    --python "$python" --out "${OUT:-.}/gpu-results.json" "$@"
