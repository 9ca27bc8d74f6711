"""Our parameters as files that other programs read; what `weights.read` reads back, bit for bit."""

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
from pbr_jax.weights.layout import Arrays, Sizes
from pbr_jax.weights.preparation import Normalization


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
) -> None:
    """Weights in the layout of a family whose files are of that kind.

    Args:
      path: of the file ("npz"), or of a directory ("safetensors" for `from_pretrained` of Hugging
        Face's Transformers, "orbax").
      container: "npz", "safetensors" or "orbax".
      family, params, sizes: of the model; `Published.sizes` of the family gives the last.
      class_names: label -> name.
      normalization: of the images that the model has seen; None where it reads none.

    Raises:
      ValueError: the family has no such layout, or the layout cannot hold this model.
    """
    if container == "orbax":
        save_orbax(path, family, params, sizes, class_names, normalization)
        return
    known = {form.container: form for form in published(family).formats}
    if container not in known:
        there = ", ".join([*known, "orbax"])
        raise ValueError(f"--to {container}: is no layout of a {family}; there are {there}")
    if container == "npz":
        save_npz(path, family, params, sizes)
    else:
        form = known[container]
        # Before anything is written: this fails where the layout cannot hold the model.
        companions = form.companions(params, sizes, normalization or Normalization())
        _save_huggingface(Path(path), form, params, sizes, class_names, companions)


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
    class_names: Sequence[str],
    companions: Mapping[str, Any],
) -> None:
    """`model.safetensors`, `config.json` with the names of the classes, and what else there is."""
    from safetensors.numpy import save_file

    told = {key: tell(sizes) for key, tell in form.told.items()}
    common = {**told, **form.computed, **_classes(class_names), "torch_dtype": "float32"}
    companions = {**companions, CONFIG: common | companions[CONFIG]}
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {n: np.ascontiguousarray(a) for n, a in to_arrays(form, params, sizes).items()}
    # Hugging Face's loaders want the mark of PyTorch's layout.
    save_file(arrays, directory / files.SAFETENSORS, {"format": "pt"})
    for name, content in companions.items():
        write_json(directory / name, content)


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
    described = description(family, sizes, class_names, normalization)
    described["files"] = files.digests(directory / files.PARAMS)
    write_json(directory / ARCHITECTURE, described)


def description(
    family: str,
    sizes: Sizes,
    class_names: Sequence[str],
    normalization: Normalization | None,
) -> dict[str, Any]:
    """What `ARCHITECTURE` says of a model beside our tree of its parameters."""
    described = {"family": family, "sizes": dict(sizes)} | _classes(class_names)
    if normalization is not None:
        described |= {"image_mean": normalization.mean, "image_std": normalization.std}
    return described


def _classes(names: Sequence[str]) -> dict[str, Any]:
    """Names of the classes, as `beside.class_names` reads them."""
    return {
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }
