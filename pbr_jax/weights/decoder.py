"""Public weights of decoders: Hugging Face's Llama, Qwen3 and Gemma 3, of one file or in shards.

The names are those of its PyTorch modules. Models without a head lack the prefix `model.`; a head
that is the embedding is not there, or is there twice. What no array tells is in `config.json`
(`pbr_jax.weights.decoder_config`).
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pbr_jax.configs.common import Model
from pbr_jax.families.decoder import filled
from pbr_jax.weights.decoder_config import (
    GEMMA3,
    LLAMA,
    QWEN3,
    differences,
    settings,
)
from pbr_jax.weights.decoder_written import described
from pbr_jax.weights.formats import TOLD, Format, Published
from pbr_jax.weights.layout import Arrays, Leaves, Line, Sizes, model_sizes

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TABLE = "vocab width"
# Axes of the kernels of a block; `queries` is all heads of them together, and `keys` too.
_KERNELS = {
    "self_attn.q_proj": ("q", "width queries"),
    "self_attn.k_proj": ("k", "width keys"),
    "self_attn.v_proj": ("v", "width keys"),
    "self_attn.o_proj": ("o", "queries width"),
    "mlp.gate_proj": ("gate", "width mlp_dim"),
    "mlp.up_proj": ("up", "width mlp_dim"),
    "mlp.down_proj": ("down", "mlp_dim width"),
}
_NORMS = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
_HEAD_NORMS = {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}
_FOUR_NORMS = {  # in a Gemma the second is that behind attention
    "input_layernorm": "norm1",
    "post_attention_layernorm": "post1",
    "pre_feedforward_layernorm": "norm2",
    "post_feedforward_layernorm": "post2",
}


def _table(norms: Mapping[str, str], head_norms: Mapping[str, str]) -> Callable[[int], list[Line]]:
    """The lines of a layout whose blocks have these norms."""

    def table(depth: int) -> list[Line]:
        lines = [
            Line(EMBEDDING, "embedding/table", _TABLE),
            Line("model.norm.weight", "norm/scale", "width"),
            Line(HEAD, "lm_head/table", _TABLE),
        ]
        for i in range(depth):
            layer = f"model.layers.{i}"
            for theirs, (ours, axes) in _KERNELS.items():
                inputs, out = axes.split()
                turned = f"{axes} -> {out} {inputs}"  # theirs are [out, in]
                lines.append(Line(f"{layer}.{theirs}.weight", f"blocks/{ours}/kernel", turned, i))
            for names, axis in ((norms, "width"), (head_norms, "channels")):
                for theirs, ours in names.items():
                    lines.append(Line(f"{layer}.{theirs}.weight", f"blocks/{ours}/scale", axis, i))
        return lines

    return table


def _format(name: str, model_type: str, *norms: Mapping[str, str]) -> Format:
    return Format(
        f"{name} in Hugging Face's layout",
        "decoder",
        "safetensors",
        _table(*norms),
        r"layers\.",
        prefix="model.",
        unused={r".*rotary_emb\.inv_freq": "buffers without parameters"},
        told=TOLD,
        types=(model_type,),
    )


# The first that knows all names is taken: what comes later knows more of them.
FORMATS = (
    _format("Llama", LLAMA, _NORMS, {}),
    _format("Qwen3", QWEN3, _NORMS, _HEAD_NORMS),
    _format("Gemma 3", GEMMA3, _FOUR_NORMS, _HEAD_NORMS),
)


def _sizes(model: Model) -> dict[str, int]:
    d, sizes = filled(model), model_sizes(model)
    assert d.head_dim is not None and d.kv_heads is not None
    return sizes | {
        "vocab": model.vocab_size,
        "channels": d.head_dim,
        "queries": d.head_dim * sizes["heads"],
        "keys": d.head_dim * d.kv_heads,
    }


def _settings(
    arrays: Arrays, sizes: Sizes, model: Model, config: Mapping[str, Any]
) -> dict[str, Any]:
    """All that `config.json` says; without one, what the arrays tell."""
    with contextlib.suppress(ValueError):  # what it says is no model of ours: told by `differences`
        if config:
            return settings(config)
    wanted: dict[str, Any] = {"decoder.tied": HEAD not in arrays}
    return wanted | ({"vocab_size": sizes["vocab"]} if "vocab" in sizes else {})


def _without_copy(arrays: Arrays, lines: Sequence[Line], like: Leaves, sizes: Sizes) -> list[str]:
    """Leaves out a head that is the embedding again, of a model that has one table for both."""
    if "lm_head/table" in like or HEAD not in arrays or EMBEDDING not in arrays:
        return []
    if np.array_equal(arrays[HEAD], arrays[EMBEDDING]):
        del arrays[HEAD]
    return []  # a head of its own is a fault that the check names


PUBLISHED = Published(
    FORMATS,
    _sizes,
    settings=_settings,
    fit_positions=_without_copy,
    described=described,
    differences=differences,
)
