#!/usr/bin/env bash
# Our models and weight files against an independent implementation: Hugging Face's Transformers in the
# last version with Flax models, which need no PyTorch and JAX 0.10.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .ci/lib.sh
scratch
fresh_clone "$SCRATCH/clone"
fresh_venv "$SCRATCH/venv"
cd "$SCRATCH/clone"
pip install . "transformers==4.57.6" "jax==0.10.2"
python .ci/parity.py
