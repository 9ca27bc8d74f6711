"""Which part of a parameter a step moves: an object in its place in a tree of parameters."""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops.arrays import squared_norms


@runtime_checkable
class Slices(Protocol):
    """Which part of a parameter, or of a moment of it, a step moves: `Rows`, `ALL` and the like."""

    @property
    def slots(self) -> jax.Array | None:
        """Where its slices lie, int32, increasing along the last axis; None where it is whole."""

    def gather(self, leaf: jax.Array) -> jax.Array:
        """The part, in the shape of its packed gradient."""

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        """The leaf with this part in its place."""

    def norms(self, grad: jax.Array) -> jax.Array | None:
        """Squared norms of the rows of a packed gradient, None where nobody learns from them."""


class Rows(NamedTuple):
    """Which slices of a parameter are trained in a step.

    `slots`, int32, are indices into as many leading axes, flattened, as it has itself: of a stacked
    kernel `[L, D, F]`, `[M, K]` for columns of M blocks and `[M]` for blocks. An index past the end
    is an unused slot.
    """

    slots: jax.Array

    # An unused slot reads zeros and writes nothing, so that shapes stay the same in every step.
    def gather(self, leaf: jax.Array) -> jax.Array:
        return self._flat(leaf).at[self.slots].get(mode="fill", fill_value=0)

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return self._flat(leaf).at[self.slots].set(rows, mode="drop").reshape(leaf.shape)

    def norms(self, grad: jax.Array) -> jax.Array:
        """Squared norms of the slices of a packed gradient, shaped like `slots`."""
        return squared_norms(grad, self.slots.ndim)

    def _flat(self, leaf: jax.Array) -> jax.Array:
        axes = self.slots.ndim
        return leaf.reshape(math.prod(leaf.shape[:axes]), *leaf.shape[axes:])


class _All:
    """A parameter trained whole; an object, since None would vanish from the tree."""

    slots = None

    def gather(self, leaf: jax.Array) -> jax.Array:
        return leaf

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return rows

    def norms(self, grad: jax.Array) -> None:
        return None


ALL = _All()


class _Nothing:
    """A parameter that is not trained: its part, and what an optimizer keeps of it, is empty."""

    slots = None

    def gather(self, leaf: jax.Array) -> jax.Array:
        return jnp.zeros((0,), leaf.dtype)

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return leaf

    def norms(self, grad: jax.Array) -> None:
        return None


NOTHING = _Nothing()


class Share(NamedTuple):
    """A device's share of the slices that `whole` names, of a parameter that each device has.

    Inside a `shard_map`: the last axis is cut among the devices along `axis`, as that of the packed
    gradient and of the moments is. What a device has moved, all others get.
    """

    whole: Slices
    axis: str

    @property
    def slots(self) -> jax.Array | None:
        """Those of the whole: every device has a part of each slice."""
        return self.whole.slots

    def gather(self, leaf: jax.Array) -> jax.Array:
        rows = self.whole.gather(leaf)
        width = rows.shape[-1] // lax.axis_size(self.axis)
        return lax.dynamic_slice_in_dim(rows, lax.axis_index(self.axis) * width, width, axis=-1)

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        # Every device has the whole parameter, and moved a part of each of its slices.
        every = lax.all_gather(rows, self.axis, axis=rows.ndim - 1, tiled=True)
        return self.whole.scatter(leaf, every)

    def norms(self, grad: jax.Array) -> jax.Array | None:
        """Of the share."""
        return self.whole.norms(grad)


def is_slices(node: Any) -> bool:
    """For `is_leaf` of a tree of them."""
    return isinstance(node, Slices)
