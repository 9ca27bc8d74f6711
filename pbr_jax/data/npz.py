"""Arrays of the user's own, in one `.npz` file."""

import numpy as np

from pbr_jax import npz
from pbr_jax.data.arrays import NUMBER_THEM, ArrayRecords, image_faults, usable
from pbr_jax.data.folders import composed, repeated, settle
from pbr_jax.data.records import Dataset, Request, Skipped
from pbr_jax.files import user_path
from pbr_jax.reading import few

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def load(request: Request) -> Dataset:
    """Reads `train_images`, `train_labels`, `test_images`, `test_labels`.

    Images are [N, H, W, C], uint8 or floats in [0, 1]; labels are integers from 0. An array of
    strings `class_names` is optional; without it there are as many classes as the largest training
    label says. Nothing is unpickled, and other arrays are not read.

    Raises:
      ValueError: no such file, not an `.npz` file, or arrays are missing or wrong; names them.
    """
    request.refuse_other_splits()
    path = request.path
    if path is None:
        raise ValueError("data.path = none: npz needs the path of its file")
    place = user_path(path)
    if not place.exists():
        raise ValueError(f"data.path = {path}: no such file; np.savez writes one")
    try:
        found = npz.read(place, (*ARRAYS, "class_names"))
        if missing := [name for name in ARRAYS if name not in found]:
            there = ", ".join(sorted(npz.names(place))) or "none"
            raise ValueError(f"{path}: no array {', '.join(missing)}; it has {there}")
    except ValueError as error:
        raise ValueError(f"data.path = {error}") from error
    skipped: tuple[Skipped, ...] = ()
    if request.on_error == "skip":
        skipped = tuple(_skip(found, split, path) for split in ("train", "test"))
    names = _given_names(found.get("class_names"))
    train = ArrayRecords(
        "training", found["train_images"], found["train_labels"], len(names) or None
    )
    names = names or _numbers(train.labels)
    test = ArrayRecords("test", found["test_images"], found["test_labels"], len(names))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"data.path = {path}: training images are {list(train.images.shape[1:])} and test "
            f"images {list(test.images.shape[1:])}: must agree in height, width and channels"
        )
    return Dataset(train, test, names, skipped)


def _skip(found: dict[str, np.ndarray], split: str, path: str) -> Skipped:
    """Leaves out the images of a split that cannot be used, and their labels."""
    images, labels = f"{split}_images", f"{split}_labels"
    # Where all of them are wrong they are refused with the rest, not left out.
    keep = np.ones(1, bool) if image_faults(images, found[images]) else usable(found[images])
    faults = [f"{images}[{row}]: has NaN or infinity" for row in np.flatnonzero(~keep)]
    skipped = settle(faults, len(keep), "images", f"{path}, {images}", "skip")
    if faults and found[labels].shape[:1] == keep.shape:
        found[images], found[labels] = found[images][keep], found[labels][keep]
    return skipped


def _given_names(names: np.ndarray | None) -> tuple[str, ...]:
    """The names of the classes, none where there is no array of them."""
    if names is None:
        return ()
    if names.ndim != 1 or not len(names):
        raise ValueError(f"class_names have shape {names.shape}: must be [classes]")
    if names.dtype.kind == "S":  # bytes are how some languages store strings
        try:
            names = np.char.decode(names, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"class_names are bytes that are not UTF-8 ({error})") from error
    found = tuple(map(str, names))
    if twice := repeated(map(composed, found)):
        raise ValueError(f"class_names have {few(twice)} more than once")
    return found


def _numbers(labels: np.ndarray) -> tuple[str, ...]:
    """The numbers of the classes up to the largest label, where they have no names."""
    highest, distinct = int(labels.max()), np.unique(labels)
    # Numbers with a few gaps are classes; with more gaps than labels they are numbers of something.
    if highest >= max(2 * len(distinct), min(100 * len(distinct), 100_000), 1000):
        gap = next(n for n, label in enumerate(distinct) if n != label)
        raise ValueError(
            f"training labels are {len(distinct)} different numbers up to {highest}, and {gap} is "
            f"the first that is missing: without class_names they must count the classes from 0; "
            f"{NUMBER_THEM}"
        )
    return tuple(map(str, range(highest + 1)))
