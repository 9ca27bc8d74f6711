"""Examples to predict: image files, arrays of images, rows of text; labels are not read."""

from collections.abc import Sequence
from pathlib import Path

from pbr_jax import npz
from pbr_jax.data.arrays import image_faults, usable
from pbr_jax.data.image_files import ENDINGS, find_images, notes, read_image
from pbr_jax.data.records import ImageRecord, Record, TextRecord
from pbr_jax.data.tables import Fault, read_rows
from pbr_jax.datasets import Kind

TEXTS = (".csv", ".jsonl")
Item = Path | Record | str  # an image file, an example, or what is wrong with one


class Unlabelled:
    """Examples, read one by one; safe to read from several threads. Their labels are 0.

    Asking for one that cannot be read raises a ValueError that names it. `notes` are lines for the
    user about what is no example.
    """

    def __init__(self, items: Sequence[Item], notes: Sequence[str] = ()) -> None:
        self._items, self.notes = items, notes

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
    items: list[Item] = []
    left_out: list[str] = []
    for path in paths:
        if kind == "image" and path.is_dir():
            found = find_images(path)
            left_out += notes(path, found.left_out)
            if not found.files:
                lines = "\n".join([f"{path}: a folder without images ({ENDINGS})", *left_out])
                raise ValueError(lines)
            items += found.files
        else:
            items += _texts(path) if kind == "text" else _images(path)
    if not items:
        raise ValueError(f"{', '.join(map(str, paths))}: no examples to predict")
    return Unlabelled(items, left_out)


def _images(path: Path) -> Sequence[Item]:
    if path.suffix.lower() in TEXTS:
        raise ValueError(f"{path}: text, but the model of this run reads images")
    return _arrays(path) if path.suffix.lower() == ".npz" else [path]


def _arrays(path: Path) -> Sequence[Item]:
    there = npz.names(path)
    name = next((name for name in ("images", "test_images") if name in there), None)
    if name is None:
        raise ValueError(f"{path}: no array images or test_images; it has {', '.join(there)}")
    images = npz.read(path, (name,))[name]
    if faults := image_faults(f"{path}: {name}", images):
        raise ValueError("\n".join(faults))
    # As in training; a single image may still be left out.
    return [
        ImageRecord(image, 0, f"{path}[{row}]") if good else f"{path}[{row}]: has NaN or infinity"
        for row, (image, good) in enumerate(zip(images, usable(images), strict=True))
    ]


def _texts(path: Path) -> Sequence[Item]:
    if path.suffix.lower() not in TEXTS or not path.is_file():
        what = "no such file" if not path.exists() else f"must be one of {', '.join(TEXTS)}"
        raise ValueError(f"{path}: {what}; the model of this run reads texts")
    return [
        row.text if isinstance(row, Fault) else TextRecord(row.text_a, row.text_b, 0, row.name)
        for row in read_rows(path, labelled=False)
    ]
