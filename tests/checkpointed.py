"""States with every kind of leaf, saved and restored, for tests of checkpoints."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pbr_jax.runs.checkpoints import Checkpointer

TX = optax.chain(optax.clip(1.0), optax.adamw(1e-3))


def make_state(seed, width=64):
    """A state with every kind of leaf that training has: moments, typed keys, counts, bfloat16."""
    key = jax.random.key(seed)
    params = {
        "dense": {"kernel": jax.random.normal(key, (width, width)), "bias": jnp.zeros(width)},
        "scale": jnp.full(8, seed, jnp.bfloat16),
    }
    grads = jax.tree.map(lambda p: p + jnp.asarray(1, p.dtype), params)
    with jax.numpy_dtype_promotion("standard"):  # optax.adamw needs it
        _, opt_state = TX.update(grads, TX.init(params), params)
    return {
        "step": jnp.int32(seed),
        "key": key,
        "site_keys": jax.random.split(key, 3),
        "params": params,
        "opt_state": opt_state,
        "counts": jnp.arange(5, dtype=jnp.int32),
        "energy": jnp.zeros((2, 0), jnp.float32),  # the bandit keeps none
        "nothing": None,
    }


def assert_bit_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape, a.sharding) == (b.dtype, b.shape, b.sharding)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def fill(directory, steps=(1, 2, 3), keep=3):
    """Saves `make_state(step)` for each step; returns the directory."""
    with Checkpointer(directory, keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), {"batch": 10 * step})
    return directory


def restore(directory, **kwargs):
    messages = []
    with Checkpointer(directory, 3, messages.append) as checkpointer:
        return checkpointer.restore(make_state(0), **kwargs), messages


def largest_file(step_directory: Path) -> Path:
    """The file that holds most of the array data."""
    return max(
        (p for p in step_directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip_one_bit(step_directory):
    path = largest_file(step_directory)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path.name, "sha256 differs"
