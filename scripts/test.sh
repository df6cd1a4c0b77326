#!/usr/bin/env bash
# Run the tests and doctests:  bash scripts/test.sh [pytest arguments, paths relative to the repository]
#
# Makes .venv with the test extra if needed. PYTHON= chooses the interpreter, VENV= another environment:
#   VENV=.venv-3.12 PYTHON=python3.12 bash scripts/test.sh -k resume
# WORKERS= sets the number of processes (default 2).
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
make_venv test
cd -- "$root"
# Collecting the tests takes 20 s of a core, 8 where pytest may keep the modules that it has compiled.
unset PYTHONDONTWRITEBYTECODE
exec "$venv/bin/python" -m pytest --numprocesses "${WORKERS:-2}" --dist worksteal "$@"
