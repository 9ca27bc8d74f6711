"""Float32 arrays that a model sees, made of images of any size, as pixels or as files.

The preprocessing of the paper and of BackRazor: training crops a random part and resizes it,
without flips; evaluation resizes the whole image; both bilinearly, whatever the aspect ratio.
Values are `(pixel - mean) / std` of pixels in [0, 1]. With 0.5 for both, as Google's ViTs expect,
they lie in [-1, 1].
`S` side of the model's image, `C` its channels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from PIL import Image

from pbr_jax.data.augment import affine, random_box
from pbr_jax.data.decoding import decode, decoded_size
from pbr_jax.data.records import Batch, Generators, ImageRecord
from pbr_jax.datasets import Augment

Box = tuple[int, int, int, int]  # left, top, right, bottom
MODES = {1: "L", 3: "RGB"}  # channels to Pillow's modes


@dataclasses.dataclass(frozen=True)
class ImageInputs:
    """Image records to `image` Float32[B, S, S, C] and `label` Int32[B]."""

    size: int  # S; images of other sizes are resized
    channels: int  # C, 1 or 3; grey pixels are repeated, files are converted
    augment: Augment = "off"  # where there are generators; "affine" is for small images in arrays
    mean: tuple[float, ...] = (0.5,)  # of pixels in [0, 1], one for all channels or one for each
    std: tuple[float, ...] = (0.5,)  # what `pixel - mean` is divided by

    def __call__(
        self, records: Sequence[ImageRecord], generators: Generators | None = None
    ) -> Batch:
        if isinstance(records[0].image, bytes):
            images = self._files(records, generators)
        else:
            images = self._arrays(records, generators)
        labels = np.array([record.label for record in records], np.int32)
        return {"image": images, "label": labels}

    def _files(
        self, records: Sequence[ImageRecord], generators: Generators | None
    ) -> Float32[np.ndarray, "B S S C"]:
        if self.augment == "affine":
            raise ValueError("augment = affine: for small images in arrays only; crop is for files")
        if self.channels not in MODES:
            raise ValueError(f"model.channels = {self.channels}: must be 1 or 3 for image files")
        crops = self._crops(records, generators)
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        scale, shift = self._in_a_row(255 * std), self._in_a_row(mean / std)
        # Written row by row, so that a batch is held once.
        images = np.empty((len(records), self.size, self.size, self.channels), np.float32)
        for row, record, crop in zip(images, records, crops, strict=True):
            assert isinstance(record.image, bytes)
            image = decode(record.image, record.name, MODES[self.channels], self.size, crop)
            np.divide(np.asarray(image).reshape(row.shape), scale, out=row)
            row -= shift  # in place: a batch of new arrays costs more than the arithmetic
        return images

    def _arrays(
        self, records: Sequence[ImageRecord], generators: Generators | None
    ) -> Float32[np.ndarray, "B S S C"]:
        images = np.stack([record.image for record in records])
        scale = np.float32(255 if images.dtype == np.uint8 else 1)
        images = images.astype(np.float32) / scale  # in [0, 1]
        if self.augment == "affine" and generators is not None:
            images = affine(images, generators)
        height, width, channels = images.shape[1:]
        if channels not in (1, self.channels):
            raise ValueError(
                f"model.channels = {self.channels}: {records[0].name} has {channels} channels; "
                f"train with model.channels={channels}, or take images of fewer, such as "
                f"{_fewer(channels, self.channels)}"
            )
        # Whole images of the right size are taken as they are.
        crops = self._crops(records, generators)
        if any(crops) or (height, width) != (self.size, self.size):
            whole = (0, 0, width, height)
            boxes = [random_box(width, height, crop) if crop else whole for crop in crops]
            images = np.stack(
                [resize(image, self.size, box) for image, box in zip(images, boxes, strict=True)]
            )
        images = np.repeat(images, self.channels // channels, axis=-1)
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return (images - self._in_a_row(mean)) / self._in_a_row(std)

    def _crops(
        self, records: Sequence[ImageRecord], generators: Generators | None
    ) -> Sequence[np.random.Generator | None]:
        """What draws the random part of each image; None takes the whole image."""
        return generators if self.augment == "crop" and generators else [None] * len(records)

    def _in_a_row(self, numbers: np.ndarray) -> Float32[np.ndarray, "..."]:
        """One of `numbers` for each value in a row of pixels, [S, C]; a scalar where all agree."""
        own = numbers.astype(np.float32)
        same = (own == own[0]).all()  # a scalar is faster
        return own[:1].reshape(()) if same else np.tile(own, (self.size, 1))


def image_size(record: ImageRecord) -> tuple[int, int]:
    """Width and height of an image that can be used, as it is seen.

    Raises:
      ValueError: it cannot be decoded; names it.
    """
    if not isinstance(record.image, bytes):
        return record.image.shape[1], record.image.shape[0]
    return decoded_size(record.image, record.name)


def _fewer(channels: int, wanted: int) -> str:
    """Code that leaves `wanted` channels of images, or one."""
    if channels == 4 and wanted == 3:
        return "images[..., :3], without the transparency"
    if channels == 2:
        return "images[..., :1], without the transparency"
    return "images.mean(axis=-1, keepdims=True).astype(images.dtype), in grey"


def resize(
    image: Float32[np.ndarray, "H W C"], size: int, box: Box
) -> Float32[np.ndarray, "S S C"]:
    """The part of the image in `box` at `size` x `size` pixels, bilinearly."""
    left, top, right, bottom = box
    planes = [
        Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), Image.Resampling.BILINEAR)
        for plane in np.moveaxis(image[top:bottom, left:right], -1, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
