"""The paper's experiment: BERT-base (uncased) on RTE of the GLUE benchmark.

    pbr data prepare glue/rte
    python train.py --config configs/bert_rte.py
    python train.py --config configs/bert_rte.py:batch8-keep20 --config.method=backrazor
    python train.py --config configs/bert_rte.py:smoke   2 steps, 60 s on 2 CPU cores

Weights and vocabulary: `model.safetensors` and `vocab.txt` in a folder `weights/bert-base-uncased`
where the command is run, from https://huggingface.co/google-bert/bert-base-uncased (Devlin et al.,
2019).

Recipe of the paper (section 5.2) and of BackRazor, whose base is the fine-tuning script of
Transformers: sequences of 512 tokens, AdamW without weight decay, learning rate 5e-5 falling
linearly to zero, gradient norm clipped at 1, dropout 0.1, 5 epochs; float32. An epoch is the 2 490
training pairs without the incomplete last batch. Accuracy is that of the 277 validation pairs at
the last step.

The paper's Table 5, on an RTX 4090 (minutes of the whole run), and ours:

    batch  keep   method         memory      finished in   accuracy    ours
    32     all    full           16 625 MB   2:50          70.40       not run
    32     0.1    BackRazor      11 865 MB   6:26          66.43       not run
    32     0.1    PreBackRazor   11 871 MB   6:24          65.70       not run
    32     0.2    BackRazor      12 888 MB   6:41          65.70       not run
    32     0.2    PreBackRazor   13 006 MB   6:19          66.07       not run
    8      all    full            5 575 MB   4:28          70.04       not run
    8      0.1    BackRazor       4 734 MB   16:59         66.43       not run
    8      0.1    PreBackRazor    4 747 MB   16:05         69.68       not run
    8      0.2    BackRazor       4 812 MB   17:39         69.31       not run
    8      0.2    PreBackRazor    4 840 MB   16:36         72.92       not run

`--config.method=full` needs `--config.pruning.keep=none`, since it prunes nothing.
"""

from pathlib import Path

from pbr_jax.configs.common import Config, Data, Model, Optimizer, Pruning

VARIANTS = {
    "batch32-keep10": "batch 32, 10 % of the columns kept: the default",
    "batch32-keep20": "batch 32, 20 % kept",
    "batch8-keep10": "batch 8, 10 % kept",
    "batch8-keep20": "batch 8, 20 % kept",
    "smoke": "2 steps on a few sentences from random weights: to see that everything works",
}
_EXAMPLES, _EPOCHS = 2490, 5  # training pairs, and passes over them
_WEIGHTS = Path("weights/bert-base-uncased")
_ADAMW = Optimizer(name="adamw", learning_rate=5e-5, clip_norm=1.0, schedule="linear")


def get_config(variant: str | None = None) -> Config:
    """The configuration of `variant`, one of `VARIANTS`, or the default."""
    if variant == "smoke":
        return _smoke()
    batch_size = 8 if (variant or "").startswith("batch8") else 32
    keep = 0.2 if (variant or "").endswith("keep20") else 0.1
    steps = _EXAMPLES // batch_size  # of an epoch
    return Config(
        name=f"bert-rte-batch{batch_size}-keep{round(100 * keep)}",
        method="prebackrazor",
        steps=_EPOCHS * steps,
        batch_size=batch_size,
        eval_every=steps,
        checkpoint_every=steps,
        log_every=20,
        pruning=Pruning(keep=keep),
        model=_bert_base(weights=str(_WEIGHTS / "model.safetensors")),
        data=Data(name="glue/rte", tokenizer=str(_WEIGHTS / "vocab.txt")),
        optimizer=_ADAMW,
    )


def _smoke() -> Config:
    sentences = Path(__file__).parent / "sentences"
    return Config(
        name="bert-rte-smoke",
        method="prebackrazor",
        steps=2,
        batch_size=4,
        eval_every=2,
        checkpoint_every=2,
        log_every=1,
        model=_bert_base(weights=None),
        data=Data(name="csv", path=str(sentences), tokenizer=str(sentences / "vocab.txt")),
        optimizer=_ADAMW,
    )


def _bert_base(weights: str | None) -> Model:
    return Model(
        family="bert", size="B", max_length=512, num_classes=2, dropout=0.1, weights=weights
    )
