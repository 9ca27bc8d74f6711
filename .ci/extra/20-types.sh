#!/usr/bin/env bash
# Types, against the installed dependencies.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .ci/lib.sh
scratch
mypy=$(requirement mypy)
fresh_clone "$SCRATCH/clone"
fresh_venv "$SCRATCH/venv"
cd "$SCRATCH/clone"
pip install . "$mypy"
mypy
