"""Shapes of published decoders by name, as their authors' `config.json` has them.

A decoder here is a stack of blocks of RMSNorm, causal attention with rotary positions and grouped
keys, and a gated MLP. `configs.common.named_decoder` makes settings of these numbers: the fields of
`Shape` are those of `config.model`, the `details` those of `config.model.decoder`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """Sizes of a decoder."""

    width: int  # D
    depth: int  # L
    heads: int  # H, of queries
    mlp_dim: int  # F
    vocab_size: int  # V
    details: Mapping[str, Any]  # fields of the settings `Decoder`


_GEMMA = {
    "activation": "gelu_tanh",
    "qk_norm": True,
    "norm_offset": True,
    "post_norms": True,
    "embedding_scale": True,
}
_QWEN3 = {"kv_heads": 8, "head_dim": 128, "qk_norm": True, "rope_base": 1e6, "norm_eps": 1e-6}
_LLAMA3_ROPE = {
    "rope_scaling": "llama3",
    "rope_factor": 32.0,
    "rope_low_factor": 1.0,
    "rope_high_factor": 4.0,
    "rope_original": 8192,
}

SHAPES: dict[str, Shape] = {
    "smollm2-135m": Shape(
        *(576, 30, 9, 1536, 49_152), {"kv_heads": 3, "rope_base": 1e5, "positions": 8192}
    ),
    "llama3.2-1b": Shape(
        *(2048, 16, 32, 8192, 128_256),
        {"kv_heads": 8, "head_dim": 64, "rope_base": 5e5, "positions": 131_072, **_LLAMA3_ROPE},
    ),
    "qwen3-0.6b": Shape(*(1024, 28, 16, 3072, 151_936), {**_QWEN3, "positions": 40_960}),
    "qwen3-4b": Shape(*(2560, 36, 32, 9728, 151_936), {**_QWEN3, "positions": 40_960}),
    "gemma3-1b": Shape(
        *(1152, 26, 4, 6912, 262_144),
        {
            **_GEMMA,
            "kv_heads": 1,
            "head_dim": 256,
            "query_scale": 256.0,
            "norm_eps": 1e-6,
            "rope_base": 1e6,
            "rope_local_base": 1e4,
            "window": 512,
            "global_every": 6,
            "positions": 32_768,
        },
    ),
}
