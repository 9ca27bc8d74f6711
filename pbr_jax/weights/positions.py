"""Position embeddings of another length than the model's."""

import math

import numpy as np
from jaxtyping import Float


def resize_grid(
    positions: Float[np.ndarray, "1 n d"], tokens: int, class_token: bool
) -> Float[np.ndarray, "1 m d"]:
    """A square grid of positions `[1, N, D]` for another image size, `[1, tokens, D]`.

    Bilinear, with the corners of both grids on each other, as the reference's
    `scipy.ndimage.zoom(order=1)` (vit_jax/checkpoint.py, `interpolate_posembed`). The position of
    the class token, which comes first where there is one, stays.

    Raises:
      ValueError: one of the grids is not square.
    """
    first, grid = positions[:, :class_token], positions[0, class_token:]
    old, new = math.isqrt(len(grid)), math.isqrt(tokens - class_token)
    for number, side in ((len(grid), old), (tokens - class_token, new)):
        if side * side != number:
            raise ValueError(f"{number} patches are no square grid, so positions cannot be resized")
    # Along each axis, every new place lies between two old ones and takes its share of both.
    grid = grid.reshape(old, old, -1).astype(np.float32)
    for axis in (0, 1):
        place = np.linspace(0, old - 1, new, dtype=np.float64)
        below = np.minimum(place.astype(int), max(old - 2, 0))
        above = np.minimum(below + 1, old - 1)
        share = (place - below).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        grid = grid.take(below, axis) * (1 - share) + grid.take(above, axis) * share
    return np.concatenate([first.astype(np.float32), grid.reshape(1, new * new, -1)], axis=1)
