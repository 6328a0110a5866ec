#!/usr/bin/env bash
# Makes .venv with what `serve`, `test` (and bench) or `gpu` needs; quick when there is nothing to do.
# A new .venv is made by $PYTHON, or by the first of python3 and python3.12, .11, .10, .13 that will do.
# What is installed is locked in locks/: see docs/dependencies.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
    echo "set-up: $*" >&2
    exit 1
}

case "${1:-}" in
    serve) locks=(build numpy base openvino gateway bench) ;;
    test) locks=(build numpy base openvino gateway bench test) ;;
    gpu) locks=(build numpy base openvino gateway bench test tensorrt) ;;
    *) die "usage: tools/setup.sh serve|test|gpu" ;;
esac

venv=.venv/bin/python
stamp=.venv/.set-up-$1
state="$PWD $(cat pyproject.toml tools/setup.sh locks/*.txt | sha256sum)"

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

if [ -n "${PYTHON:-}" ] && supported "$PYTHON" && supported $venv && [ "$(version "$PYTHON")" != "$(version $venv)" ]; then
    die ".venv is of Python $(version $venv), PYTHON=$PYTHON is $(version "$PYTHON"): remove .venv first"
fi

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && [ -x $venv ]; then
    exit 0
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in $venv python3 python3.12 python3.11 python3.10 python3.13; do
        if supported "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || die "no Python 3.10 to 3.13: sudo apt install python3-venv libpython3-dev (or set PYTHON=...)"
fi
supported "$python" || die "PYTHON=$python is not a Python 3.10 to 3.13"
"$python" tools/check_python.py

quiet=()
[ -t 1 ] || quiet=(--quiet)
# What has no wheel is built with what locks/build.txt holds; its programs are looked for on PATH.
pip() {
    PATH="$PWD/.venv/bin:$PATH" $venv -m pip --disable-pip-version-check install "${quiet[@]}" --no-build-isolation "$@"
}

echo "set-up: installing into .venv (Python $(version "$python"); minutes the first time, nothing afterwards)"
$venv -c 'import pip' 2>/dev/null || "$python" -m venv --clear .venv
pip --require-hashes --requirement locks/build.txt
pip --require-hashes --requirement locks/numpy.txt
requirements=("${locks[@]/#/--requirement=locks/}")
pip --require-hashes "${requirements[@]/%/.txt}"
# tritonserver's wheel: nothing it depends on is needed.
pip --require-hashes --no-deps --requirement locks/tritonserver.txt
if [ "$1" != serve ]; then
    # PyPI has the build for CUDA, of some GB with its libraries. Where pip is configured to know the one for CPUs too,
    # that will do. What goes wrong otherwise (no connection, no room) is no reason to download the larger one.
    if ! { said=$(pip --require-hashes --no-deps --requirement locks/torch-cpu.txt 2>&1 >&3); } 3>&1; then
        case "$said" in
            *"Retrying ("* | *"Could not fetch URL"*) die "PyTorch cannot be installed: $said" ;;
            *"No matching distribution found"*) why="pip knows no index that has it for this Python" ;;
            *"DO NOT MATCH THE HASHES"*) why="locks/torch-cpu.txt has no hash of the file for this Python" ;;
            *) die "PyTorch cannot be installed: $said" ;;
        esac
        echo "set-up: no PyTorch for CPUs ($why): taking the build for CUDA, about 3 GB"
        pip --require-hashes --no-deps --requirement locks/torch-cuda.txt
    fi
fi
pip --no-deps --editable .
echo "$state" >"$stamp"
