#!/usr/bin/env bash
# Types, against the installed dependencies: those of the tests if .ci/run has them, else fresh ones.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .ci/lib.sh
scratch
mypy=$(requirement mypy)
if [ -e "${INSTALLED:-none}/venv/bin/activate" ]; then
  # shellcheck disable=SC1091
  source "$INSTALLED/venv/bin/activate"
  cd "$INSTALLED/clone"
else
  fresh_clone "$SCRATCH/clone"
  fresh_venv "$SCRATCH/venv"
  cd "$SCRATCH/clone"
  pip install .
fi
pip install "$mypy"
mypy
