"""The paper's experiment: ViT-B/16, pretrained on ImageNet-21k, on CIFAR-100, CIFAR-10 or CUB-200.

    pbr data prepare cifar100
    python train.py --config configs/vit_b16.py
    python train.py --config configs/vit_b16.py:cifar10 --config.method=full
    python train.py --config configs/vit_b16.py:smoke    2 steps on digits, 38 s on 2 CPU cores

Weights: `ViT-B_16.npz` in a folder `weights` where the command is run, from
https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz (Dosovitskiy et al., 2021).

Recipe of the paper (section 5.1) and of BackRazor, which it follows: 224 px, random crops of 5 to
100 % of the image, mean and deviation 0.5, SGD with momentum 0.9, no weight decay, gradient norm
clipped at 1, learning rate 0.01 by a cosine with 500 steps of warm-up, batch 128, 20 000 steps
(CUB-200: 6 000, as in BackRazor), float32 as they have it. `--config.model.dtype=bfloat16` halves
the activations.

The paper's Table 1, on an RTX 4090 (minutes of one epoch of CIFAR-100; the two with JS are
PreBackRazor++ at 90 % with JointSPAR, here `prebackrazor++/js70` and the default
`prebackrazor++/js50`), and ours:

    method         memory     epoch     CIFAR-100   CIFAR-10   CUB-200      ours
    full           19 980 MB  2:59      93.0        99.0       85.5         not run
    BackRazor       7 540 MB  6:19      92.1        98.6       86.6         not run
    JS 70 %         7 440 MB  4:37      92.4        98.8       85.0         not run
    JS 50 %         6 880 MB  4:02      92.1        98.6       85.6         not run
"""

from pbr_jax.configs.common import Config, Data, Model, Optimizer

VARIANTS = {
    "cifar100": "100 classes, 20 000 steps: the default",
    "cifar10": "10 classes, 20 000 steps",
    "cub200": "200 kinds of birds, 6 000 steps",
    "smoke": "2 steps of 4 enlarged digits from random weights: to see that everything works",
}
_CLASSES = {"cifar100": 100, "cifar10": 10, "cub200": 200}


def get_config(variant: str | None = None) -> Config:
    """The configuration of `variant`, one of `VARIANTS`, or the default."""
    if variant == "smoke":
        return _smoke()
    data = variant or "cifar100"
    return Config(
        name=f"vit-b16-{data}",
        method="prebackrazor++/js50",
        steps=6_000 if data == "cub200" else 20_000,
        batch_size=128,
        eval_every=1000,
        checkpoint_every=1000,
        log_every=50,
        model=_vit_b16(_CLASSES[data], "weights/ViT-B_16.npz"),
        data=Data(name=data, augment="crop", workers=8),  # files are decoded as they are read
        optimizer=Optimizer(learning_rate=0.01, momentum=0.9, clip_norm=1.0, warmup_steps=500),
    )


def _smoke() -> Config:
    return Config(
        name="vit-b16-smoke",
        method="prebackrazor++/js50",
        steps=2,
        batch_size=4,
        eval_every=2,
        checkpoint_every=2,
        log_every=1,
        model=_vit_b16(num_classes=10, weights=None),
        data=Data(name="digits", augment="affine", max_test=10),
        optimizer=Optimizer(learning_rate=0.01, clip_norm=1.0, warmup_steps=1),
    )


def _vit_b16(num_classes: int, weights: str | None) -> Model:
    return Model(size="B", patch=16, image_size=224, num_classes=num_classes, weights=weights)
