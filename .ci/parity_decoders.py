"""Our decoders against those of Hugging Face's Transformers in PyTorch, which share no code.

    python .ci/parity_decoders.py        needs transformers==4.57.6 and torch, on the CPU

Random weights, float32, small but of real proportions: Llama with a head of its own, tied, and with
scaled rotary positions; Qwen3; Gemma 3. Both ways, as shards: what `save_pretrained` writes is read
by ours, and what ours exports by `from_pretrained`. Logits differ by at most 1e-4; what is exported
has the bytes of what was read, in float32 and in bfloat16; what generates greedily is the same.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from pbr_jax import weights as public
from pbr_jax.configs.common import Model
from pbr_jax.models.decoder import build
from pbr_jax.models.generation import generate
from pbr_jax.plans import ResidualPlan
from pbr_jax.weights import beside, decoder_config, export, files

TOLERANCE = 1e-4
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 199,
    "max_position_embeddings": 256,
}
ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def configurations() -> dict[str, transformers.PretrainedConfig]:
    """Of every kind of model, by name."""
    llama, qwen3 = transformers.LlamaConfig, transformers.Qwen3Config
    gemma = {"sliding_window": 5, "query_pre_attn_scalar": 24, "num_key_value_heads": 1}
    return {
        "llama": llama(**SIZES, rms_norm_eps=1e-5, rope_theta=1e5),
        "llama, tied": llama(**SIZES, tie_word_embeddings=True),
        "llama, scaled": llama(**SIZES, rope_scaling=ROPE, rope_theta=5e5, head_dim=64),
        "qwen3": qwen3(**SIZES, head_dim=64, tie_word_embeddings=True, rope_theta=1e6),
        "gemma3": transformers.Gemma3TextConfig(**SIZES | gemma, head_dim=64),
    }


def main() -> int:
    """Runs every comparison; returns 1 if one is not within the tolerance."""
    worst = 0.0
    export.LARGEST_FILE = 500_000  # bytes, so that there are several
    for name, config in configurations().items():
        began = time.monotonic()
        errors = compare(config)
        worst = max(worst, *errors.values())
        print(f"{name}, {time.monotonic() - began:.0f} s")
        for what, difference in errors.items():
            print(f"  {difference:.1e}  {what}")
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(not worst <= TOLERANCE)


def compare(config: transformers.PretrainedConfig) -> dict[str, float]:
    """All comparisons of one model; the largest absolute difference of each."""
    theirs = make_theirs(config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 24), np.int32)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        theirs.save_pretrained(path / "theirs", max_shard_size="500KB")
        assert (path / "theirs" / files.INDEX).exists()
        model, params = load(path / "theirs", "float32")
        module = build(model, ResidualPlan())
        errors = {"logits": error(run_ours(module, params, tokens), run_theirs(theirs, tokens))}

        # The prompts end in their own places, and theirs goes one by one.
        prompts = [tokens[0, :11].tolist(), tokens[1, :3].tolist()]
        made = generate(module, params, prompts, 9, jax.random.key(0), 0.0, None)
        assert made == [greedy(theirs, prompt, 9) for prompt in prompts]

        mine = jax.tree.map(lambda leaf: leaf[::-1].copy(), params)  # other weights than theirs
        save(path / "ours", model, mine)
        exported = type(theirs).from_pretrained(path / "ours").eval()
        expected = run_theirs(exported, tokens)
        errors["logits of our export"] = error(run_ours(module, mine, tokens), expected)

        for dtype in ("float32", "bfloat16"):
            kind = getattr(torch, dtype)
            theirs.to(kind).save_pretrained(path / dtype, max_shard_size="500KB")
            model, params = load(path / dtype, dtype)
            save(path / f"{dtype}-again", model, params)
            assert same_bytes(path / dtype, path / f"{dtype}-again")
            said = beside.model_config(path / f"{dtype}-again")
            assert said["torch_dtype"] == dtype
            assert decoder_config.settings(said) == decoder_config.settings(
                beside.model_config(path / dtype)
            )
    return errors


def make_theirs(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """A model of Transformers with weights none of which is zero or one."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, leaf in theirs.named_parameters():
            norm = leaf.ndim == 1
            scale = 0.1 if norm or "embed" in name else leaf.shape[1] ** -0.5
            # Gemma's norms multiply by 1 + their weight.
            leaf.normal_(0, scale).add_(float(norm and config.model_type != "gemma3_text"))
    return theirs


def run_theirs(theirs, tokens: np.ndarray) -> np.ndarray:
    """Their logits."""
    with torch.no_grad():
        return theirs(torch.from_numpy(tokens).long()).logits.numpy()


def greedy(theirs, prompt: list[int], count: int) -> list[int]:
    """The tokens that theirs finds likeliest after a prompt, one by one and without a cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(run_theirs(theirs, np.array([tokens], np.int32))[0, -1].argmax()))
    return tokens[len(prompt) :]


def run_ours(module, params, tokens: np.ndarray) -> np.ndarray:
    """Our logits."""
    inputs = {
        "tokens": jnp.asarray(tokens),
        "segments": jnp.ones_like(tokens),
        "positions": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
    }
    function = jax.jit(lambda params, inputs: module.apply(params, inputs, method="logits"))
    return np.asarray(function({"params": params}, inputs))


def load(path: pathlib.Path, dtype: str) -> tuple[Model, dict]:
    """The settings that the files of a model ask for, and our parameters, every one of them."""
    model = decoder_config.applied(
        Model(param_dtype=dtype, max_length=24), beside.model_config(path)
    )
    module = build(model, ResidualPlan())
    shapes = jax.eval_shape(module.init, jax.random.key(0), module.input_specs(1))["params"]
    found = public.read(path)
    published = public.published(model.family)
    assert published.differences(found.config, model) == []
    params, notes = public.load(found, model.family, published.sizes(model), shapes)
    assert notes == [], notes
    return model, params


def save(path: pathlib.Path, model: Model, params: dict) -> None:
    """Our export."""
    published = public.published(model.family)
    sizes, said = published.sizes(model), published.described(model)
    public.save(path, "safetensors", model.family, params, sizes, (), described=said)


def same_bytes(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether both hold the same arrays, to the bit."""
    first, second = files.read(one), files.read(other)
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    return all(
        (first[name].dtype, first[name].shape, first[name].tobytes())
        == (second[name].dtype, second[name].shape, second[name].tobytes())
        for name in first
    )


def error(actual, expected) -> float:
    """The largest absolute difference; not a number if anything is not finite."""
    return float(np.max(np.abs(np.asarray(actual) - np.asarray(expected))))


if __name__ == "__main__":
    sys.exit(main())
