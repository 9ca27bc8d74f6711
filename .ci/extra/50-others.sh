#!/usr/bin/env bash
# Code that nobody here wrote. Our models and weight files against Hugging Face's Transformers, in the last
# version with Flax models, which need no PyTorch and JAX 0.10; `prune` on those models, and on examples
# of Flax as its source archive has them; and our decoders against Transformers' in PyTorch.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .ci/lib.sh
scratch
tools=()
for tool in beartype hypothesis pytest pytest-xdist; do tools+=("$(requirement "$tool")"); done
fresh_clone "$SCRATCH/clone"
fresh_venv "$SCRATCH/venv"
cd "$SCRATCH/clone"
pip install . "transformers==4.57.6" "jax==0.10.2" "${tools[@]}"
flax=$(python -c 'import flax; print(flax.__version__)')
pip download --no-deps --no-binary flax --dest "$SCRATCH" "flax==$flax"
tar -xzf "$SCRATCH/flax-$flax.tar.gz" -C "$SCRATCH"

python .ci/parity.py
python -c 'import transformers; transformers.FlaxViTModel' # or its tests would be skipped
FLAX_EXAMPLES="$SCRATCH/flax-$flax/examples" pytest -q -m exhaustive \
  tests/transform/test_huggingface.py tests/transform/test_flax_examples.py \
  tests/test_examples.py::test_a_flax_model_of_transformers_runs

# Last, so that nothing above can use it.
pip install torch
python .ci/parity_decoders.py
