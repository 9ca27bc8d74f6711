"""A model as what differs from the weights that its run began with: few rows of few kernels.

    architecture.json       the description of an export; `base`: where those weights are, and the
                            SHA-256 of what was read of them; `leaves`: dtype and shape of each
    delta/rows.safetensors  for a leaf that differs, NAME: its new rows `[n, F]`, and NAME:rows:
                            where they belong, int32 `[n]`

A leaf `[..., D, F]`, such as stacked kernels `[L, D, F]`, is a list of L x D rows. Where that takes
fewer bytes it is one of L x F columns instead, `NAME:columns`, or whole, NAME alone. Bits are
compared, so base and delta are the model again bit for bit, however it was trained.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from pbr_jax.files import write_json
from pbr_jax.weights import layout, tensors
from pbr_jax.weights.beside import ARCHITECTURE
from pbr_jax.weights.export import description
from pbr_jax.weights.files import digests
from pbr_jax.weights.layout import Arrays, Sizes
from pbr_jax.weights.load import load, own_classes
from pbr_jax.weights.preparation import Normalization
from pbr_jax.weights.read import Weights, described, of_tree
from pbr_jax.weights.read import read as read_whole

DELTA = "delta"  # the folder of what differs
_FILE = "rows.safetensors"
_WAYS = ("rows", "columns")
_FORM = {"base": {"path": str, "sha256": str}, "leaves": {...: {"dtype": str, "shape": [int]}}}
Matrix = Shaped[np.ndarray, "n F"]


class _Leaf(NamedTuple):
    """A leaf of which only this is known."""

    shape: tuple[int, ...]
    dtype: np.dtype


def is_delta(path: Path) -> bool:
    """Whether `save_delta` wrote the directory at `path`."""
    return os.path.isdir(path / DELTA)


def read(path: str | os.PathLike[str]) -> Weights:
    """As `pbr_jax.weights.read.read`; a delta is read with its base, as our tree.

    Raises:
      FileNotFoundError: there is no such file, or no base where a delta says that it is.
      ValueError: it cannot be read, is of a model that is not ours, or is a delta of another base.
    """
    path = Path(path)
    return _read_delta(path) if is_delta(path) else read_whole(path)


def save_delta(
    directory: str | os.PathLike[str],
    family: str,
    params: Mapping[str, Any],
    sizes: Sizes,
    class_names: Sequence[str],
    normalization: Normalization | None,
    base: Path,
    place: str,
) -> dict[str, int]:
    """What differs between a model and `base`, and a description of the model beside it.

    Args:
      directory: to be written.
      family, params, sizes, class_names, normalization: as for `export.save`.
      base: the weights that the model began with.
      place: where `base` is, as seen from where the directory will be.

    Returns:
      The bytes of all parameters (`whole`) and of those written (`delta`).

    Raises:
      ValueError: the base cannot be read, or is no model of that family and these sizes.
    """
    from safetensors.numpy import save_file

    # What a leaf is in the base: what a run reads of it, in the dtype that the run has.
    ours = layout.flatten(params)
    leaves = {path: _Leaf(tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in ours.items()}
    told = description(family, sizes, class_names, normalization)
    theirs = _base_leaves(base, told, leaves)
    sha256 = _digest(theirs)
    stored: Arrays = {}
    for path, leaf in ours.items():
        stored |= _difference(path, theirs.pop(path, None), np.asarray(leaf))
    directory = Path(directory)
    (directory / DELTA).mkdir(parents=True)
    save_file(stored, directory / DELTA / _FILE, {"base": sha256})
    told["files"] = digests(directory / DELTA)
    told["base"] = {"path": place, "sha256": sha256}
    told["leaves"] = {
        path: {"dtype": leaf.dtype.name, "shape": leaf.shape} for path, leaf in leaves.items()
    }
    write_json(directory / ARCHITECTURE, told)
    return {"whole": _num_bytes(ours), "delta": _num_bytes(stored)}


def _read_delta(path: Path) -> Weights:
    told = described(path, DELTA, _FORM)
    leaves = {
        name: _Leaf(tuple(leaf["shape"]), _dtype(path, leaf["dtype"]))
        for name, leaf in told["leaves"].items()
    }
    arrays = _read_base(path, told, leaves)
    stored = tensors.read(path / DELTA / _FILE)
    for name, leaf in leaves.items():
        arrays[name] = _changed(name, arrays.get(name), stored)
        if arrays[name].shape != leaf.shape:
            raise ValueError(f"weights {path}: {name}: neither base nor delta has it whole")
    return of_tree(path, arrays, told)


def _read_base(path: Path, told: dict[str, Any], leaves: Mapping[str, _Leaf]) -> Arrays:
    """The leaves of the base of a delta; raises where it is not the one that it was made from."""
    base = Path(os.path.realpath(path / told["base"]["path"]))
    where = f"base.path of {path / ARCHITECTURE}"
    if not os.path.lexists(base):
        raise FileNotFoundError(
            f"weights {path}: hold what differs from other weights, which are not at {base}; bring"
            f" them there, or write where they are into {where}, as seen from {path}"
        )
    try:
        arrays = _base_leaves(base, told, leaves)
    except ValueError as error:
        raise ValueError(f"weights {path}: their base, by {where}: {error}") from error
    if (found := _digest(arrays)) != (expected := told["base"]["sha256"]):
        raise ValueError(
            f"weights {path}: hold what differs from other weights than those at {base}, whose"
            f" parameters have the SHA-256 {found}, not {expected}; name the right ones in {where},"
            " or export the run whole"
        )
    return arrays


def _base_leaves(base: Path, told: dict[str, Any], leaves: Mapping[str, _Leaf]) -> Arrays:
    """What a run reads of its base, without the leaves that start afresh."""
    # The names of the classes put the rows of the base's head into the order of the run's.
    shapes: dict[str, Any] = dict(leaves)
    names, _ = own_classes(of_tree(base, shapes, told))
    like = layout.unflatten(leaves)
    found = load(read(base), told["family"], told["sizes"], like, names or None)
    return {
        path: leaf.astype(leaves[path].dtype, copy=False)
        for path, leaf in layout.flatten(found.params).items()
        if not isinstance(leaf, _Leaf)
    }


def _difference(path: str, old: np.ndarray | None, new: np.ndarray) -> Arrays:
    """What is stored of a leaf: nothing, lines of it with their places, or all of it."""
    everything = {path: np.array(new, order="C")}
    if old is None or old.ndim < 2:
        return {} if old is not None and not _unequal(old, new).any() else everything
    best = everything
    for way in _WAYS:
        at = np.flatnonzero(_unequal(_lines(old, way), _lines(new, way)))
        if not len(at):
            return {}
        lines = {path: _lines(new, way)[at], f"{path}:{way}": at.astype(np.int32)}
        best = min(best, lines, key=_num_bytes)
    return best


def _changed(path: str, old: np.ndarray | None, stored: Arrays) -> np.ndarray:
    """The leaf of which `_difference` stored that; empty where neither has one."""
    for way in _WAYS:
        if old is not None and f"{path}:{way}" in stored:
            lines = _lines(old, way).copy()
            lines[stored[f"{path}:{way}"]] = stored[path]
            return _turned(lines.reshape(_turned(old, way).shape), way)
    return stored.get(path, np.empty(0) if old is None else old)


def _turned(leaf: np.ndarray, way: str) -> np.ndarray:
    """A leaf whose last axis is that of the lines; twice, it is as it was."""
    return leaf.swapaxes(-1, -2) if way == "columns" else leaf


def _lines(leaf: np.ndarray, way: str) -> Matrix:
    """All rows, or all columns, of a leaf, contiguous."""
    turned = np.ascontiguousarray(_turned(leaf, way))
    return turned.reshape(-1, turned.shape[-1])


def _unequal(a: np.ndarray, b: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Which entries along the first axis have other bits."""
    bits = [np.ascontiguousarray(each).view(f"u{each.dtype.itemsize}") for each in (a, b)]
    unequal = bits[0] != bits[1]
    return unequal.reshape(len(unequal), -1).any(axis=1)


def _digest(arrays: Arrays) -> str:
    """The SHA-256 of names, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _num_bytes(arrays: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _dtype(path: Path, name: str) -> np.dtype:
    import ml_dtypes  # noqa: F401  whose types NumPy then knows by name

    try:
        return np.dtype(name)
    except TypeError:
        raise ValueError(
            f"weights {path / ARCHITECTURE}: dtype = {name}: is none; export the run again"
        ) from None
