"""Records that are held in memory, as one array of images and one of labels."""

import numpy as np
from jaxtyping import Int, Num

from pbr_jax.data.records import ImageRecord

Images = Num[np.ndarray, "N H W C"]
Labels = Int[np.ndarray, " N"]


class ArrayRecords:
    """Images, uint8 in 0..255 or floats in [0, 1], and their labels from 0, as `Records`.

    Raises:
      ValueError: with the first thing that is wrong with the arrays; names the split.
    """

    def __init__(
        self, name: str, images: Images, labels: Labels, num_classes: int | None = None
    ) -> None:
        _check(name, images, labels, num_classes)
        self.name, self.images, self.labels = name, images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> ImageRecord:
        name = f"{self.name} example {index}"
        return ImageRecord(self.images[index], int(self.labels[index]), name)


def _check(name: str, images: Images, labels: Labels, num_classes: int | None) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"{name} images have shape {images.shape}: must be [N, height, width, channels]"
        )
    if images.size == 0:
        raise ValueError(f"{name} images are empty: shape {images.shape}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name} labels are {labels.dtype} of shape {labels.shape}: must be integers of "
            "shape [N]"
        )
    if len(images) != len(labels):
        raise ValueError(f"{name} has {len(images)} images and {len(labels)} labels: must agree")
    if images.dtype != np.uint8:  # whose values are all good
        _check_float_images(name, images)
    # Labels come last: their limits mean nothing before the shapes agree.
    low, high = labels.min(), labels.max()
    if low < 0 or (num_classes is not None and high >= num_classes):
        wanted = "0 or more" if num_classes is None else f"in 0..{num_classes - 1}"
        row = int(np.argmin(labels) if low < 0 else np.argmax(labels))
        raise ValueError(f"{name} label {labels[row]} of example {row}: must be {wanted}")


def _check_float_images(name: str, images: Images) -> None:
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name} images are {images.dtype}: must be uint8, or floats in [0, 1]")
    wrong = ~np.isfinite(images).all(axis=(1, 2, 3))
    if wrong.any():
        raise ValueError(
            f"{name} images have NaN or infinity in {wrong.sum()} of {len(images)} examples, "
            f"first in example {int(np.argmax(wrong))}: remove or repair them"
        )
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"{name} images lie in [{images.min():.4g}, {images.max():.4g}]: floats must lie in "
            "[0, 1]; divide them, or store them as uint8"
        )
