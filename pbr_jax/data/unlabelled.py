"""Examples to predict: image files, arrays of images, rows of text; labels are not read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pbr_jax.data.image_folder import SUFFIXES, is_image, read_image
from pbr_jax.data.records import ImageRecord, Record, TextRecord
from pbr_jax.data.tables import Fault, read_rows
from pbr_jax.datasets import Kind

TEXTS = (".csv", ".jsonl")
Item = Path | Record | str  # an image file, an example, or what is wrong with one


class Unlabelled:
    """Examples, read one by one; safe to read from several threads. Their labels are 0.

    Asking for one that cannot be read raises a ValueError that names it.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Record:
        item = self._items[index]
        if isinstance(item, str):
            raise ValueError(item)
        return read_image(str(item)) if isinstance(item, Path) else item


def find(paths: Sequence[Path], kind: Kind) -> Unlabelled:
    """The examples in files and folders, in the order given.

    Args:
      paths: for images, files of one image each, folders of them, and `.npz` files with an array
        `images`, or else `test_images`, [N, H, W, C]; for texts, `.csv` and `.jsonl` files.
      kind: what the model reads.

    Raises:
      ValueError: a folder without images, a file of another kind, or no examples at all.
    """
    read = _texts if kind == "text" else _images
    items = [item for path in paths for item in read(path)]
    if not items:
        raise ValueError(f"{', '.join(map(str, paths))}: no examples to predict")
    return Unlabelled(items)


def _images(path: Path) -> Sequence[Item]:
    if path.is_dir():
        found = sorted(filter(is_image, path.rglob("*")))
        if not found:
            raise ValueError(f"{path}: a folder without images ({', '.join(sorted(SUFFIXES))})")
        return found
    if path.suffix in TEXTS:
        raise ValueError(f"{path}: text, but the model of this run reads images")
    return _arrays(path) if path.suffix == ".npz" else [path]


def _arrays(path: Path) -> Sequence[Item]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            name = next((n for n in ("images", "test_images") if n in archive.files), None)
            if name is None:
                raise ValueError(f"no array images or test_images among {archive.files}")
            images = archive[name]
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an .npz file with images ({error})") from error
    if images.ndim != 4:
        raise ValueError(f"{path}: {name} has shape {images.shape}: must be [N, H, W, C]")
    return [ImageRecord(image, 0, f"{path}[{row}]") for row, image in enumerate(images)]


def _texts(path: Path) -> Sequence[Item]:
    if path.suffix not in TEXTS or not path.is_file():
        what = "no such file" if not path.exists() else f"must be one of {', '.join(TEXTS)}"
        raise ValueError(f"{path}: {what}; the model of this run reads texts")
    return [
        row.text if isinstance(row, Fault) else TextRecord(row.text_a, row.text_b, 0, row.name)
        for row in read_rows(path, labelled=False)
    ]
