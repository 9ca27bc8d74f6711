"""Pretrains the ViT of `config.py` on the letters A-Z.

    python benchmarks/accuracy/pretrain.py

Full training from random weights, 1 500 steps of 32 images. The weights stay out of the repository
like the images that they were made of.
"""

import functools
from pathlib import Path

import config as settings
import jax
import numpy as np

from pbr_jax import data
from pbr_jax import weights as checkpoints
from pbr_jax.compare.trials import prepare, train_batches
from pbr_jax.training import from_config
from pbr_jax.training.inputs import load_data, make_inputs
from pbr_jax.training.loop import make_evaluate
from pbr_jax.training.pretrained import architecture


def main() -> None:
    """Trains, writes the weights, and prints the accuracy on letters of unseen families."""
    config = settings.get_config("letters")
    dataset, prepared = load_data(config), prepare(config)
    model = prepared.parts.model
    state = from_config.new_state(config, prepared.parts, from_config.random_params(config, model))
    batches = train_batches(config, dataset)
    for _ in range(config.steps):
        state, _ = prepared.step(state, next(batches))
    _, sizes = architecture(model)
    checkpoints.save_npz(Path(settings.WEIGHTS), state.params, sizes, np.float16)
    examples = functools.partial(
        data.eval_batches, dataset.test, make_inputs(config), config.batch_size
    )
    accuracy = make_evaluate(jax.jit(prepared.parts.eval_step), examples)(state.params)
    print(f"{accuracy['accuracy']:.1%} on letters of unseen families; wrote {settings.WEIGHTS}")


if __name__ == "__main__":
    main()
