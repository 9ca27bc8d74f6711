"""Rotary position embedding (Su et al., 2021) of queries and keys.

Channel i of the first half of a head and channel i of the second are one plane, which position p
turns by the angle `p * frequencies[i]`, as Hugging Face's models have it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pbr_jax.configs.common import Decoder


def frequencies(shape: Decoder, local: bool = False) -> Float[np.ndarray, " half"]:
    """Radians per position of every plane of a head, float32 `[head_dim / 2]`.

    Plane i of a head of C channels has `base ** (-2 i / C)`; scaling slows planes down for texts
    that are longer than those of the first training. That of local layers has its own base, if
    there is one, and no scaling.

    Args:
      shape: with `head_dim`.
      local: whether it is that of a layer that sees a window only.
    """
    assert shape.head_dim is not None
    own = local and shape.rope_local_base is not None
    base = shape.rope_local_base if own and shape.rope_local_base else shape.rope_base
    exact = base ** (-np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim)
    if shape.rope_scaling != "none" and not own:
        exact = exact * _slowed(shape, exact)
    return exact.astype(np.float32)


def _slowed(shape: Decoder, exact: np.ndarray) -> np.ndarray:
    """What scaling multiplies each frequency by."""
    slow = np.full_like(exact, 1 / shape.rope_factor)
    if shape.rope_scaling == "linear":
        return slow
    # Llama 3.1: planes with few turns in the texts of the first training are slowed down, those
    # with many are not, and between them it goes linearly in the turns.
    turns = shape.rope_original * exact / (2 * math.pi)
    low, high = shape.rope_low_factor, shape.rope_high_factor
    whole = np.clip((turns - low) / (high - low), 0, 1)
    return whole + (1 - whole) * slow


@functools.partial(jax.checkpoint, prevent_cse=False)
def rotate(
    x: Float[Array, "B H N C"], positions: Int[Array, "B N"], frequencies: Float[Array, " half"]
) -> Float[Array, "B H N C"]:
    """`x` with every plane turned by its angle; float32 inside, the dtype of `x` outside.

    Differentiated, it keeps positions and frequencies, and makes angles again.
    """
    place = positions.astype(jnp.float32)[:, None, :, None]
    angles = place * frequencies[None, None, None]
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
