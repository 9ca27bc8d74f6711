"""A ViT that knows the letters A-Z learns 36 glyphs, digits and lower case, of unseen families.

    python train.py --config benchmarks/accuracy/config.py

after `glyphs.py` and `pretrain.py` of this folder have made the data and the weights. The variant
`letters` is the pretraining.
"""

from pbr_jax.configs.common import Config, Data, Model, Optimizer

FOLDER = "runs/glyphs"
WEIGHTS = f"{FOLDER}/letters_vit.npz"
VARIANTS = {"letters": "full training on A-Z from random weights"}


def get_config(variant: str | None = None) -> Config:
    """The fine-tuning, or the pretraining."""
    letters = variant == "letters"
    return Config(
        name="letters" if letters else "glyphs",
        method="full" if letters else "prebackrazor",
        steps=1500 if letters else 600,
        batch_size=32,
        eval_every=1500 if letters else 600,
        # 4 x 4 patches of 4 x 4 pixels: 17 tokens.
        model=Model(
            width=128,
            depth=4,
            heads=4,
            mlp_dim=512,
            patch=4,
            image_size=16,
            channels=1,
            num_classes=26 if letters else 36,
            weights=None if letters else WEIGHTS,
        ),
        data=Data(name="npz", path=f"{FOLDER}/{'letters' if letters else 'glyphs'}.npz"),
        optimizer=Optimizer(learning_rate=0.1 if letters else 0.15, warmup_steps=60),
    )
