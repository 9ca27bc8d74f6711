"""Files of arrays: `.npz`, safetensors in one piece or in shards, and Orbax directories.

What a file is, its first bytes say, not its name. Nothing is unpickled and nothing is downloaded.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pbr_jax import npz
from pbr_jax.files import plain_path
from pbr_jax.reading import START, regular_size
from pbr_jax.weights import foreign, tensors
from pbr_jax.weights.beside import read_small_json
from pbr_jax.weights.layout import Arrays, flatten

INDEX = "model.safetensors.index.json"
SAFETENSORS = "model.safetensors"
PARAMS = "params"  # the Orbax checkpoint in a directory that `pbr export --to orbax` wrote
_WHERE = (
    "Nothing is downloaded for you. ViT-B/16: https://storage.googleapis.com/vit_models/imagenet21k/"
    "ViT-B_16.npz; BERT-base: model.safetensors of https://huggingface.co/google-bert/"
    "bert-base-uncased; or train from random weights with --config.model.weights=none"
)


def read(path: str | os.PathLike[str]) -> Arrays:
    """All arrays of a file, in the dtypes that they are stored in.

    Args:
      path: `.npz`; safetensors; the index of a sharded checkpoint; or a directory that holds one of
        these under the name that Hugging Face gives it, or that Orbax wrote.

    Raises:
      FileNotFoundError: there is no such file, or a shard is missing.
      ValueError: it is something else, damaged, or larger than the memory; names it.
    """
    path = Path(path)
    if os.path.isdir(path):
        return _read_directory(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"weights {path}: no such file. {_WHERE}")
    # The first bytes say what it is.
    start = _start(path)
    if start.startswith(b"PK"):
        return _read_npz(path)
    if not tensors.begins(start) and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _read_shards(path)
    if tensors.begins(start) and len(shards := foreign.shards_of(path)) > 1:
        raise ValueError(f"weights {path}: one of {len(shards)} shards; name {path.parent / INDEX}")
    return _read_tensors(path, start)


@contextlib.contextmanager
def of_weights() -> Iterator[None]:
    """Has an error that names a file say that it is one of weights."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"weights {error}") from error


def _start(path: Path) -> bytes:
    with of_weights():
        regular_size(path)
        with path.open("rb") as file:
            return file.read(START)


def _what(path: Path, start: bytes) -> str:
    unknown = f"neither .npz nor safetensors, by its first bytes, {start[:8]!r}"
    return foreign.what(path, start) or unknown


def _read_directory(path: Path) -> Arrays:
    if (path / PARAMS).is_dir():
        return _read_orbax(path / PARAMS)
    found = next((path / name for name in (SAFETENSORS, INDEX) if (path / name).is_file()), None)
    if found is not None:
        return read(found)
    # What there is instead is said in the words that naming it would give.
    lacks = f"weights {path}: a directory without {SAFETENSORS}, {INDEX} or {PARAMS}/"
    others = foreign.others(path)
    ours = [str(file) for file in others if file.suffix in foreign.OURS]
    if ours and foreign.shards_of(others[0]):
        raise FileNotFoundError(f"{lacks}; its shards need {INDEX}, from where they are from")
    if ours:
        raise FileNotFoundError(f"{lacks}; name the file itself: {' or '.join(ours)}")
    if others:
        start = _start(others[0])
        if start.startswith(b"PK"):
            what = foreign.what_zip(others[0], _names(others[0]))
        else:
            what = None if tensors.begins(start) else _what(others[0], start)
        if what is None:  # ours by its content
            raise FileNotFoundError(f"{lacks}; name the file itself: {others[0]}")
        raise FileNotFoundError(f"{lacks}; {others[0].name} is {what}")
    raise FileNotFoundError(
        f"{lacks}; name the file itself, or write the model of a run with `pbr export`"
    )


def _names(path: Path) -> list[str]:
    with of_weights():
        return npz.names(path)


def _read_npz(path: Path) -> Arrays:
    if what := foreign.what_zip(path, _names(path)):
        raise ValueError(f"weights {path}: {what}")
    with of_weights():
        return npz.read(path)


def _read_tensors(path: Path, start: bytes) -> Arrays:
    if not tensors.begins(start):
        raise ValueError(f"weights {path}: {_what(path, start)}")
    return tensors.read(path)


def _read_shards(path: Path) -> Arrays:
    advice = (
        "so it is not the index of a sharded checkpoint; name the file of weights itself, or"
        " download it again"
    )
    with of_weights():
        index = read_small_json(path, {"weight_map": {...: str}}, advice)
    shards: dict[str, str] = index["weight_map"]
    names = sorted({*shards.values()})
    # A shard lies beside its index: a path out of a file that came from elsewhere is not followed.
    if astray := [name for name in names if Path(name).name != name or "\0" in name]:
        raise ValueError(
            f"weights {path}: its shards must be names of files beside it, not"
            f" {', '.join(map(repr, astray))}"
        )
    # All shards are wanted before the first is read, and every array of the index afterwards.
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise FileNotFoundError(
            f"weights {path}: {len(missing)} of {len(names)} shards are not beside it:"
            f" {', '.join(missing)}"
        )
    tensors.check_memory(path, sum((path.parent / name).stat().st_size for name in names))
    arrays: Arrays = {}
    for name in names:
        shard = _read_tensors(path.parent / name, _start(path.parent / name))
        if twice := sorted(shard.keys() & arrays.keys()):
            both = f"{name} and another shard both have {', '.join(twice)}"
            raise ValueError(f"weights {path}: {both}; download them again")
        arrays |= shard
    if lost := sorted(shards.keys() - arrays.keys()):
        raise ValueError(f"weights {path}: its shards lack arrays of the index: {', '.join(lost)}")
    return arrays


def digests(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder, by its path from there."""
    found = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        found[str(file.relative_to(folder))] = digest
    return found


def _read_orbax(path: Path) -> Arrays:
    import jax
    import orbax.checkpoint as ocp

    with plain_path(path) as plain, ocp.StandardCheckpointer() as checkpointer:
        with _naming(path):
            leaves = jax.tree.leaves(checkpointer.metadata(plain).item_metadata)
            size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        tensors.check_memory(path, size)
        with _naming(path):
            arrays = flatten(checkpointer.restore(plain))
            return {name: np.asarray(array) for name, array in arrays.items()}


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged checkpoint can make Orbax raise almost anything
        raise ValueError(f"weights {path}: not a readable Orbax checkpoint ({error})") from error
