"""Our parameters as files that other programs read; what `weights.read` reads back, bit for bit."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pbr_jax.weights import files, layout
from pbr_jax.weights.formats import GOOGLE_VIT, HUGGINGFACE_BERT, HUGGINGFACE_VIT, Family, Format
from pbr_jax.weights.layout import Arrays, Sizes
from pbr_jax.weights.read import ARCHITECTURE

_HUGGINGFACE = {"vit": HUGGINGFACE_VIT, "bert": HUGGINGFACE_BERT}


def to_arrays(form: Format, params: Mapping[str, Any], sizes: Sizes) -> Arrays:
    """Our tree under the names of a format."""
    leaves = layout.flatten(params)
    return {
        line.theirs: layout.to_theirs(line, np.asarray(leaves[line.ours]), sizes)
        for line in form.table(sizes["depth"])
        if line.ours in leaves
    }


def save_npz(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    sizes: Sizes,
    dtype: npt.DTypeLike = np.float32,
    compressed: bool = False,
) -> None:
    """A ViT as an `.npz` in Google's layout. Compressing takes long and saves little."""
    arrays = to_arrays(GOOGLE_VIT, params, sizes)
    typed = {name: array.astype(dtype, copy=False) for name, array in arrays.items()}
    files.write_npz(path, typed, compressed)


def save_huggingface(
    directory: str | os.PathLike[str],
    family: Family,
    params: Mapping[str, Any],
    sizes: Sizes,
    class_names: Sequence[str],
) -> None:
    """A directory that `from_pretrained` of Hugging Face's Transformers takes.

    It holds `model.safetensors`, `config.json` with the names of the classes, and for a ViT
    `preprocessor_config.json`.

    Raises:
      ValueError: a ViT that reads the mean of all tokens, which theirs cannot.
    """
    if family == "vit" and "cls" not in params:
        raise ValueError(
            "model.pool = mean: Hugging Face's ViT classifies by the class token; export to npz"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = to_arrays(_HUGGINGFACE[family], params, sizes)
    files.write_safetensors(directory / files.SAFETENSORS, arrays)
    _write_json(directory / "config.json", _config(family, sizes, class_names))
    if family == "vit":
        _write_json(directory / "preprocessor_config.json", _preprocessor(sizes))


def save_orbax(
    directory: str | os.PathLike[str], family: Family, params: Mapping[str, Any], sizes: Sizes
) -> None:
    """Our tree as an Orbax checkpoint `params`, with a description of the model beside it."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {path: np.asarray(leaf) for path, leaf in layout.flatten(params).items()}
    files.write_orbax(directory, arrays)
    _write_json(directory / ARCHITECTURE, {"family": family, "sizes": dict(sizes)})


def _config(family: Family, sizes: Sizes, class_names: Sequence[str]) -> dict[str, Any]:
    """`config.json` of Hugging Face; the epsilons are those of `pbr_jax.models`."""
    common = {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp_dim"],
        "hidden_act": "gelu",
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
        "torch_dtype": "float32",
    }
    if family == "vit":
        return common | {
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "layer_norm_eps": 1e-6,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "image_size": _image_size(sizes),
            "patch_size": sizes["patch"],
            "num_channels": sizes["channels"],
            "qkv_bias": True,
        }
    return common | {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "layer_norm_eps": 1e-12,
        "vocab_size": sizes["vocab"],
        "max_position_embeddings": sizes["positions"],
        "type_vocab_size": sizes["types"],
    }


def _preprocessor(sizes: Sizes) -> dict[str, Any]:
    """What evaluation does to an image here: resize to a square, map [0, 255] to [-1, 1]."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": _image_size(sizes), "width": _image_size(sizes)},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * sizes["channels"],
        "image_std": [0.5] * sizes["channels"],
    }


def _image_size(sizes: Sizes) -> int:
    return sizes["patch"] * math.isqrt(sizes["positions"] - 1)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
