"""Our parameters as files that other programs read; what `weights.read` reads back, bit for bit."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pbr_jax.files import plain_path, write_json
from pbr_jax.weights import files, layout
from pbr_jax.weights.beside import ARCHITECTURE, CONFIG
from pbr_jax.weights.formats import Format, published
from pbr_jax.weights.layout import Arrays, Leaves, Line, Sizes
from pbr_jax.weights.preparation import Normalization

LARGEST_FILE = 2 * 10**9
"""Bytes of a file of safetensors, above which the arrays of a model are written to several."""


def to_arrays(form: Format, params: Mapping[str, Any], sizes: Sizes) -> Arrays:
    """Our tree under the names of a format."""
    leaves = layout.flatten(params)
    return {
        line.theirs: layout.to_theirs(line, np.asarray(leaves[line.ours]), sizes)
        for line in form.table(sizes["depth"])
        if line.ours in leaves
    }


def save(
    path: str | os.PathLike[str],
    container: str,
    family: str,
    params: Mapping[str, Any],
    sizes: Sizes,
    class_names: Sequence[str],
    normalization: Normalization | None = None,
    described: Mapping[str, Any] | None = None,
) -> None:
    """Weights in the layout of a family whose files are of that kind.

    Args:
      path: of the file ("npz"), or of a directory ("safetensors" for `from_pretrained` of Hugging
        Face's Transformers, "orbax").
      container: "npz", "safetensors" or "orbax".
      family, params, sizes: of the model; `Published.sizes` of the family gives the last.
      class_names: label -> name.
      normalization: of the images that the model has seen; None where it reads none.
      described: what `config.json` says beside what the arrays tell, `Published.described`.

    Raises:
      ValueError: the family has no such layout, or the layout cannot hold this model.
    """
    if container == "orbax":
        save_orbax(path, family, params, sizes, class_names, normalization)
        return
    leaves = layout.flatten(params).keys()
    formats = published(family).formats
    known = [form for form in formats if form.container == container]
    if not known:
        there = ", ".join([*dict.fromkeys(form.container for form in formats), "orbax"])
        raise ValueError(f"--to {container}: is no layout of a {family}; there are {there}")
    if container == "npz":
        save_npz(path, family, params, sizes)
    else:
        # Of layouts that are alike, the one that has all that the model has.
        tables = [{line.ours for line in form.table(sizes["depth"])} for form in known]
        fitting = [f for f, ours in zip(known, tables, strict=True) if leaves <= ours]
        form = (fitting or known)[0]
        # Before anything is written: this fails where the layout cannot hold the model.
        companions = form.companions(params, sizes, normalization or Normalization())
        config = _classes(class_names) | companions.get(CONFIG, {}) | dict(described or {})
        _save_huggingface(Path(path), form, params, sizes, {**companions, CONFIG: config})


def save_npz(
    path: str | os.PathLike[str],
    family: str,
    params: Mapping[str, Any],
    sizes: Sizes,
    dtype: npt.DTypeLike = np.float32,
    compressed: bool = False,
) -> None:
    """One file in Google's layout. Compressing takes long and saves little."""
    form = next(form for form in published(family).formats if form.container == "npz")
    arrays = to_arrays(form, params, sizes)
    typed = {name: array.astype(dtype, copy=False) for name, array in arrays.items()}
    write = np.savez_compressed if compressed else np.savez
    with Path(path).open("wb") as file:  # a file, since a path would be given another ending
        write(file, allow_pickle=False, **typed)


def _save_huggingface(
    directory: Path,
    form: Format,
    params: Mapping[str, Any],
    sizes: Sizes,
    companions: Mapping[str, Any],
) -> None:
    """Files of arrays, `config.json`, and what else there is."""
    from safetensors.numpy import save_file

    leaves = layout.flatten(params)
    lines = [line for line in form.table(sizes["depth"]) if line.ours in leaves]
    told = {key: tell(sizes) for key, tell in form.told.items()}
    # That of most of the parameters.
    dtype = max(leaves.values(), key=lambda leaf: leaf.size).dtype
    common = {**told, **form.computed, "torch_dtype": str(dtype)}
    companions = {**companions, CONFIG: common | companions[CONFIG]}
    directory.mkdir(parents=True, exist_ok=True)
    # A file at a time is made and written, so that no second copy of a large model is held.
    shards = _shards(lines, leaves, sizes)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = files.SAFETENSORS
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {
            line.theirs: np.ascontiguousarray(
                layout.to_theirs(line, np.asarray(leaves[line.ours]), sizes)
            )
            for line in shard
        }
        # Hugging Face's loaders want the mark of PyTorch's layout.
        save_file(arrays, directory / name, {"format": "pt"})
        where |= dict.fromkeys(arrays, name)
    if len(shards) > 1:
        size = sum(_num_bytes(line, leaves, sizes) for line in lines)
        index = {"metadata": {"total_size": size}, "weight_map": where}
        companions = {**companions, files.INDEX: index}
    for name, content in companions.items():
        write_json(directory / name, content)


def _shards(lines: Sequence[Line], leaves: Leaves, sizes: Sizes) -> list[list[Line]]:
    """The lines, in their order, in files of at most `LARGEST_FILE` bytes or of one array."""
    shards: list[list[Line]] = [[]]
    room = LARGEST_FILE
    for line in lines:
        size = _num_bytes(line, leaves, sizes)
        if size > room and shards[-1]:
            shards.append([])
            room = LARGEST_FILE
        shards[-1].append(line)
        room -= size
    return shards


def _num_bytes(line: Line, leaves: Leaves, sizes: Sizes) -> int:
    leaf = leaves[line.ours]
    return math.prod(layout.shape_of(line, leaf, sizes)) * leaf.dtype.itemsize


def save_orbax(
    directory: str | os.PathLike[str],
    family: str,
    params: Mapping[str, Any],
    sizes: Sizes,
    class_names: Sequence[str] = (),
    normalization: Normalization | None = None,
) -> None:
    """Our tree as an Orbax checkpoint `params`, with a description of the model beside it."""
    import orbax.checkpoint as ocp

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {path: np.asarray(leaf) for path, leaf in layout.flatten(params).items()}
    with plain_path(directory) as plain, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(plain / files.PARAMS, layout.unflatten(arrays))
    described = {"family": family, "sizes": dict(sizes)} | _classes(class_names)
    described["files"] = files.digests(directory / files.PARAMS)
    if normalization is not None:
        described |= {"image_mean": normalization.mean, "image_std": normalization.std}
    write_json(directory / ARCHITECTURE, described)


def _classes(names: Sequence[str]) -> dict[str, Any]:
    """Names of the classes, as `beside.class_names` reads them; nothing of a model without any."""
    return (
        {}
        if not names
        else {
            "id2label": {str(label): name for label, name in enumerate(names)},
            "label2id": {name: label for label, name in enumerate(names)},
        }
    )
