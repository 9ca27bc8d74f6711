"""The devices that share a batch, as a step sees them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pbr_jax.families import KERNEL
from pbr_jax.ops.arrays import Part
from pbr_jax.ops.exchange import Exchange
from pbr_jax.training.cuts import Cuts, is_cut, names_of
from pbr_jax.training.slices import Share, is_slices

PyTree = Any


class Devices(NamedTuple):
    """What a program that runs on each of several devices asks of the others.

    Attributes:
      mean: of a pytree over all devices, the same on each afterwards.
      total: the same for sums.
      part: `size -> Part` of a device with so many samples; None where it has them all.
      reduced: of the packed gradients of a loss that is given such a part: their means over all
        devices, of which a device keeps its shares. Nothing is left to do where the part has an
        exchange.
      norm: global norm of gradients, a tree like the parameters, of which a device has its shares.
      added: of a tree like the parameters, or of a part of it in its place: sums over the shares of
        a parameter.
      own: `slices -> slices` of parameters that are whole, to move a device's shares of them.
    """

    mean: Callable[[PyTree], PyTree]
    total: Callable[[PyTree], PyTree]
    part: Callable[[int], Part | None]
    reduced: Callable[[PyTree], PyTree]
    norm: Callable[[PyTree], jax.Array] = optax.tree.norm
    added: Callable[[PyTree], PyTree] = lambda tree: tree
    own: Callable[[PyTree], PyTree] = lambda slices: slices


ONE = Devices(lambda tree: tree, lambda tree: tree, lambda size: None, lambda grads: grads)
"""One device, or one program for all."""


def along(data: str, shards: str, split: Cuts, split_moments: Cuts, overlap: bool) -> Devices:
    """The devices of a mesh of two axes, inside a `shard_map` over both.

    Args:
      data, shards: names of the axes. Along the second parameters are cut, in their last axis.
      split: which are, with their moments.
      split_moments: of which parameters only the moments are. One of the two is empty.
      overlap: gradients are exchanged while others are computed, as they are if parameters are cut.
    """
    axes = (data, shards)

    def mean(tree):
        return lax.pmean(tree, axes)

    exchanging = overlap or bool(split)

    def part(size: int) -> Part:
        # Asked inside the `shard_map`, where the axes have sizes.
        exchange = _exchange(data, shards, split) if exchanging else None
        first = lax.axis_index(axes).astype(jnp.uint32) * jnp.uint32(size)
        return Part(first, size * lax.axis_size(axes), exchange)

    reduced = (lambda grads: grads) if exchanging else mean
    devices = Devices(mean, lambda tree: lax.psum(tree, axes), part, reduced)
    cuts = split or split_moments
    if not cuts:
        return devices

    def added(tree):
        cut = jax.tree_util.tree_map_with_path(lambda keys, _: is_cut(cuts, keys), tree)
        sums = lax.psum(jax.tree.map(lambda leaf, c: leaf if c else None, tree, cut), shards)
        return jax.tree.map(lambda leaf, c, own: own if c else leaf, tree, cut, sums)

    def norm(tree):
        squares = jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), tree)
        return jnp.sqrt(sum(jax.tree.leaves(added(squares))))

    devices = devices._replace(norm=norm, added=added)
    if not split_moments:
        return devices

    def scattered(grads):
        def own(keys, grad):
            if not is_cut(split_moments, keys):
                return mean(grad)
            return lax.pmean(_scattered(grad, shards), data)

        return jax.tree_util.tree_map_with_path(own, grads)

    def own(slices):
        def share(keys, whole):
            return Share(whole, shards) if is_cut(split_moments, keys) else whole

        return jax.tree_util.tree_map_with_path(share, slices, is_leaf=is_slices)

    return devices._replace(reduced=scattered, own=own)


def _scattered(grad: jax.Array, axis: str) -> jax.Array:
    """The mean along an axis of the mesh, of which each device keeps its share of the last axis."""
    total = lax.psum_scatter(grad, axis, scatter_dimension=grad.ndim - 1, tiled=True)
    return total / lax.axis_size(axis)


def _exchange(data: str, shards: str, split: Cuts) -> Exchange:
    axes = (data, shards)

    def gather(params, path, dtype=None):
        def whole(keys, leaf):
            names = (*path, *names_of(keys))
            if not split.get(names):
                return leaf
            # As wide as it was behind the wire: the gradient has the dtype of the parameter.
            sent = leaf.astype(dtype) if dtype is not None and names[-1] == KERNEL else leaf
            gathered = lax.all_gather(sent, shards, axis=leaf.ndim - 1, tiled=True)
            return gathered.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(whole, params)

    def reduce(grads, params):
        # A gradient that is cut is summed while it is, and then among those with the same share.
        structure: Any
        leaves, structure = jax.tree.flatten(grads, is_leaf=lambda leaf: leaf is None)
        pairs = list(zip(leaves, structure.flatten_up_to(params), strict=True))
        cut = [grad is not None and grad.shape != param.shape for grad, param in pairs]
        shares = [_scattered(grad, shards) for (grad, _), c in zip(pairs, cut, strict=True) if c]
        rest = lax.pmean([grad for (grad, _), c in zip(pairs, cut, strict=True) if not c], axes)
        found = {True: iter(lax.pmean(shares, data)), False: iter(rest)}
        return structure.unflatten([next(found[c]) for c in cut])

    def collect(array):
        return lax.all_gather(array, axes, tiled=True)

    return Exchange(gather, reduce, collect, lax.axis_size(axes))
