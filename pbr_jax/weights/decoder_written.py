"""`config.json` of a decoder from its settings, as Hugging Face's Transformers 4 writes it."""

from typing import Any

from pbr_jax.configs.common import Decoder, Model
from pbr_jax.families.decoder import filled
from pbr_jax.weights.decoder_config import (
    ACTIVATIONS,
    GEMMA3,
    GLOBAL,
    KINDS,
    LLAMA,
    LOCAL,
    SIZES,
)


def kind_of(shape: Decoder) -> str:
    """The type of published model that computes what a decoder of these settings does.

    Raises:
      ValueError: there is none.
    """
    for name, kind in KINDS.items():
        same = all(getattr(shape, key) == value for key, value in kind.settings.items())
        own = (shape.window is not None, shape.query_scale not in (None, shape.head_dim))
        if same and (own[0] if name == GEMMA3 else not any(own)):
            return name
    listed = ", ".join(f"{key} = {getattr(shape, key)}" for key in KINDS[LLAMA].settings)
    raise ValueError(
        f"model.decoder: {listed}, window = {shape.window}, query_scale = {shape.query_scale}: no"
        f" model of {', '.join(KINDS)} computes that; export --to orbax"
    )


def described(model: Model) -> dict[str, Any]:
    """`config.json` of a model, as Transformers 4 writes it; but for the type of its parameters.

    Raises:
      ValueError: no published model computes what this one does.
    """
    d, sizes = filled(model), model.resolved()
    name = kind_of(d)
    kind = KINDS[name]
    config: dict[str, Any] = {
        "architectures": [kind.architecture],
        "model_type": name,
        **{key: getattr(sizes, field) for field, key in SIZES.items()},
        "num_key_value_heads": d.kv_heads,
        "head_dim": d.head_dim,
        kind.activation: ACTIVATIONS[d.activation],
        "max_position_embeddings": d.positions or model.max_length,
        "rms_norm_eps": d.norm_eps,
        "rope_theta": d.rope_base,
        "rope_scaling": _scaling(d),
        "tie_word_embeddings": d.tied,
        "attention_bias": False,
    }
    if name != GEMMA3:
        return config | ({"mlp_bias": False} if name == LLAMA else {"use_sliding_window": False})
    assert sizes.depth is not None
    every = d.global_every or sizes.depth + 1
    numbers = range(1, sizes.depth + 1)
    return config | {
        "query_pre_attn_scalar": d.query_scale or d.head_dim,
        "sliding_window": d.window,
        "layer_types": [LOCAL if number % every else GLOBAL for number in numbers],
        "rope_local_base_freq": d.rope_local_base or d.rope_base,
    }


def _scaling(d: Decoder) -> dict[str, Any] | None:
    if d.rope_scaling == "none":
        return None
    scaling = {"rope_type": d.rope_scaling, "factor": d.rope_factor}
    if d.rope_scaling == "linear":
        return scaling
    return scaling | {
        "low_freq_factor": d.rope_low_factor,
        "high_freq_factor": d.rope_high_factor,
        "original_max_position_embeddings": d.rope_original,
    }
