#!/usr/bin/env bash
# Train a CNN on the digits and show the result:  bash scripts/quickstart.sh [--epochs 5 --learning-rate 1e-3 ...]
#
# Makes .venv if needed (PYTHON= chooses the interpreter). The run goes to runs/quickstart in the repository;
# one that was interrupted goes on where it stopped, a finished one is kept and the next gets a number.
# Arguments are passed on to `experiments/digits_cnn.py train`.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
# shellcheck disable=SC2119
make_venv

workdir="" json=no help=no previous=""
for argument in "$@"; do
    case $argument in
        --workdir=*) workdir=${argument#*=} ;;
        --json) json=yes ;;
        -h | --help) help=yes ;;
    esac
    if [ "$previous" = --workdir ]; then workdir=$argument; fi
    previous=$argument
done

arguments=("$@")
if [ -z "$workdir" ] && [ "$help" = no ]; then
    workdir=$root/runs/quickstart
    number=1
    while [ -e "$workdir/result.json" ]; do
        number=$((number + 1))
        workdir=$root/runs/quickstart-$number
    done
    arguments=(--workdir "$workdir" --resume "$@")
fi

"$venv/bin/python" "$root/experiments/digits_cnn.py" train ${arguments[@]+"${arguments[@]}"}
if [ "$help" = yes ]; then exit; fi

if [ "$json" = yes ]; then exec >&2; fi  # there, the last line of standard output is the result
"$venv/bin/python" - "$workdir" <<'PYTHON'
import json
import pathlib
import sys

workdir = pathlib.Path(sys.argv[1])
result = json.loads((workdir / "result.json").read_text())
print(f"test accuracy  {result['metrics']['test']['accuracy']:.2%}")
print(f"curves         {workdir / 'curves.png'}")
print(f"all results    {workdir / 'result.json'}")
PYTHON
