"""Which parameters devices split among them, and what in a state belongs to these.

Only large ones, and along their last axis, F. Rule of big_vision and openpi.
"""

from collections.abc import Mapping
from typing import Any

import jax

PyTree = Any
Cuts = Mapping[tuple[str, ...], bool]
"""Whether devices split a parameter, by its path; empty where none is split."""
SPLIT_FROM = 4 * 2**20
"""Bytes of a parameter from which on it is split: a small one is not worth its messages."""


def split_of(params: PyTree, shards: int) -> Cuts:
    """Which of these arrays or shapes so many devices split: matrices whose outputs they share."""
    found = {
        names_of(keys): leaf.ndim > 1
        and leaf.shape[-1] % shards == 0
        and leaf.size * leaf.dtype.itemsize >= SPLIT_FROM
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    return found if shards > 1 and any(found.values()) else {}


def names_of(keys: tuple[Any, ...]) -> tuple[str, ...]:
    """The names along a path into a pytree."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def is_cut(split: Cuts, keys: tuple[Any, ...]) -> bool:
    """Whether the leaf at this path belongs to a parameter that is split.

    The path of a moment ends in that of its parameter.
    """
    names = names_of(keys)
    return next((split[names[i:]] for i in range(len(names)) if names[i:] in split), False)
