"""Language models of a published shape, fine-tuned on texts of your own.

    python train.py --config configs/llm.py:qwen3-0.6b --config.data.path=texts/
    pbr fit --config configs/llm.py:qwen3-4b --gpu rtx4090
    python train.py --config configs/llm.py:smoke   20 steps, half a minute on 2 CPU cores

Weights and tokenizer: `model.safetensors` (or its shards), `config.json`, `tokenizer.json` and
`tokenizer_config.json` of the model on Hugging Face, in a folder `weights/VARIANT` where the
command is run. Texts: `train.jsonl` and `test.jsonl` in `data.path`, lines of `text`, of `prompt`
and `completion`, or of chat `messages` (docs/data.md).

Parameters are bfloat16. `tiny` trains a tenth of the columns of every kernel and of the vocabulary,
and draws them anew every 200 steps; the optimizer keeps float32 masters and moments of these alone.
A block keeps its input and what attention gave, and makes the rest again.
Rows are packed, 4 of 2048 tokens a step. The same run with `--config.method=` and full, remat,
lora, static (columns drawn once) or tiny+offload is what to compare with.
"""

from pathlib import Path

from pbr_jax.configs.common import (
    Config,
    Data,
    Decoder,
    Model,
    Optimizer,
    Plan,
    Pruning,
    named_decoder,
)

VARIANTS = {
    "smollm2-135m": "SmolLM2-135M: the default",
    "qwen3-0.6b": "Qwen3-0.6B",
    "qwen3-4b": "Qwen3-4B",
    "gemma3-1b": "Gemma 3 1B, the text model",
    "smoke": "20 steps of a small model on shipped texts: to see that everything works",
}


def get_config(variant: str | None = None) -> Config:
    """The configuration of `variant`, one of `VARIANTS`, or the default."""
    if variant == "smoke":
        return _smoke()
    name = variant or "smollm2-135m"
    weights = f"weights/{name}"
    types = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    return Config(
        name=name,
        method="tiny",
        steps=1000,
        batch_size=4,
        eval_every=200,
        checkpoint_every=200,
        model=named_decoder(name, max_length=2048, weights=weights, **types),
        data=Data(name="language", path="texts", tokenizer=weights),
        pruning=Pruning(interval=200, state="packed"),
        plan=Plan(save_attention=True),
        optimizer=Optimizer(
            name="adamw", learning_rate=1e-4, warmup_steps=50, schedule="cosine", clip_norm=1.0
        ),
    )


def _smoke() -> Config:
    texts = str(Path(__file__).parent / "answers")
    return Config(
        name="llm-smoke",
        method="tiny",
        steps=20,
        batch_size=4,
        eval_every=10,
        checkpoint_every=10,
        log_every=5,
        model=Model(
            family="decoder",
            width=64,
            depth=2,
            heads=4,
            mlp_dim=192,
            vocab_size=512,
            max_length=128,
            decoder=Decoder(kv_heads=2),
        ),
        data=Data(name="language", path=texts, tokenizer=texts),
        pruning=Pruning(interval=10, state="packed"),
        optimizer=Optimizer(name="adamw", learning_rate=3e-3, schedule="constant"),
    )
