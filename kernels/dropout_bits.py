"""Random bits of attention dropout: a pure function of sample, head, query and key.

Nothing is stored: forward and backward pass, XLA and Triton, one block of queries or many, all
compute the same bits again from the two seeds of a sample. One integer hash of 32 bits per element,
of multiplications, shifts and exclusive ors only, which every compiler here has. The hash is
Wellons' `lowbias32` (nullprogram.com/blog/2018/07/31), a bijection whose output bits flip with
probability 1/2 (bias 0.17 %) when one input bit does.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Odd, so that consecutive positions are spread over all 32 bits: 2^32 / golden ratio, and the two
# constants of MurmurHash3's finalizer.
_HEAD, _QUERY, _KEY = np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)


def _hash(x: jax.Array) -> jax.Array:
    """`lowbias32` of uint32, element by element."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def query_bits(seed: jax.Array, head: jax.Array, query: jax.Array) -> jax.Array:
    """uint32 of a row of scores; the first seed of its sample, broadcast against each other."""
    return _hash(_hash(seed + head.astype(jnp.uint32) * _HEAD) + query.astype(jnp.uint32) * _QUERY)


def key_bits(seed: jax.Array, key: jax.Array) -> jax.Array:
    """uint32 of a column of scores; the second seed of its sample."""
    return _hash(seed + key.astype(jnp.uint32) * _KEY)


def kept(of_query: jax.Array, of_key: jax.Array, rate: float) -> jax.Array:
    """Mask of what dropout keeps, each with probability `1 - rate`; both arguments broadcast."""
    return _hash(of_query ^ of_key) >= np.uint32(round(rate * 2**32))
