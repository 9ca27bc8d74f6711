"""Weight gradients from sampled token rows, as in WTA-CRS (Liu et al., 2023), for the study only.

`dW = x^T dy` is a sum over tokens. K of them are drawn with replacement and divided by K times
their probability, so that the estimate is unbiased; `dx` and the bias gradient stay exact. It
shows accuracy only: everything is computed in full and then masked.
"""

import contextlib
import types
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pbr_jax.ops import half_blocks, linear


@contextlib.contextmanager
def sampled(keep: float, probability: Literal["uniform", "norms"]) -> Iterator[None]:
    """Blocks traced within it estimate weight gradients from `keep` of the tokens.

    Args:
      keep: K over the number of tokens in the batch.
      probability: the same for all, or in proportion to `|x_t| |dy_t|`: least variance.
    """

    def gradients(params: Any, saved: jax.Array, dy: jax.Array, settings: Any) -> Any:
        sizes = _norms(saved) * _norms(dy) if probability == "norms" else jnp.ones(dy.shape[:-1])
        weights = _token_weights(sizes.ravel(), keep, _key(dy)).reshape(*dy.shape[:-1], 1)
        estimate = linear.parameter_gradients(params, saved, weights * dy, settings)
        exact = linear.parameter_gradients(params, saved, dy, settings)
        return exact | {"kernel": estimate["kernel"]}

    half_blocks.linear = types.SimpleNamespace(**vars(linear) | {"parameter_gradients": gradients})
    try:
        yield
    finally:
        half_blocks.linear = linear


def _token_weights(sizes: jax.Array, keep: float, key: jax.Array) -> jax.Array:
    """How often each token was drawn, over how often to expect it: `[T] -> [T]`, of mean 1."""
    num_draws = round(keep * sizes.size)
    sizes = sizes + jnp.finfo(sizes.dtype).tiny  # all are zero before a new head has learned
    p = sizes / jnp.sum(sizes)
    drawn = jax.random.categorical(key, jnp.log(p), shape=(num_draws,))
    return jnp.zeros_like(sizes).at[drawn].add(1 / (num_draws * p[drawn]))


def _norms(a: jax.Array) -> jax.Array:
    return jnp.linalg.norm(a.astype(jnp.float32), axis=-1)


def _key(dy: jax.Array) -> jax.Array:
    """A key that differs between layers and steps: the bits of a gradient's sum."""
    bits = jax.lax.bitcast_convert_type(jnp.sum(dy.astype(jnp.float32)), jnp.uint32)
    return jax.random.key(bits)
