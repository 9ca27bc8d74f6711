#!/usr/bin/env bash
# The newest JAX that is supported, on Python 3.12: the tests that can differ there, and the exhaustive
# ones, which a plain `pytest` leaves out.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .ci/lib.sh
scratch
python312() {
  local candidate
  for candidate in python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do
    if "$candidate" -c 'import sys; assert sys.version_info[:2] == (3, 12)' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.12 is needed for this check: none on PATH, and none of pyenv's" >&2
  return 1
}
python=$(python312)
fresh_clone "$SCRATCH/clone"
fresh_venv "$SCRATCH/venv" "$python"
cd "$SCRATCH/clone"
pip install ".[test]" "jax==0.11.2"
python -c 'import sys, jax; print("Python", sys.version.split()[0], "jax", jax.__version__)'
pytest -q -m "jax_version or exhaustive"
