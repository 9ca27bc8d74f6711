"""Arrays of the user's own, in one `.npz` file."""

from zipfile import BadZipFile

import numpy as np

from pbr_jax.data.arrays import ArrayRecords
from pbr_jax.data.records import Dataset, Request
from pbr_jax.files import user_path

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def load(request: Request) -> Dataset:
    """Reads `train_images`, `train_labels`, `test_images`, `test_labels`.

    Images are [N, H, W, C], uint8 or floats in [0, 1]; labels are integers from 0. An array of
    strings `class_names` is optional; without it there are as many classes as the largest training
    label says. Nothing is unpickled.

    Raises:
      ValueError: no such file, not an `.npz` file, or arrays are missing or wrong; names them.
    """
    request.refuse_other_splits()
    path = request.path
    if path is None:
        raise ValueError("data.path = none: npz needs the path of its file")
    place = user_path(path)
    # All arrays at once: a damaged file is noticed here, and closed again.
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise ValueError(f"data.path = {path}: no such file; np.savez writes one") from error
    except (BadZipFile, OSError, EOFError, ValueError, TypeError) as error:
        raise ValueError(f"data.path = {path}: not a readable .npz file ({error})") from error
    if missing := [name for name in ARRAYS if name not in found]:
        raise ValueError(
            f"data.path = {path}: no array {', '.join(missing)}; it has {', '.join(sorted(found))}"
        )
    # Checked twice: without class names their number comes from these labels, which must be sound.
    train = ArrayRecords("training", found["train_images"], found["train_labels"])
    names = tuple(map(str, found.get("class_names", range(train.labels.max() + 1))))
    train = ArrayRecords("training", train.images, train.labels, len(names))
    test = ArrayRecords("test", found["test_images"], found["test_labels"], len(names))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"data.path = {path}: training images are {list(train.images.shape[1:])} and test "
            f"images {list(test.images.shape[1:])}: must agree in height, width and channels"
        )
    return Dataset(train, test, names)
