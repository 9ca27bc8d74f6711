"""The list of a split's examples, small enough to keep, so that a later change of them is named.

An example of files is its name, and must keep its size and label: nothing is read. One in memory is
its content and label, wherever it stands. The order belongs to the list.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64

from pbr_jax.data.records import Records, identity
from pbr_jax.reading import few

Marks = UInt64[np.ndarray, " N"]


class Listing(NamedTuple):
    """The examples of a split, in their order."""

    names: tuple[str, ...]
    keys: Marks
    values: Marks


class Change(NamedTuple):
    """What became of the examples of a list; names of each."""

    lost: tuple[str, ...] = ()
    gained: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    reordered: bool = False

    @property
    def only_lost(self) -> bool:
        return not (self.gained or self.changed or self.reordered)

    def __str__(self) -> str:
        kinds = {"gained": self.gained, "lost": self.lost, "changed": self.changed}
        parts = [f"{len(names)} {kind} ({few(names)})" for kind, names in kinds.items() if names]
        return ", ".join(parts) or "in another order"


def listing(records: Records) -> Listing:
    """The list of all examples of a split."""
    names, count = [], len(records)
    keys, values = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for row in range(count):  # one by one: the content of all may be larger than the memory
        one = identity(records, row)
        names.append(one.name)
        keys[row], values[row] = _mark(one.key), _mark(one.value)
    return Listing(tuple(names), keys, values)


def compare(old: Listing, new: Listing) -> Change | None:
    """What changed from one list to another; None if nothing did."""
    if np.array_equal(old.keys, new.keys) and np.array_equal(old.values, new.values):
        return None
    before, after = _pairs(old), _pairs(new)
    # Where examples are only gone, the list is what is left of the old one, in its order.
    rest, lost = iter(after), []
    wanted = next(rest, None)
    for name, pair in zip(old.names, before, strict=True):
        if pair == wanted:
            wanted = next(rest, None)
        else:
            lost.append(name)
    if wanted is None:
        return Change(lost=tuple(lost))
    # Otherwise each is looked up by its key; equal ones are counted.
    values = dict(before)
    changed = tuple(
        name
        for name, (key, value) in zip(new.names, after, strict=True)
        if values.get(key, value) != value
    )
    gone = _without(old.names, before, after)
    come = _without(new.names, after, before)
    return Change(gone, come, changed, not (gone or come or changed))


def digest(lists: Mapping[str, Listing]) -> str:
    """A text that is the same for the same examples in the same order, and for no others."""
    whole = hashlib.blake2b(digest_size=16)
    for split, one in sorted(lists.items()):
        whole.update(f"{split} {len(one.keys)}\0".encode())
        whole.update(one.keys.tobytes() + one.values.tobytes())
    return whole.hexdigest()


def to_bytes(lists: Mapping[str, Listing]) -> bytes:
    """Lists by the names of their splits, as an `.npz` file."""
    arrays: dict[str, np.ndarray] = {}
    for split, one in lists.items():
        # Names may hold anything but the zero byte, and need not be UTF-8.
        names = "\0".join(one.names).encode("utf-8", "surrogateescape")
        arrays[f"{split}/names"] = np.frombuffer(names, np.uint8)
        arrays |= {f"{split}/keys": one.keys, f"{split}/values": one.values}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def from_bytes(stored: bytes, splits: Iterable[str]) -> dict[str, Listing]:
    """The inverse of `to_bytes`; raises `ValueError` where it is something else."""
    try:
        with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
            return {split: _from_arrays(arrays, split) for split in splits}
    except Exception as error:  # a damaged file can make zipfile and NumPy raise almost anything
        raise ValueError(f"no list of examples ({error})") from error


def _from_arrays(arrays: Mapping[str, np.ndarray], split: str) -> Listing:
    names, keys, values = (arrays[f"{split}/{part}"] for part in Listing._fields)
    found = names.tobytes().decode("utf-8", "surrogateescape").split("\0") if len(keys) else []
    marks = {(array.dtype, array.shape) for array in (keys, values)}
    if marks != {(np.dtype(np.uint64), (len(found),))}:
        raise ValueError(f"the parts of {split} do not agree")
    return Listing(tuple(found), keys, values)


def _mark(part: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(part, digest_size=8).digest())


def _pairs(one: Listing) -> list[tuple[int, int]]:
    return list(zip(one.keys.tolist(), one.values.tolist(), strict=True))


def _without(
    names: Sequence[str], here: Sequence[tuple[int, int]], there: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """The names of examples whose key occurs there less often than here."""
    left = Counter(key for key, _ in there)
    alone = []
    for name, (key, _) in zip(names, here, strict=True):
        left[key] -= 1
        if left[key] < 0:
            alone.append(name)
    return tuple(alone)
