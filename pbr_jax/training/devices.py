"""The devices that share a batch, as a step sees them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pbr_jax.ops.arrays import Part
from pbr_jax.ops.exchange import Exchange

PyTree = Any
Cuts = Mapping[tuple[str, ...], bool]
"""Whether devices split a parameter, by its path; empty where none is split."""


class Devices(NamedTuple):
    """What a program that runs on each of several devices asks of the others.

    Attributes:
      mean: of a pytree over all devices, the same on each afterwards.
      total: the same for sums.
      part: `size -> Part` of a device with so many samples; None where it has them all.
      exchanging: the gradients of a loss that is given such a part are means already; otherwise the
        mean is to be taken of what is packed of them.
      norm: global norm of gradients, a tree like the parameters, of which a device has its shares.
      added: of a tree like the parameters, or of a part of it in its place: sums over the shares of
        a parameter.
    """

    mean: Callable[[PyTree], PyTree]
    total: Callable[[PyTree], PyTree]
    part: Callable[[int], Part | None]
    exchanging: bool = False
    norm: Callable[[PyTree], jax.Array] = optax.tree.norm
    added: Callable[[PyTree], PyTree] = lambda tree: tree


ONE = Devices(lambda tree: tree, lambda tree: tree, lambda size: None)
"""One device, or one program for all."""


def along(data: str, shards: str, split: Cuts, exchanging: bool) -> Devices:
    """The devices of a mesh of two axes, inside a `shard_map` over both.

    Args:
      data, shards: names of the axes. Along the second parameters are cut, in their last axis.
      split: which these are.
      exchanging: see `Devices`.
    """
    axes = (data, shards)

    def mean(tree):
        return lax.pmean(tree, axes)

    def part(size: int) -> Part:
        first = lax.axis_index(axes).astype(jnp.uint32) * jnp.uint32(size)
        total = size * lax.axis_size(axes)
        return Part(first, total, _exchange(data, shards, split) if exchanging else None)

    devices = Devices(mean, lambda tree: lax.psum(tree, axes), part, exchanging)
    if not split:
        return devices

    def added(tree):
        cut = jax.tree_util.tree_map_with_path(lambda keys, _: is_cut(split, keys), tree)
        sums = lax.psum(jax.tree.map(lambda leaf, c: leaf if c else None, tree, cut), shards)
        return jax.tree.map(lambda leaf, c, own: own if c else leaf, tree, cut, sums)

    def norm(tree):
        squares = jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), tree)
        return jnp.sqrt(sum(jax.tree.leaves(added(squares))))

    return devices._replace(norm=norm, added=added)


def names_of(keys: tuple[Any, ...]) -> tuple[str, ...]:
    """The names along a path into a pytree."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def is_cut(split: Cuts, keys: tuple[Any, ...]) -> bool:
    """Whether the leaf at this path belongs to a parameter that is split.

    The path of a moment ends in that of its parameter.
    """
    names = names_of(keys)
    return next((split[names[i:]] for i in range(len(names)) if names[i:] in split), False)


def _exchange(data: str, shards: str, split: Cuts) -> Exchange:
    axes = (data, shards)

    def gather(params, path, dtype=None):
        def whole(keys, leaf):
            if not split.get((*path, *names_of(keys))):
                return leaf
            # As wide as it was behind the wire: the gradient has the dtype of the parameter.
            sent = leaf if dtype is None else leaf.astype(dtype)
            gathered = lax.all_gather(sent, shards, axis=leaf.ndim - 1, tiled=True)
            return gathered.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(whole, params)

    def reduce(grads, params):
        # A gradient that is cut is summed while it is, and then among those with the same share.
        structure: Any
        leaves, structure = jax.tree.flatten(grads, is_leaf=lambda leaf: leaf is None)
        pairs = list(zip(leaves, structure.flatten_up_to(params), strict=True))
        cut = [grad is not None and grad.shape != param.shape for grad, param in pairs]
        shares = [
            lax.psum_scatter(grad, shards, scatter_dimension=grad.ndim - 1, tiled=True)
            / lax.axis_size(shards)
            for (grad, _), c in zip(pairs, cut, strict=True)
            if c
        ]
        rest = lax.pmean([grad for (grad, _), c in zip(pairs, cut, strict=True) if not c], axes)
        found = {True: iter(lax.pmean(shares, data)), False: iter(rest)}
        return structure.unflatten([next(found[c]) for c in cut])

    return Exchange(gather, reduce)
