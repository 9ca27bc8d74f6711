"""Small array helpers shared by the ops."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.ops.exchange import Exchange


def as_row(vector: jax.Array, ndim: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`[D] -> [1, ..., 1, D]` with `ndim` axes, cast to `dtype`, to broadcast over leading axes."""
    return vector.astype(dtype).reshape((1,) * (ndim - 1) + vector.shape)


def as_matrix(x: jax.Array) -> jax.Array:
    """`[..., D] -> [M, D]`: all leading axes as one."""
    return x.reshape(-1, x.shape[-1])


def squared_norms(grad: jax.Array, axes: int) -> jax.Array:
    """Float32 squared norms of the slices behind the leading `axes`, which are its shape."""
    squares = jnp.square(grad.astype(jnp.float32))
    return jnp.sum(squares, axis=tuple(range(axes, grad.ndim)))


class Part(NamedTuple):
    """Which samples of a batch a device has, of a batch that several share.

    Attributes:
      first: uint32 scalar, number of its first sample.
      total: samples of all devices.
      exchange: for the parameters that a module names in `exchanges`: it gathers them, and gives
        gradients that are means over devices. None: it has them whole and does neither.
    """

    first: jax.Array
    total: int
    exchange: Exchange | None = None


def sample_keys(key: jax.Array, batch: int, part: Part | None = None) -> jax.Array:
    """One PRNG key per sample, `[B]`: what is drawn does not depend on how a batch is split."""
    numbers = jnp.arange(batch, dtype=jnp.uint32)
    numbers = numbers if part is None else numbers + part.first
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def uniform_like(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Uniform in [0, 1), float32, shape of `x` `[B, ...]`, from one key per sample."""
    return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], jnp.float32))(keys)
