"""Pretrains the ViT of `config.py` on the letters A-Z.

    python benchmarks/accuracy/pretrain.py

Full training from random weights, 1 500 steps of 32 images. The weights stay out of the repository
like the images that they were made of.
"""

from pathlib import Path

import config as settings
import numpy as np

from pbr_jax.training import from_config
from pbr_jax.training.begin import begin
from pbr_jax.training.inputs import load_data
from pbr_jax.training.loop import train
from pbr_jax.weights import published, save_npz


def main() -> None:
    """Trains, writes the weights, and prints the accuracy on letters of unseen families."""
    config = settings.get_config("letters")
    run, _ = begin(config, from_config.build(config), load_data(config))
    outcome = train(run)
    sizes = published(config.model.family).sizes(config.model)
    params = outcome.state.params
    save_npz(Path(settings.WEIGHTS), config.model.family, params, sizes, np.float16)
    accuracy = outcome.test["accuracy"]
    print(f"{accuracy:.1%} on letters of unseen families; wrote {settings.WEIGHTS}")


if __name__ == "__main__":
    main()
