"""Random changes of small images; NumPy only."""

import numpy as np
from jaxtyping import Float, Float32

from pbr_jax.data.arrays import Augment


def affine(shift: float = 0.5, degrees: float = 10.0, scale: float = 0.1) -> Augment:
    """Shifts, rotates and scales each image by its own random amount.

    Args:
      shift: largest shift along each axis, in pixels.
      degrees: largest rotation either way.
      scale: images are enlarged by a factor in [1 - scale, 1 + scale]; below 1.

    Returns:
      An `Augment`: float32 [B, H, W, C] and a generator to float32 [B, H, W, C]. Pixels are
      interpolated linearly, with zeros outside the image. The amounts are uniform.
    """
    if shift < 0 or degrees < 0 or not 0 <= scale < 1:
        raise ValueError(
            f"shift = {shift}, degrees = {degrees}, scale = {scale}: must not be negative, and "
            "scale must be below 1"
        )

    def augment(
        images: Float32[np.ndarray, "B H W C"], generator: np.random.Generator
    ) -> Float32[np.ndarray, "B H W C"]:
        amounts = generator.uniform(-1, 1, (4, len(images), 1, 1))  # one draw, whatever the sizes
        rows, columns = shift * amounts[0], shift * amounts[1]
        angle, factor = np.deg2rad(degrees * amounts[2]), 1 + scale * amounts[3]
        height, width = images.shape[1:3]
        y = np.arange(height)[None, :, None] - (height - 1) / 2 - rows
        x = np.arange(width)[None, None, :] - (width - 1) / 2 - columns
        cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
        source_rows = cos * y - sin * x + (height - 1) / 2
        source_columns = sin * y + cos * x + (width - 1) / 2
        return sample_bilinear(images, source_rows, source_columns)

    return augment


def sample_bilinear(
    images: Float32[np.ndarray, "B H W C"],
    rows: Float[np.ndarray, "B H W"],
    columns: Float[np.ndarray, "B H W"],
) -> Float32[np.ndarray, "B H W C"]:
    """The images at fractional coordinates, in pixels; zero outside."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Within the frame of zeros, everything farther out is zero as well.
    rows = np.clip(rows + 1, 0, padded.shape[1] - 1)
    columns = np.clip(columns + 1, 0, padded.shape[2] - 1)
    top = np.minimum(rows.astype(np.intp), padded.shape[1] - 2)
    left = np.minimum(columns.astype(np.intp), padded.shape[2] - 2)
    down = (rows - top).astype(np.float32)[..., None]
    right = (columns - left).astype(np.float32)[..., None]
    batch = np.arange(len(images))[:, None, None]
    upper = padded[batch, top, left] * (1 - right) + padded[batch, top, left + 1] * right
    lower = padded[batch, top + 1, left] * (1 - right) + padded[batch, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
