"""The devices that share a batch, as a step sees them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pbr_jax.ops.arrays import Part

PyTree = Any


class Devices(NamedTuple):
    """What a program that runs on each of several devices asks of the others.

    Attributes:
      mean: of a pytree over all devices, the same on each afterwards.
      total: the same for sums.
      part: `size -> Part` of a device with so many samples; None where it has them all.
    """

    mean: Callable[[PyTree], PyTree]
    total: Callable[[PyTree], PyTree]
    part: Callable[[int], Part | None]


ONE = Devices(lambda tree: tree, lambda tree: tree, lambda size: None)
"""One device, or one program for all."""


def along(axis: str) -> Devices:
    """The devices along an axis of the mesh of a `shard_map`."""

    def part(size: int) -> Part:
        first = lax.axis_index(axis).astype(jnp.uint32) * jnp.uint32(size)
        return Part(first, size * lax.axis_size(axis))

    return Devices(lambda tree: lax.pmean(tree, axis), lambda tree: lax.psum(tree, axis), part)
