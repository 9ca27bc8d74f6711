"""Files of arrays: `.npz`, safetensors in one piece or in shards, and Orbax directories.

What a file is, its first bytes say, not its name. Nothing is unpickled and nothing is downloaded.
"""

import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pbr_jax.files import plain_path
from pbr_jax.weights.layout import Arrays, flatten

INDEX = "model.safetensors.index.json"
SAFETENSORS = "model.safetensors"
PARAMS = "params"  # the Orbax checkpoint in a directory that `pbr export --to orbax` wrote
_NO_WEIGHTS = {  # first bytes -> what such a file is
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the weights themselves",
    b"<": "a web page, not weights; download the file itself",
    b"\x89HDF": "an HDF5 file of Keras or TensorFlow; take the safetensors file of the same model",
}
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
      ValueError: it is something else, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file. {_WHERE}")
    # The first bytes say what it is.
    with path.open("rb") as file:
        start = file.read(64)
    for magic, what in _NO_WEIGHTS.items():
        if start.startswith(magic):
            raise ValueError(f"weights {path}: {what}")
    if start.startswith(b"PK"):
        return _read_npz(path)
    if start.startswith(b"{"):
        return _read_shards(path)
    if start[8:9] == b"{":  # after the length of the header
        return _read_safetensors(path)
    raise ValueError(
        f"weights {path}: neither .npz nor safetensors, by its content; is the download complete?"
    )


def _read_directory(path: Path) -> Arrays:
    if (path / PARAMS).is_dir():
        return _read_orbax(path / PARAMS)
    found = next((path / name for name in (SAFETENSORS, INDEX) if (path / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"weights {path}: a directory without {SAFETENSORS}, {INDEX} or {PARAMS}/; name the"
            " file itself, or write the model of a run with `pbr export`"
        )
    return read(found)


def _read_npz(path: Path) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            # The zip files of PyTorch hold a pickle.
            if not any(name.endswith(".pkl") for name in archive.files):
                return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"weights {path}: not a readable .npz file ({error}); is the download complete?"
        ) from error
    raise ValueError(
        f"weights {path}: a pickle of PyTorch, which could run code; take the model's safetensors"
    )


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"weights {path}: not a readable safetensors file ({error}); is the download complete?"
        ) from error


def _read_shards(path: Path) -> Arrays:
    try:
        shards: dict[str, str] = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"weights {path}: not the index of a sharded checkpoint (no weight_map: {error})"
        ) from error
    # All shards are wanted before the first is read, and every array of the index afterwards.
    names = sorted(set(shards.values()))
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise FileNotFoundError(
            f"weights {path}: {len(missing)} of {len(names)} shards are not beside it:"
            f" {', '.join(missing)}"
        )
    arrays: Arrays = {}
    for name in names:
        arrays |= _read_safetensors(path.parent / name)
    if lost := sorted(shards.keys() - arrays.keys()):
        raise ValueError(f"weights {path}: its shards lack arrays of the index: {', '.join(lost)}")
    return arrays


def _read_orbax(path: Path) -> Arrays:
    import orbax.checkpoint as ocp

    try:
        with plain_path(path.parent) as folder, ocp.StandardCheckpointer() as checkpointer:
            return flatten(checkpointer.restore(folder / path.name))
    except (ValueError, OSError) as error:
        raise ValueError(f"weights {path}: not a readable Orbax checkpoint ({error})") from error
