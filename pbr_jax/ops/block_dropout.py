"""Randomness of a transformer block: dropout, and the keys of stochastic codes.

`aux["keys"]` holds one PRNG key per sample; every use in a block folds its own number in. The
backward pass draws the same bits again, so nothing is stored, and a batch may be cut into chunks.
Without keys nothing is dropped.
"""

import enum

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops import residuals
from pbr_jax.ops.arrays import uniform_like
from pbr_jax.ops.visibility import Visibility, dropout_seeds


class Use(enum.IntEnum):
    """Numbers of the uses of randomness in a block."""

    PROJ = 0
    HIDDEN = 1
    FC2 = 2
    CODES = 3
    EMBEDDINGS = 4
    ATTENTION = 5


def keys_for(aux: dict, use: Use) -> jax.Array:
    """Keys of one use, one per sample."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(aux["keys"], int(use))


def dropout(x: jax.Array, aux: dict, use: Use, rate: float) -> jax.Array:
    """Dropout of `x`, `[B, ...]`, or its transpose: both multiply by the same factors."""
    if "keys" not in aux or rate == 0:
        return x
    return _masked(x, uniform_like(keys_for(aux, use), x) >= rate, rate)


def embedding_dropout(
    h: jax.Array, aux: dict, rate: float, like: jax.Array, columns: jax.Array | None = None
) -> jax.Array:
    """Dropout of `h` in the block that `aux["embedded"]` names the first; elsewhere `h` itself.

    `h` has the shape of `like`, or holds only `columns` of it.
    """
    if "keys" not in aux or rate == 0:
        return h

    def dropped():
        kept = uniform_like(keys_for(aux, Use.EMBEDDINGS), like) >= rate
        if columns is not None:
            kept = residuals.take_columns(kept, columns)
        return _masked(h, kept, rate)

    # All blocks share one program, so that the first is known at run time only.
    return lax.cond(aux["embedded"][0], dropped, lambda: h)


def attention_visibility(aux: dict, rate: float) -> Visibility:
    """`aux["visibility"]` with the seeds of attention's dropout, if anything is dropped."""
    given = aux.get("visibility", Visibility())
    if "keys" not in aux or rate == 0:
        return given
    return given._replace(seeds=dropout_seeds(keys_for(aux, Use.ATTENTION)))


def _masked(x: jax.Array, kept: jax.Array, rate: float) -> jax.Array:
    # In float32: `1 - rate` in bfloat16 would be off by up to 0.4 % in every element.
    return jnp.where(kept, x.astype(jnp.float32) / (1 - rate), 0.0).astype(x.dtype)
