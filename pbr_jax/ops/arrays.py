"""Small array helpers shared by the ops."""

import jax
import jax.numpy as jnp


def as_row(vector: jax.Array, ndim: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`[D] -> [1, ..., 1, D]` with `ndim` axes, cast to `dtype`: broadcasts over leading axes explicitly."""
    return vector.astype(dtype).reshape((1,) * (ndim - 1) + vector.shape)
