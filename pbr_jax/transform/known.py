"""Which selection gradients belong to, told by the arrays themselves while they live."""

import functools
import weakref
from typing import Any

import jax

from pbr_jax.transform.policies import Selection

PyTree = Any


class KnownSelections:
    """The selection of gradients that were just computed, as long as their arrays live."""

    def __init__(self) -> None:
        self._by_array: dict[int, tuple[weakref.ref, Selection]] = {}

    def add(self, grads: PyTree, selection: Selection) -> None:
        """Keeps it under every array of `grads`; arrays have no hash, and go by their identity."""
        for leaf in jax.tree.leaves(grads):
            key = id(leaf)
            forget = functools.partial(lambda key, gone: self._by_array.pop(key, None), key)
            self._by_array[key] = (weakref.ref(leaf, forget), selection)

    def of(self, grads: PyTree) -> Selection:
        """The one selection of all arrays of `grads`."""
        found = [self._by_array.get(id(leaf)) for leaf in jax.tree.leaves(grads)]
        known = {id(own[1]): own[1] for own in found if own is not None}
        if None in found or len(known) != 1:
            raise ValueError(
                "selection: must be given for gradients that are not the very arrays that"
                " value_and_grad returned, such as sums of them or outputs of a jitted function:"
                " pruned.dense(grads, selection)"
            )
        return known.popitem()[1]
