"""Random changes of images; NumPy only."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

SCALE = (0.05, 1.0)  # share of the area, as in BackRazor and the paper
RATIO = (3 / 4, 4 / 3)  # width over height
_ATTEMPTS = 10


def random_box(
    width: int, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random part of an image: left, top, right, bottom.

    Its share of the area is uniform in `SCALE` and the logarithm of its aspect ratio in that of
    `RATIO`, as in RandomResizedCrop of torchvision. A part that does not fit into the image is
    drawn again; after ten, the largest centred part of an allowed aspect ratio is taken.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(*SCALE)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        # Rounding can also leave a part of no pixels.
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(width - w + 1))
            top = int(generator.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def affine(
    images: Float32[np.ndarray, "B H W C"],
    generators: Sequence[np.random.Generator],
    *,
    shift: float = 0.5,
    degrees: float = 10.0,
    scale: float = 0.1,
) -> Float32[np.ndarray, "B H W C"]:
    """Shifts, rotates and scales each image by its own random amount.

    The amounts are uniform. Pixels are interpolated linearly, with zeros outside the image.

    Args:
      generators: sources of the amounts, one for each image.
      shift: largest shift along each axis, in pixels.
      degrees: largest rotation either way.
      scale: images are enlarged by a factor in [1 - scale, 1 + scale]; below 1.

    Raises:
      ValueError: a limit is negative, or `scale` is 1 or more.
    """
    if shift < 0 or degrees < 0 or not 0 <= scale < 1:
        raise ValueError(
            f"shift = {shift}, degrees = {degrees}, scale = {scale}: must not be negative, and "
            "scale must be below 1"
        )
    amounts = np.stack([generator.uniform(-1, 1, (4, 1, 1)) for generator in generators], axis=1)
    rows, columns = shift * amounts[0], shift * amounts[1]
    angle, factor = np.deg2rad(degrees * amounts[2]), 1 + scale * amounts[3]
    # Offsets from the centre of the shifted image, then where each output pixel comes from: turned
    # and scaled back about that centre.
    height, width = images.shape[1:3]
    y = np.arange(height)[None, :, None] - (height - 1) / 2 - rows
    x = np.arange(width)[None, None, :] - (width - 1) / 2 - columns
    cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
    source_rows = cos * y - sin * x + (height - 1) / 2
    source_columns = sin * y + cos * x + (width - 1) / 2
    return sample_bilinear(images, source_rows, source_columns)


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
    # Between the two columns of each row, then between the two rows.
    upper = padded[batch, top, left] * (1 - right) + padded[batch, top, left + 1] * right
    lower = padded[batch, top + 1, left] * (1 - right) + padded[batch, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
