"""The devices that share a batch, as a step sees them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pbr_jax.ops.arrays import Part
from pbr_jax.ops.exchange import Exchange

PyTree = Any


class Devices(NamedTuple):
    """What a program that runs on each of several devices asks of the others.

    Attributes:
      mean: of a pytree over all devices, the same on each afterwards.
      total: the same for sums.
      part: `size -> Part` of a device with so many samples; None where it has them all.
      exchanging: the gradients of a loss that is given such a part are means already; otherwise the
        mean is to be taken of what is packed of them.
    """

    mean: Callable[[PyTree], PyTree]
    total: Callable[[PyTree], PyTree]
    part: Callable[[int], Part | None]
    exchanging: bool = False


ONE = Devices(lambda tree: tree, lambda tree: tree, lambda size: None)
"""One device, or one program for all."""


def along(axis: str, exchanging: bool) -> Devices:
    """The devices along an axis of the mesh of a `shard_map`."""

    def mean(tree):
        return lax.pmean(tree, axis)

    exchange = Exchange(lambda params, path: params, lambda grads, params: mean(grads))

    def part(size: int) -> Part:
        first = lax.axis_index(axis).astype(jnp.uint32) * jnp.uint32(size)
        return Part(first, size * lax.axis_size(axis), exchange if exchanging else None)

    return Devices(mean, lambda tree: lax.psum(tree, axis), part, exchanging)
