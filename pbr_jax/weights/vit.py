"""Public weights of ViT.

- Google's, https://github.com/google-research/vision_transformer: names of its Flax modules.
  Kernels are `[in, out]`, those of attention `[width, heads, head_dim]`.
- Hugging Face's, https://github.com/huggingface/transformers: names of its PyTorch modules. Models
  without a head lack the prefix `vit.`.
"""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from jaxtyping import Float

from pbr_jax.configs.common import Model
from pbr_jax.families.vit import num_tokens
from pbr_jax.weights import preparation
from pbr_jax.weights.beside import CONFIG
from pbr_jax.weights.formats import TOLD, Format, Published
from pbr_jax.weights.layout import Arrays, Leaves, Line, Sizes, model_sizes
from pbr_jax.weights.preparation import Normalization
from pbr_jax.weights.torch_names import torch_block, torch_linear, torch_norm


def google_vit(depth: int) -> list[Line]:
    """`ViT-B_16.npz` of ImageNet-21k, AugReg and what was fine-tuned from them."""

    def norm(theirs: str, ours: str, block: int | None = None) -> list[Line]:
        return [Line(f"{theirs}/{n}", f"{ours}/{n}", "width", block) for n in ("scale", "bias")]

    def linear(theirs: str, ours: str, kernel: str, bias: str, *where) -> list[Line]:
        return [
            Line(f"{theirs}/kernel", f"{ours}/kernel", kernel, *where),
            Line(f"{theirs}/bias", f"{ours}/bias", bias, *where),
        ]

    lines = [
        Line("cls", "cls", "1 1 width"),
        *linear("embedding", "embedding", "patch patch channels width", "width"),
        Line("Transformer/posembed_input/pos_embedding", "pos_embedding", "1 positions width"),
        *norm("Transformer/encoder_norm", "norm"),
        *linear("head", "head", "width classes", "classes"),
    ]
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        lines += norm(f"{block}/LayerNorm_0", "blocks/norm1", i)
        axes = ("width heads head_dim", "heads head_dim")
        for part, name in enumerate(("query", "key", "value")):
            lines += linear(f"{attention}/{name}", "blocks/qkv", *axes, i, part, 3)
        lines += linear(f"{attention}/out", "blocks/proj", "heads head_dim width", "width", i)
        lines += norm(f"{block}/LayerNorm_2", "blocks/norm2", i)
        lines += linear(f"{block}/MlpBlock_3/Dense_0", "blocks/fc1", "width mlp_dim", "mlp_dim", i)
        lines += linear(f"{block}/MlpBlock_3/Dense_1", "blocks/fc2", "mlp_dim width", "width", i)
    return lines


def huggingface_vit(depth: int) -> list[Line]:
    """`ViTForImageClassification`."""
    projection = "vit.embeddings.patch_embeddings.projection"
    convolution = "patch patch channels width -> width channels patch patch"
    lines = [
        Line("vit.embeddings.cls_token", "cls", "1 1 width"),
        Line("vit.embeddings.position_embeddings", "pos_embedding", "1 positions width"),
        Line(f"{projection}.weight", "embedding/kernel", convolution),
        Line(f"{projection}.bias", "embedding/bias", "width"),
        *torch_norm("vit.layernorm", "norm"),
        *torch_linear("classifier", "head", "width classes"),
    ]
    for i in range(depth):
        layer = f"vit.encoder.layer.{i}"
        lines += torch_norm(f"{layer}.layernorm_before", "blocks/norm1", i)
        lines += torch_norm(f"{layer}.layernorm_after", "blocks/norm2", i)
        lines += torch_block(layer, "attention.attention", i)
    return lines


def _side(sizes: Sizes) -> int:
    """Pixels along an image; a class token more is no patch more."""
    return sizes["patch"] * math.isqrt(sizes["positions"])


def _companions(
    params: Mapping[str, Any], sizes: Sizes, normalization: Normalization
) -> dict[str, Any]:
    """`config.json`, and how images are prepared."""
    if "cls" not in params:
        raise ValueError(
            "model.pool = mean: Hugging Face's ViT classifies by the class token; export to npz"
        )
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
    }
    prepared = preparation.written(normalization, _side(sizes), sizes["channels"])
    return {CONFIG: config, preparation.PREPROCESSOR: prepared}


