"""Public weights of BERT: Hugging Face's, https://github.com/huggingface/transformers.

The names are those of its PyTorch modules. Models without a head lack the prefix `bert.`; files
converted from TensorFlow call the parameters of LayerNorm `gamma` and `beta`.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from pbr_jax.configs.common import Model
from pbr_jax.weights.beside import CONFIG
from pbr_jax.weights.formats import TOLD, Format, Published
from pbr_jax.weights.layout import Arrays, Leaves, Line, Sizes, model_sizes
from pbr_jax.weights.preparation import Normalization
from pbr_jax.weights.torch_names import torch_block, torch_linear, torch_norm

_NAMES = {"B": "base", "L": "large"}


def huggingface_bert(depth: int) -> list[Line]:
    """`BertForSequenceClassification`.

    Theirs normalises at the end of each half of a block, ours at its beginning: the norm after a
    block's MLP is the first norm of the next block, and the last one our final norm.
    """
    embeddings = "bert.embeddings"
    lines = [
        Line(f"{embeddings}.word_embeddings.weight", "embedding/word", "vocab width"),
        Line(f"{embeddings}.position_embeddings.weight", "embedding/position", "positions width"),
        Line(f"{embeddings}.token_type_embeddings.weight", "embedding/type", "types width"),
        *torch_norm(f"{embeddings}.LayerNorm", "blocks/norm1", 0),
        *torch_norm(f"bert.encoder.layer.{depth - 1}.output.LayerNorm", "norm"),
        *torch_linear("bert.pooler.dense", "pooler", "width out"),
        *torch_linear("classifier", "head", "width classes"),
    ]
    for i in range(depth):
        layer = f"bert.encoder.layer.{i}"
        if i + 1 < depth:
            lines += torch_norm(f"{layer}.output.LayerNorm", "blocks/norm1", i + 1)
        lines += torch_norm(f"{layer}.attention.output.LayerNorm", "blocks/norm2", i)
        lines += torch_block(layer, "attention.self", i)
    return lines


def _companions(
    params: Mapping[str, Any], sizes: Sizes, normalization: Normalization
) -> dict[str, Any]:
    architectures = ["BertForSequenceClassification"]
    return {CONFIG: {"architectures": architectures, "model_type": "bert"}}


HUGGINGFACE_BERT = Format(
    "BERT in Hugging Face's layout",
    "bert",
    "safetensors",
    huggingface_bert,
    r"encoder\.layer\.",
    prefix="bert.",
    renamed=((".gamma", ".weight"), (".beta", ".bias")),
    unused={
        r"cls\.": "the heads of pretraining",
        r"qa_outputs\.": "the head of another task",
        r"(bert\.)?embeddings\.(position_ids|token_type_ids)": "buffers without parameters",
    },
    told=TOLD
    | {
        "vocab_size": itemgetter("vocab"),
        "max_position_embeddings": itemgetter("positions"),
        "type_vocab_size": itemgetter("types"),
    },
    computed={  # the epsilon is that of `pbr_jax.models.bert`
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
        "is_decoder": False,
    },
    companions=_companions,
)


def _sizes(model: Model) -> dict[str, int]:
    own = {"positions": model.max_length, "vocab": model.vocab_size, "types": 2}
    return model_sizes(model) | own


def _label(size: str, sizes: Sizes) -> str | None:
    return f"BERT-{_NAMES[size]}" if size in _NAMES else None


def _settings(
    arrays: Arrays, sizes: Sizes, model: Model, config: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "vocab_size": sizes.get("vocab", model.vocab_size),
        "max_length": min(sizes.get("positions", model.max_length), model.max_length),
    }


def _fit_positions(arrays: Arrays, lines: Sequence[Line], like: Leaves, sizes: Sizes) -> list[str]:
    """Cuts the positions to the model's length."""
    name = next(line.theirs for line in lines if line.ours == "embedding/position")
    found, wanted = sum(arrays[name].shape[:1]) if name in arrays else 0, sizes["positions"]
    if found <= wanted:  # too few, or none, are a fault that the check names
        return []
    arrays[name] = arrays[name][:wanted]
    return [f"the first {wanted} of {found} positions are used"]


PUBLISHED = Published((HUGGINGFACE_BERT,), _sizes, _label, _settings, _fit_positions)
