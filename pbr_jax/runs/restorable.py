"""The proof that a checkpoint can be restored: sound bytes may be of no usable state.

Orbax stores a state as zarr arrays in one OCDBT database, `state/`: for each array its `.zarray`,
which says dtype, shape and chunks, and a key for each chunk. Only what describes the arrays is read
here, in milliseconds; that their bytes are those that were written, the manifest says.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from pbr_jax.runs.manifest import BrokenCheckpoint

_DESCRIBED = re.compile(r"(.+)\[([\d,]*)\]")  # dtype and shape, as by `manifest.describe`


def prove(step: Path, tree: dict[str, str]) -> None:
    """Checks that every array of a manifest's `tree` is in the checkpoint `step`, at a plain path.

    Raises:
      BrokenCheckpoint: naming the first array that is missing, or has another shape or dtype.
    """
    try:
        stored, chunks = _arrays(step / "state")
        for file in (step / "state" / "_METADATA", step / "data" / "metadata"):
            json.loads(file.read_bytes())
    except (ValueError, KeyError, TypeError, OSError) as error:
        why = str(error).splitlines()[:1] or [type(error).__name__]
        raise BrokenCheckpoint(f"its arrays cannot be read ({why[0][:300]})") from error
    for name, described in tree.items():
        match = _DESCRIBED.fullmatch(described)
        assert match is not None  # we wrote it
        dtype, shape = match[1], [int(size) for size in match[2].split(",") if size]
        if not math.prod(shape):
            continue  # Orbax stores no empty array
        found = stored.get(_plain(name))
        if found is None:
            raise BrokenCheckpoint(f"its array {name} is missing")
        if dtype.startswith("key<"):  # stored as its data, which has an axis more
            shape, dtype = [*shape, *found["shape"][len(shape) :]], "uint32"
        if (_dtype(found["dtype"]), found["shape"]) != (dtype, shape):
            what = f"{_dtype(found['dtype'])}{found['shape']}"
            raise BrokenCheckpoint(f"its array {name} is {what} instead of {described}")
        wanted = math.prod(-(-n // size) for n, size in zip(shape, found["chunks"], strict=True))
        if chunks[_plain(name)] != wanted:
            raise BrokenCheckpoint(f"its array {name} has {chunks[_plain(name)]} of {wanted} parts")


def _arrays(state: Path) -> tuple[dict[str, dict[str, Any]], Counter[str]]:
    """What describes each array of a state, and the number of its chunks."""
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}}
    store = tensorstore.KvStore.open(database).result()
    stored, chunks = {}, Counter[str]()
    for key in store.list().result():
        name, _, part = key.decode().rpartition("/")
        if part == ".zarray":
            stored[_plain(name)] = json.loads(store.read(key).result().value)
        else:
            chunks[_plain(name)] += 1
    return stored, chunks


def _plain(name: str) -> str:
    """The name of an array without the difference between our paths, `a/b`, and Orbax's, `a.b`."""
    return name.replace("/", ".")


def _dtype(zarr: str) -> str:
    """`float32` for zarr's `<f4`; types that NumPy lacks have their own names there too."""
    return np.dtype(zarr).name if zarr[0] in "<>|" else zarr
