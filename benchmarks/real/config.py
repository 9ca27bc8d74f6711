"""Pretrained models on real tasks: MiniLM-L6 on two texts, DINOv2-S/14, SmolLM2-135M.

    python train.py --config benchmarks/real/config.py:swapped
    python train.py --config benchmarks/real/config.py:clipart --config.method=full

after the scripts of this folder have made weights and data: `minilm.py`, `swapped.py` and `cut.py`
(or `documents.py` in place of `swapped.py`), or `dinov2.py` and `clipart.py`, or `smollm2.py` and
`definitions.py`.
Evaluation reads the validation part; the test part is for figures that are reported,
`--config.data.test_split=test`. Lengths and batches are small, so that a run takes a few minutes on
two CPU cores.
"""

from pbr_jax.configs.common import Config, Data, Model, Optimizer, Pruning, named_decoder

FOLDER = "runs/real"
VARIANTS = {
    "swapped": "MiniLM-L6, 2 classes, sentences of 12 tokens: the default",
    "documents": "MiniLM-L6, 12 classes, sentences of 24 tokens",
    "clipart": "DINOv2-S/14, 28 classes, images of 70 pixels",
    "definitions": "SmolLM2-135M, definitions of words in rows of 128 tokens",
}
ADAMW = Optimizer(name="adamw", learning_rate=3e-4, warmup_steps=20, schedule="linear")


def get_config(variant: str | None = None) -> Config:
    """The configuration of `variant`, one of `VARIANTS`, or the default."""
    if variant == "clipart":
        return _clipart()
    if variant == "definitions":
        return _smollm2()
    if variant == "documents":
        return _minilm(variant, steps=150, vocab_size=8012, tokens=24, classes=12)
    return _minilm("swapped", steps=200, vocab_size=13333, tokens=12, classes=2)


def _minilm(task: str, steps: int, vocab_size: int, tokens: int, classes: int) -> Config:
    minilm = f"{FOLDER}/minilm_{task}"  # of the words of the task, by cut.py
    return Config(
        name=task,
        method="lean",
        steps=steps,
        batch_size=16,
        eval_every=steps,
        checkpoint_every=steps,
        log_every=20,
        model=Model(
            family="bert",
            width=384,
            depth=6,
            heads=12,
            mlp_dim=1536,
            vocab_size=vocab_size,
            max_length=tokens,
            num_classes=classes,
            weights=f"{minilm}/model.safetensors",
        ),
        data=Data(
            name="csv",
            path=f"{FOLDER}/{task}",
            test_split="val",
            tokenizer=f"{minilm}/vocab.txt",
        ),
        optimizer=ADAMW,
    )


def _clipart() -> Config:
    return Config(
        name="clipart",
        method="lean",
        steps=200,
        batch_size=16,
        eval_every=200,
        checkpoint_every=200,
        log_every=20,
        # 5 x 5 patches of 14 x 14 pixels: 26 tokens.
        model=Model(size="S", patch=14, image_size=70, num_classes=28, weights=f"{FOLDER}/dinov2"),
        data=Data(name="image_folder", path=f"{FOLDER}/clipart", test_split="val", augment="off"),
        optimizer=ADAMW,
    )


def _smollm2() -> Config:
    smollm2 = f"{FOLDER}/smollm2"
    return Config(
        name="definitions",
        method="tiny",
        steps=16,
        batch_size=4,
        eval_every=16,
        checkpoint_every=16,
        log_every=1,
        model=named_decoder("smollm2-135m", max_length=128, weights=smollm2),
        data=Data(
            name="language", path=f"{FOLDER}/definitions", test_split="val", tokenizer=smollm2
        ),
        pruning=Pruning(interval=8, state="packed"),
        optimizer=Optimizer(name="adamw", learning_rate=3e-4, warmup_steps=3, schedule="linear"),
    )
