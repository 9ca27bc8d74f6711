"""Fine-tune a small ViT, pretrained on the digits 0-4, on all ten handwritten digits.

    python train.py                                       the defaults below
    python train.py --config.method=full                  the same with full fine-tuning
    python train.py --config configs/digits.py:tiny       a few steps, to see that everything works

Data: 1 797 grey images of 8x8 pixels, shipped with scikit-learn; no GPU and no network needed.
Weights: `weights/vit_digits04.npz`, in this repository together with the script that made them.
Expected accuracy, memory and time: see README.
"""

import dataclasses
from typing import Any

from pbr_jax.configs.common import Config, Data, Model, Optimizer

VARIANTS = {
    "tiny": "2 narrow blocks, random weights, 8 steps: for tests",
    "scratch": "the default without pretrained weights",
}


def get_config(variant: str | None = None) -> Config:
    """The configuration of `variant`, one of `VARIANTS`, or the default."""
    if variant == "tiny":
        return _tiny()
    return _digits(weights=None if variant == "scratch" else "weights/vit_digits04.npz")


def _digits(weights: str | None) -> Config:
    # 4 x 4 patches of 2 x 2 pixels: 17 tokens.
    images: dict[str, Any] = {"patch": 2, "image_size": 8, "channels": 1, "num_classes": 10}
    return Config(
        name="digits",
        method="lean",
        steps=1200,
        batch_size=64,
        eval_every=100,
        checkpoint_every=200,
        log_every=20,
        model=Model(width=96, depth=4, heads=4, mlp_dim=384, **images, weights=weights),
        data=Data(name="digits", augment="affine"),
        optimizer=Optimizer(name="sgd", learning_rate=0.2, warmup_steps=100, schedule="cosine"),
    )


def _tiny() -> Config:
    config = _digits(weights=None)
    return dataclasses.replace(
        config,
        name="digits-tiny",
        method="prebackrazor",
        steps=8,
        batch_size=16,
        eval_every=4,
        checkpoint_every=4,
        log_every=2,
        model=dataclasses.replace(config.model, width=32, depth=2, heads=2, mlp_dim=64),
        optimizer=Optimizer(learning_rate=0.03, warmup_steps=2),
    )
