#!/usr/bin/env bash
# Builds the site in docs/_build: bash scripts/docs.sh, or DOCS_EXECUTE=1 bash scripts/docs.sh to run its notebooks.
set -euo pipefail

# shellcheck source=scripts/venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

make_venv docs
cd "$root"
JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} "$venv/bin/python" -m sphinx -W --keep-going -q -b html docs docs/_build "$@"
say "open docs/_build/index.html"
