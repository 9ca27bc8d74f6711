#!/usr/bin/env bash
# `prune` on models that nobody here wrote: Flax models of Hugging Face's Transformers, in its last version
# that has them, which needs JAX 0.10.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .ci/lib.sh
scratch
fresh_clone "$SCRATCH/clone"
fresh_venv "$SCRATCH/venv"
cd "$SCRATCH/clone"
pip install ".[test]" "transformers==4.57.6" "jax==0.10.2"
python -c 'import transformers; transformers.FlaxViTModel' # or every test would be skipped
pytest -q -n0 -m exhaustive tests/transform/test_huggingface.py tests/test_examples.py::test_a_flax_model_of_transformers_runs
