"""What the `config.json` of a decoder says, as settings of a model.

Names are Hugging Face's, of the types `llama`, `qwen3` and `gemma3_text` of its Transformers. What
no setting here can say is refused by its key. `pbr_jax.weights.decoder_written` is the inverse.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from pbr_jax.configs.common import Config, Decoder, Model
from pbr_jax.families.decoder import filled
from pbr_jax.settings.rules import field_faults, show

Said = Mapping[str, Any]
LLAMA, QWEN3, GEMMA3 = "llama", "qwen3", "gemma3_text"


class Kind(NamedTuple):
    """What all models of a type have, and what is meant where their `config.json` is silent."""

    architecture: str  # name of its class with a head
    settings: Mapping[str, Any]  # fields of `Decoder`, which no key of its config changes
    activation: str  # key of the activation of the MLP
    silent: Mapping[str, Any] = {}  # key -> value where it is not there


ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
_NOT_GEMMA = {"norm_offset": False, "post_norms": False, "embedding_scale": False}
KINDS = {
    LLAMA: Kind(
        "LlamaForCausalLM", {"qk_norm": False, "activation": "silu", **_NOT_GEMMA}, "hidden_act"
    ),
    QWEN3: Kind(
        "Qwen3ForCausalLM",
        {"qk_norm": True, "activation": "silu", **_NOT_GEMMA},
        "hidden_act",
        {"head_dim": 128},
    ),
    GEMMA3: Kind(
        "Gemma3ForCausalLM",
        {"qk_norm": True, "activation": "gelu_tanh"} | dict.fromkeys(_NOT_GEMMA, True),
        "hidden_activation",
        {
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": True,
            "sliding_window": 4096,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    ),
}
# Key -> the values of it that all models here compute; one that is not there is fine.
_COMPUTED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "use_bidirectional_attention": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "vocab_size": "vocab_size",
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def settings(config: Said) -> dict[str, Any]:
    """Settings of `Model` by their keys, such as `decoder.kv_heads`, that a `config.json` says.

    Raises:
      ValueError: it is of another type of model, or says what is not computed here, or what has no
        meaning; all is named.
    """
    try:
        found = _settings(config)
        faults = [*field_faults(Config(model=_with(Model(), found))).values()]
    except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its config.json is damaged ({type(error).__name__}: {error})") from error
    if faults:
        raise ValueError(f"its config.json gives {'; '.join(faults)}")
    return found


def _settings(config: Said) -> dict[str, Any]:
    kind = KINDS.get(config.get("model_type", ""))
    if kind is None:
        raise ValueError(
            f"model_type = {config.get('model_type')}: must be one of {', '.join(KINDS)}"
        )
    said = {"rms_norm_eps": 1e-6, "rope_theta": 1e4, **kind.silent, **config}
    found = {name: config[key] for name, key in SIZES.items() if key in config}
    details: dict[str, Any] = dict(kind.settings)
    faults = [
        f"{key} = {said[key]}: must be {values[0]}"
        for key, values in _COMPUTED.items()
        if said.get(key, values[0]) not in values
    ]
    act = ACTIVATIONS[details["activation"]]
    if said.get(kind.activation, act) != act:
        faults.append(f"{kind.activation} = {said[kind.activation]}: must be {act}")
    heads = said.get("num_attention_heads")
    details["kv_heads"] = said.get("num_key_value_heads") or heads
    details["head_dim"] = said.get("head_dim") or said.get("hidden_size", 0) // (heads or 1)
    details["norm_eps"] = said["rms_norm_eps"]
    details["tied"] = said.get("tie_word_embeddings", False)
    if "max_position_embeddings" in said:
        details["positions"] = said["max_position_embeddings"]
    details |= {"query_scale": None, "window": None}
    if kind is KINDS[GEMMA3]:
        details["query_scale"] = float(said["query_pre_attn_scalar"])
        details["window"] = said["sliding_window"]
        details["global_every"], wrong = _global_every(said)
        faults += wrong
    scaled, wrong = _rope(said, kind is KINDS[GEMMA3])
    if faults := faults + wrong:
        raise ValueError(f"its config.json says {'; '.join(faults)}")
    return found | {f"decoder.{name}": value for name, value in (details | scaled).items()}


def applied(model: Model, config: Said) -> Model:
    """`model` with what a `config.json` says, as `settings` has it; raises as that does."""
    return _with(model, settings(config))


def _with(model: Model, found: Said) -> Model:
    given = {key: value for key, value in found.items() if "." not in key}
    details = {key.partition(".")[2]: value for key, value in found.items() if "." in key}
    shape = Decoder(**details)
    return dataclasses.replace(model, family="decoder", size=None, decoder=shape, **given)


def _global_every(said: Said) -> tuple[int | None, list[str]]:
    """Every how many layers one sees all, by the list of their types or by their pattern."""
    types = said.get("layer_types")
    if types is None:
        return said.get("sliding_window_pattern") or 6, []
    wide = [number for number, name in enumerate(types, 1) if name == GLOBAL]
    every = wide[0] if wide else None
    expected = [*range(every, len(types) + 1, every)] if every else []
    if wide != expected or {*types} - {LOCAL, GLOBAL}:
        return None, [f"layer_types = {types}: must be {GLOBAL} at equal distances"]
    return every, []


def _rope(said: Said, windowed: bool) -> tuple[dict[str, Any], list[str]]:
    """Settings of rotary positions, by Transformers 4 or 5, and what is not computed here."""
    given: Any = said.get("rope_parameters") or {}
    older: Any = said.get("rope_scaling") or {}
    scaling: dict[str, Any] = {**older, **given.get(GLOBAL, given)}
    base: Any = scaling.get("rope_theta", said["rope_theta"])
    found: dict[str, Any] = {"rope_base": float(base)}
    faults = []
    if windowed:
        local: Any = given.get(LOCAL, {})
        own: Any = local.get("rope_theta", said["rope_local_base_freq"])
        found["rope_local_base"] = float(own)
        if local.get("rope_type", "default") != "default":
            faults.append(f"rope_parameters of {LOCAL} = {local}: must be unscaled")
    name = scaling.get("rope_type", scaling.get("type", "default"))
    if name == "default":
        return found | {"rope_scaling": "none"}, faults
    if name not in ("linear", "llama3"):
        return found, [*faults, f"rope_type = {name}: must be default, linear or llama3"]
    found |= {"rope_scaling": name, "rope_factor": float(scaling["factor"])}
    if name == "llama3":
        found["rope_low_factor"] = float(scaling["low_freq_factor"])
        found["rope_high_factor"] = float(scaling["high_freq_factor"])
        found["rope_original"] = scaling["original_max_position_embeddings"]
    return found, faults


def differences(config: Said, model: Model) -> list[str]:
    """A line for each setting that a `config.json` says otherwise and no array would show."""
    if "model_type" not in config:  # weights of ours, which the sizes alone describe
        return []
    try:
        wanted = settings(config)
    except ValueError as error:
        return [str(error)]
    own, depth = filled(model), model.resolved().depth or 0
    implied = {"query_scale": own.head_dim, "rope_local_base": own.rope_base}

    def meant(field: str, value: Any) -> Any:
        # A layer that is never reached is none.
        if field == "global_every" and value is not None and value > depth:
            return None
        return implied.get(field) if value is None else value

    # Sizes are those of the arrays, which are compared for themselves.
    details = {k.partition(".")[2]: v for k, v in wanted.items() if k.startswith("decoder.")}
    return [
        f"its config.json says model.decoder.{field} = {show(value)}, the model has"
        f" {show(getattr(own, field))}"
        for field, value in details.items()
        if field != "positions" and meant(field, getattr(own, field)) != meant(field, value)
    ]
