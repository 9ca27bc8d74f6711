"""The 1,797 handwritten digits that scikit-learn ships: 8x8 grey images, no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (its test set), https://doi.org/10.24432/C50P49, CC BY 4.0.
"""

from collections.abc import Sequence

import numpy as np

from pbr_jax.data.arrays import ArrayRecords
from pbr_jax.data.records import Dataset, Request
from pbr_jax.data.sample import shares

NUM_TEST = 450
_SPLIT_SEED = 0


def load(request: Request) -> Dataset:
    """Loads all ten digits, as `load_classes` splits them.

    Raises:
      ValueError: a path, or a split other than "test", is asked for.
    """
    request.refuse_other_splits()
    if request.path is not None:
        raise ValueError(f"data.path = {request.path}: digits are in scikit-learn; take no path")
    return load_classes(range(10))


def load_classes(classes: Sequence[int]) -> Dataset:
    """Loads 1,347 training and 450 test images, uint8 [N, 8, 8, 1] in 0..255.

    The split is fixed and stratified: each digit has the same share of the test images as of all.

    Args:
      classes: the digits to keep, in this order: label i stands for `classes[i]`. Each image
        stays in the split that it has among all ten digits.

    Raises:
      ValueError: `classes` is empty, or holds a number twice or outside 0..9.
    """
    # Slow to import, and only needed here.
    from sklearn.datasets import load_digits

    # Its values are 0..16.
    values, labels = load_digits(return_X_y=True)
    images = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    kept = tuple(classes)
    if not kept or len(set(kept)) != len(kept) or not set(kept) <= set(range(10)):
        raise ValueError(f"classes = {list(kept)}: must be different digits in 0..9, at least one")
    # Split before digits are left out, so that each image stays in its split.
    in_test = stratified_split(labels, NUM_TEST, _SPLIT_SEED)
    new_labels = np.full(10, -1, np.int32)
    new_labels[list(kept)] = np.arange(len(kept), dtype=np.int32)

    def split(name: str, rows: np.ndarray) -> ArrayRecords:
        rows = rows & np.isin(labels, kept)
        return ArrayRecords(name, images[rows], new_labels[labels[rows]])

    names = tuple(map(str, kept))
    return Dataset(split("training", ~in_test), split("test", in_test), names)


def stratified_split(labels: np.ndarray, num_test: int, seed: int) -> np.ndarray:
    """A mask with `num_test` true entries, spread over the classes in proportion to their sizes."""
    classes, counts = np.unique(labels, return_counts=True)
    quota = shares(counts, num_test)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    in_test = np.zeros(len(labels), bool)
    for label, number in zip(classes, quota, strict=True):
        in_test[generator.permutation(np.flatnonzero(labels == label))[:number]] = True
    return in_test
