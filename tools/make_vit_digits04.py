"""Pretrains the small ViT of `configs/digits.py` on the digits 0-4 and writes `vit_digits04.npz`.

    python tools/make_vit_digits04.py

Full fine-tuning from random weights, 1 500 steps of 64 images, one to two minutes on two cores. The
file has Google's layout in float16, under 1 MB, and is read by the loader that reads
`ViT-B_16.npz`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from pbr_jax.configs import digits
from pbr_jax.data import digits as digits_data
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin
from pbr_jax.training.loop import train
from pbr_jax.weights import published, save_npz

CLASSES = range(5)
STEPS = 1500
LEARNING_RATE = 0.1


def main() -> None:
    """Trains, prints the accuracy on test digits 0-4, and writes the file."""
    config = digits.get_config("scratch")
    config = dataclasses.replace(
        config,
        method="full",
        steps=STEPS,
        model=dataclasses.replace(config.model, num_classes=len(CLASSES)),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=LEARNING_RATE),
    )
    run, _ = begin(config, from_config.build(config), digits_data.load_classes(CLASSES))
    outcome = train(run)
    path = Path(__file__).parents[1] / "pbr_jax" / "weights" / "vit_digits04.npz"
    sizes = published("vit").sizes(config.model)
    save_npz(path, "vit", outcome.state.params, sizes, np.float16, compressed=True)
    accuracy = outcome.test["accuracy"]
    print(f"{accuracy:.1%} on test digits 0-4; wrote {path}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