GOOGLE_VIT = Format(
    "ViT in Google's layout",
    "vit",
    "npz",
    google_vit,
    "encoderblock_",
    unused={r"pre_logits/": "the representation layer of pretraining"},
)
HUGGINGFACE_VIT = Format(
    "ViT in Hugging Face's layout",
    "vit",
    "safetensors",
    huggingface_vit,
    r"encoder\.layer\.",
    prefix="vit.",
    unused={
        r"(vit\.)?pooler\.": "the pooler, which classification does not use",
        r"(vit\.)?embeddings\.mask_token": "the mask token of pretraining",
        r"decoder\.": "the decoder of pretraining",
    },
    told=TOLD
    | {
        "image_size": _side,
        "patch_size": itemgetter("patch"),
        "num_channels": itemgetter("channels"),
    },
    # The epsilon is that of `pbr_jax.models.vit`.
    computed={"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    related={
        "vit_mae": "a ViT-MAE, pretrained without classes; its authors fine-tune it with"
        " --config.model.pool=mean",
        "vit_msn": "a ViT-MSN, pretrained without classes",
    },
    companions=_companions,
)


def _sizes(model: Model) -> dict[str, int]:
    own = {"positions": num_tokens(model), "patch": model.patch, "channels": model.channels}
    return model_sizes(model) | own


def _label(size: str, sizes: Sizes) -> str:
    return f"ViT-{size}/{sizes.get('patch')}"


def _settings(
    arrays: Arrays, sizes: Sizes, model: Model, config: Mapping[str, Any]
) -> dict[str, Any]:
    wanted: dict[str, Any] = {n: sizes[n] for n in ("patch", "channels") if n in sizes}
    # Another patch need not divide the image that the model has.
    if "positions" in sizes and model.image_size % sizes.get("patch", 1):
        wanted["image_size"] = _side(sizes)
    return wanted if _class_tokens(arrays) else wanted | {"pool": "mean"}


def _class_tokens(arrays: Arrays) -> list[str]:
    """Names of the class token: Google's and ours, or Hugging Face's."""
    return [name for name in ("cls", "vit.embeddings.cls_token") if name in arrays]


def _fit_positions(arrays: Arrays, lines: Sequence[Line], like: Leaves, sizes: Sizes) -> list[str]:
    """Resizes the grid of positions; drops that of the class token where the model has none."""
    name = next(line.theirs for line in lines if line.ours == "pos_embedding")
    if name not in arrays:
        return []
    positions, wanted, notes = arrays[name], sizes["positions"], []
    if positions.ndim != 3 or len(positions) != 1:
        return []  # a misshapen array is a fault that the check names
    has_class_token, class_token = bool(_class_tokens(arrays)), "cls" in like
    if not class_token:
        for cls in _class_tokens(arrays):
            del arrays[cls]
            positions = arrays[name] = positions[:, 1:]
            notes.append("the class token is not used: the head reads the mean of all tokens")
    # No patches, or a class token that is missing, are such faults too.
    found = positions.shape[1]
    if found != wanted and found > class_token and (has_class_token or not class_token):
        arrays[name] = _resize_grid(positions, wanted, class_token)
        sides = (round((n - class_token) ** 0.5) for n in (found, wanted))
        notes.append("positions resized from a grid of {0} x {0} to {1} x {1}".format(*sides))
    return notes


def _resize_grid(
    positions: Float[np.ndarray, "1 n d"], tokens: int, class_token: bool
) -> Float[np.ndarray, "1 m d"]:
    """A square grid of positions `[1, N, D]` for another image size, `[1, tokens, D]`.

    Bilinear, with the corners of both grids on each other, as the reference's
    `scipy.ndimage.zoom(order=1)` (vit_jax/checkpoint.py, `interpolate_posembed`). The position of
    the class token, which comes first where there is one, stays.

    Raises:
      ValueError: one of the grids is not square.
    """
    first, grid = positions[:, :class_token], positions[0, class_token:]
    old, new = math.isqrt(len(grid)), math.isqrt(tokens - class_token)
    for number, side in ((len(grid), old), (tokens - class_token, new)):
        if side * side != number:
            raise ValueError(f"{number} patches are no square grid, so positions cannot be resized")
    # Along each axis, every new place lies between two old ones and takes its share of both.
    grid = grid.reshape(old, old, -1).astype(np.float32)
    for axis in (0, 1):
        place = np.linspace(0, old - 1, new, dtype=np.float64)
        below = np.minimum(place.astype(int), max(old - 2, 0))
        above = np.minimum(below + 1, old - 1)
        share = (place - below).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        grid = grid.take(below, axis) * (1 - share) + grid.take(above, axis) * share
    return np.concatenate([first.astype(np.float32), grid.reshape(1, new * new, -1)], axis=1)


PUBLISHED = Published((GOOGLE_VIT, HUGGINGFACE_VIT), _sizes, _label, _settings, _fit_positions)
