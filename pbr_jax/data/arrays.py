"""Data sets held in memory, and the order in which training and evaluation see them.

`B` batch, `H` height, `W` width, `C` channels. Images are uint8 in 0..255 or floats in [0, 1]; the
model sees float32 in [-1, 1] (mean and standard deviation 0.5, as ViT's public weights expect).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Int, Num

Images = Num[np.ndarray, "N H W C"]
Labels = Int[np.ndarray, " N"]
Batch = dict[str, np.ndarray]  # image Float32[B, H, W, C], label Int32[B], for evaluation mask
Augment = Callable[
    [Float32[np.ndarray, "B H W C"], np.random.Generator], Float32[np.ndarray, "B H W C"]
]

# The first entry after the seed keeps the two kinds of random numbers apart.
_ORDER, _AUGMENT = 0, 1


class Source(NamedTuple):
    """The examples of one split."""

    images: Images
    labels: Labels


class Dataset(NamedTuple):
    """A data set with its two splits; label i means `class_names[i]`."""

    train: Source
    test: Source
    num_classes: int
    class_names: tuple[str, ...]


class ArrayLoader:
    """Infinite iterator over shuffled training batches, each a pure function of (seed, index).

    Every epoch is a fresh permutation, drawn without replacement. The last, incomplete batch of an
    epoch is dropped, so that all batches have one shape; the examples dropped differ per epoch.

    Args:
      images, labels: the examples; checked by `check_source`.
      batch_size: examples in a batch, at most their number.
      seed: not negative; with the batch's index it decides order and augmentation.
      augment: called with float32 images in [0, 1] and a generator of its own for each batch.
    """

    def __init__(
        self,
        images: Images,
        labels: Labels,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
    ) -> None:
        check_source("training", Source(images, labels))
        if not 1 <= batch_size <= len(labels):
            raise ValueError(
                f"batch_size = {batch_size}: must be between 1 and the number of training "
                f"examples, {len(labels)}"
            )
        if seed < 0:
            raise ValueError(f"seed = {seed}: must not be negative")
        self._source = Source(images, labels)
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment
        self._index = 0
        self._order: tuple[int, np.ndarray] | None = None  # epoch and its permutation

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the examples."""
        return len(self._source.labels) // self._batch_size

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        epoch, position = divmod(self._index, self.batches_per_epoch)
        rows = self._permutation(epoch)[position * self._batch_size :][: self._batch_size]
        images = to_unit(self._source.images[rows])
        if self._augment is not None:
            images = self._augment(images, self._generator(_AUGMENT, self._index))
        self._index += 1
        return {"image": normalize(images), "label": self._source.labels[rows].astype(np.int32)}

    def state(self) -> dict[str, Any]:
        """The position, and what it depends on; JSON-able."""
        return {
            "batch_index": self._index,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "num_examples": len(self._source.labels),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues at a position that `state` gave, so that the next batch is bit-equal.

        Raises:
          ValueError: this loader has other data, batch size or seed than the one that gave `state`.
        """
        for name, here in self.state().items():
            if name != "batch_index" and state[name] != here:
                raise ValueError(
                    f"data {name} = {here}: the checkpoint was saved with {state[name]}; "
                    "use that, or another work directory"
                )
        self._index = state["batch_index"]

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = self._generator(_ORDER, epoch).permutation(len(self._source.labels))
            self._order = (epoch, order)
        return self._order[1]

    def _generator(self, kind: int, index: int) -> np.random.Generator:
        sequence = np.random.SeedSequence((self._seed, kind, index))
        return np.random.Generator(np.random.Philox(sequence))


def test_batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """Yields every example exactly once, in order, in batches of one shape.

    The last batch is filled up with zeros. `mask: Bool[B]` is true for examples and false for
    filling.
    """
    check_source("test", source)
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: must be at least 1")
    for start in range(0, len(source.labels), batch_size):
        images = normalize(to_unit(source.images[start : start + batch_size]))
        labels = source.labels[start : start + batch_size].astype(np.int32)
        mask = np.ones(len(labels), bool)
        missing = batch_size - len(labels)
        yield {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, (0, missing)),
            "mask": np.pad(mask, (0, missing)),
        }


def to_unit(images: Images) -> Float32[np.ndarray, "N H W C"]:
    """Float32 images in [0, 1]."""
    scale = 255 if images.dtype == np.uint8 else 1
    return images.astype(np.float32) / np.float32(scale)


def normalize(images: Float32[np.ndarray, "N H W C"]) -> Float32[np.ndarray, "N H W C"]:
    """Maps [0, 1] to [-1, 1]: mean 0.5, standard deviation 0.5."""
    return (images - np.float32(0.5)) / np.float32(0.5)


def check_source(name: str, source: Source, num_classes: int | None = None) -> None:
    """Raises `ValueError` with the first thing that is wrong with the arrays of a split."""
    images, labels = source
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
    if images.dtype != np.uint8:
        _check_float_images(name, images)
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


def check_labels(dataset: Dataset) -> None:
    """Raises `ValueError` if the test split has classes that training never shows."""
    unseen, counts = np.unique(
        dataset.test.labels[~np.isin(dataset.test.labels, dataset.train.labels)],
        return_counts=True,
    )
    if len(unseen):
        named = ", ".join(
            f"{dataset.class_names[label]} ({count} examples)"
            for label, count in zip(unseen, counts, strict=True)
        )
        raise ValueError(
            f"test labels never seen in training: {named}; move examples of them to the training "
            "split, or leave them out of the test split"
        )
