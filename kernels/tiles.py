"""A part of an axis that a block of threads works on, with the mask of what lies inside."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl


class Part(NamedTuple):
    """Indices `first ... first + size - 1` of an axis, some of which may lie behind its end."""

    first: jax.Array | int
    size: int
    length: int

    @property
    def slice(self) -> Any:
        return pl.ds(self.first, self.size)

    @property
    def indices(self) -> jax.Array:
        return self.first + lax.iota(jnp.int32, self.size)

    @property
    def whole(self) -> bool:
        """Whether no part of this size reaches over the end."""
        return self.length % self.size == 0

    @property
    def inside(self) -> jax.Array:
        return self.indices < self.length
