#!/usr/bin/env bash
# Lint and format, with the version of ruff that pyproject.toml names.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .ci/lib.sh
scratch
ruff=$(requirement ruff)
fresh_venv "$SCRATCH/venv"
pip install "$ruff"
ruff check .
ruff format --check .
