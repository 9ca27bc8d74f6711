"""ViT weights in the `.npz` files that Google publishes (`ViT-B_16.npz`, AugReg), both ways.

Their names and shapes, with `i` the block:

    embedding/{kernel [p, p, C, D], bias}      cls [1, 1, D]
    Transformer/posembed_input/pos_embedding [1, N, D]
    Transformer/encoderblock_i/LayerNorm_0, LayerNorm_2 /{scale, bias}
    Transformer/encoderblock_i/MlpBlock_3/{Dense_0, Dense_1}/{kernel, bias}
    Transformer/encoderblock_i/MultiHeadDotProductAttention_1/
        {query, key, value}/{kernel [D, H, head], bias [H, head]}, out/{kernel [H, head, D], bias}
    Transformer/encoder_norm/{scale, bias}     head/{kernel, bias}
"""

import functools
import pathlib
import zipfile
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

Arrays = dict[str, np.ndarray]
_BLOCK = "Transformer/encoderblock_{}/"
_ATTENTION = "MultiHeadDotProductAttention_1/"
# The representation layer of ImageNet-21k pretraining, which fine-tuning drops.
_IGNORED = ("pre_logits/",)


class Loaded(NamedTuple):
    """Parameters of our tree, NumPy float32, and what a reader should know about the conversion."""

    params: dict[str, Any]
    notes: list[str]


def load(path: str | pathlib.Path, like: dict[str, Any], num_heads: int) -> Loaded:
    """Reads weights into the shape of `like`.

    Args:
      path: an `.npz` file.
      like: our parameter tree, arrays or shapes. A head that the file lacks, or has for another
        number of classes, starts at zero; all else comes from the file.
      num_heads: H of the model.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no `.npz`, or keys are missing, superfluous or misshapen: all of them
        are listed.
    """
    arrays = _read(pathlib.Path(path))
    theirs = jax.eval_shape(functools.partial(to_npz, num_heads=num_heads), like)
    classes = theirs["head/bias"].shape[0]
    notes = []
    head = arrays.get("head/bias")
    if head is None or head.shape[0] != classes:
        found = "no head" if head is None else f"a head of {head.shape[0]} classes"
        notes.append(f"{path}: {found}; the head of {classes} classes starts at zero")
        arrays |= {
            f"head/{n}": np.zeros(theirs[f"head/{n}"].shape, np.float32) for n in ("kernel", "bias")
        }
    _check(path, arrays, theirs)
    return Loaded(_from_npz(arrays, like), notes)


def save(
    path: str | pathlib.Path,
    params: dict[str, Any],
    num_heads: int,
    dtype: npt.DTypeLike = np.float32,
) -> None:
    """Writes our parameter tree as an `.npz` of the published layout; the inverse of `load`."""
    arrays = to_npz(jax.tree.map(np.asarray, params), num_heads)
    np.savez_compressed(path, **{name: array.astype(dtype) for name, array in arrays.items()})


def to_npz(params: dict[str, Any], num_heads: int) -> dict[str, Any]:
    """Our tree under the published names; works on NumPy and on traced arrays."""
    blocks = params["blocks"]
    width = params["head"]["kernel"].shape[0]
    head = width // num_heads
    embedding = params["embedding"]["kernel"]
    out = {
        "embedding/bias": params["embedding"]["bias"],
        "Transformer/posembed_input/pos_embedding": params["pos_embedding"],
        "Transformer/encoder_norm/scale": params["norm"]["scale"],
        "Transformer/encoder_norm/bias": params["norm"]["bias"],
        "head/kernel": params["head"]["kernel"],
        "head/bias": params["head"]["bias"],
    }
    if "cls" in params:
        out["cls"] = params["cls"]
    patch, channels = _patch_and_channels(embedding.shape[0])
    out["embedding/kernel"] = embedding.reshape(patch, patch, channels, width)
    for i in range(blocks["norm1"]["scale"].shape[0]):
        name = _BLOCK.format(i)
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            out |= {f"{name}{theirs}/{n}": blocks[ours][n][i] for n in ("scale", "bias")}
        for theirs, ours in (("MlpBlock_3/Dense_0", "fc1"), ("MlpBlock_3/Dense_1", "fc2")):
            out |= {f"{name}{theirs}/{n}": blocks[ours][n][i] for n in ("kernel", "bias")}
        kernel = blocks["qkv"]["kernel"][i].reshape(width, 3, num_heads, head)
        bias = blocks["qkv"]["bias"][i].reshape(3, num_heads, head)
        for j, part in enumerate(("query", "key", "value")):
            out[f"{name}{_ATTENTION}{part}/kernel"] = kernel[:, j]
            out[f"{name}{_ATTENTION}{part}/bias"] = bias[j]
        out[f"{name}{_ATTENTION}out/kernel"] = blocks["proj"]["kernel"][i].reshape(
            num_heads, head, width
        )
        out[f"{name}{_ATTENTION}out/bias"] = blocks["proj"]["bias"][i]
    return out


def _patch_and_channels(size: int) -> tuple[int, int]:
    """`size = patch^2 * channels` with 3 channels where that works, else 1."""
    for channels in (3, 1):
        patch = round((size / channels) ** 0.5)
        if patch * patch * channels == size:
            return patch, channels
    raise ValueError(
        f"embedding kernel has {size} inputs: must be patch * patch * 3, or patch * patch for grey"
        " images"
    )


def _from_npz(arrays: Arrays, like: dict[str, Any]) -> dict[str, Any]:
    depth, width = like["blocks"]["norm1"]["scale"].shape

    def stack(*names: str) -> np.ndarray:
        """Blocks stacked; several names side by side along the output axis."""
        per_block = []
        for i in range(depth):
            parts = [arrays[_BLOCK.format(i) + name] for name in names]
            if names[0].endswith("kernel"):
                fan_in = parts[0].shape[0] if "out/" not in names[0] else width
                parts = [p.reshape(fan_in, -1) for p in parts]
            else:
                parts = [p.reshape(-1) for p in parts]
            per_block.append(np.concatenate(parts, axis=-1))
        return np.stack(per_block)

    def layer(*names: str) -> dict[str, np.ndarray]:
        return {leaf: stack(*(f"{name}/{leaf}" for name in names)) for leaf in ("kernel", "bias")}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {leaf: stack(f"{name}/{leaf}") for leaf in ("scale", "bias")}

    params = {
        "embedding": {
            "kernel": arrays["embedding/kernel"].reshape(-1, width),
            "bias": arrays["embedding/bias"],
        },
        "pos_embedding": arrays["Transformer/posembed_input/pos_embedding"],
        "norm": {n: arrays[f"Transformer/encoder_norm/{n}"] for n in ("scale", "bias")},
        "head": {n: arrays[f"head/{n}"] for n in ("kernel", "bias")},
        "blocks": {
            "norm1": norm("LayerNorm_0"),
            "norm2": norm("LayerNorm_2"),
            "qkv": layer(*(f"{_ATTENTION}{part}" for part in ("query", "key", "value"))),
            "proj": layer(f"{_ATTENTION}out"),
            "fc1": layer("MlpBlock_3/Dense_0"),
            "fc2": layer("MlpBlock_3/Dense_1"),
        },
    }
    if "cls" in like:
        params["cls"] = arrays["cls"]
    return params


def _read(path: pathlib.Path) -> Arrays:
    if not path.is_file():
        raise FileNotFoundError(
            f"weights {path}: no such file. Nothing is downloaded for you: ViT weights are at"
            " https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz; or train from"
            " random weights with --config.model.weights=none"
        )
    try:
        zipfile.ZipFile(path).close()  # np.load also takes .npy files and pickles
        with np.load(path) as file:
            return {name: file[name].astype(np.float32) for name in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError) as error:
        raise ValueError(
            f"weights {path}: not a readable .npz file ({error}); is the download complete?"
        ) from error


def _check(path: Any, arrays: Arrays, expected: dict[str, Any]) -> None:
    """Lists every key that does not fit, at once."""
    missing = sorted(expected.keys() - arrays.keys())
    extra = sorted(n for n in arrays.keys() - expected.keys() if not n.startswith(_IGNORED))
    wrong = [
        f"{name} is {arrays[name].shape}, the model wants {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & arrays.keys())
        if arrays[name].shape != tuple(expected[name].shape)
    ]
    faults = [f"missing: {n}" for n in missing] + [f"not in the model: {n}" for n in extra] + wrong
    if faults:
        raise ValueError(f"weights {path} do not fit the model:\n  " + "\n  ".join(faults))
