"""Image files in a folder and in the folders in it, and a count of what is left out there."""

import collections
import os
from pathlib import Path
from typing import NamedTuple

from pbr_jax.data.records import ImageRecord
from pbr_jax.reading import few, read_bytes, shown

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
SUFFIXES = _JPEG | {".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
ENDINGS = ", ".join(sorted(SUFFIXES))
_MOST_BYTES = 2**29  # as much as the most pixels that are decoded take when nothing is compressed
# Images that Pillow alone does not read.
_TO_CONVERT = {".heic", ".heif", ".avif", ".svg"}
# What systems write beside images, and do not hide.
_SYSTEM = {"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini"}
# Why something is left out, for one and for several.
_WHY = {
    "file in hidden folders": "files in hidden folders",
    "hidden file": "hidden files",
    "file of another ending": "files of other endings",
    "file beside the class folders": "files beside the class folders",
    "link that leads nowhere": "links that lead nowhere",
    "link to a folder that is read already": "links to folders that are read already",
    "folder named like an image, without one": "folders named like images, without one",
}
LeftOut = collections.Counter[tuple[str, str]]  # (a key of _WHY, name or ending) -> number


class Found(NamedTuple):
    """Files that are named like images, in the order of their paths, and what else there is."""

    files: list[Path]
    left_out: LeftOut


def read_image(file: str, label: int = 0) -> ImageRecord:
    """Reads an image file, without decoding it.

    Raises:
      ValueError: it cannot be read, is no regular file, or is too large; names it.
    """
    return ImageRecord(read_bytes(file, _MOST_BYTES), label, shown(file))


def find_images(folder: Path) -> Found:
    """The images in a folder and in all folders in it, linked ones too, each folder once.

    Raises:
      ValueError: a folder cannot be read; names it.
    """
    files: list[Path] = []
    left_out: LeftOut = collections.Counter()
    home = Path(os.path.realpath(folder))
    read = {home, *home.parents}  # a link to one of these would lead back to here
    folders, links = [folder], list[Path]()
    named_like_images = []
    while folders or links:
        # Links come last, so that what is also there without one keeps that path.
        place = folders.pop() if folders else links.pop(0)
        if place != folder:
            real = Path(os.path.realpath(place))
            if real in read:
                left_out["link to a folder that is read already", place.name] += 1
                continue
            read.add(real)
            if is_image(place):
                named_like_images.append(place)
        for entry in entries(place):
            path = place / entry.name
            if is_hidden(entry.name):
                left_out += hidden(entry)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_symlink() and path.is_dir():
                links.append(path)
            elif is_image(path):
                files.append(path)
            elif not path.exists():
                left_out["link that leads nowhere", entry.name] += 1
            else:
                left_out["file of another ending", path.suffix.lower() or "none"] += 1
    for place in named_like_images:
        if not any(file.is_relative_to(place) for file in files):
            left_out["folder named like an image, without one", place.name] += 1
    return Found(sorted(files), left_out)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in the order of the names.

    Raises:
      ValueError: it cannot be read; names it.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{shown(folder)}: cannot be read ({error.strerror})") from error


def is_image(path: Path) -> bool:
    """Whether a path is named like an image."""
    return path.suffix.lower() in SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's or an editor's own, by its name."""
    return name.startswith(".") or name.lower() in _SYSTEM


def hidden(entry: os.DirEntry[str]) -> LeftOut:
    """Count of a hidden file, or of the files in a hidden folder."""
    if not entry.is_dir(follow_symlinks=False):
        return collections.Counter({("hidden file", entry.name): 1})
    inside = sum(len(files) for _, _, files in os.walk(entry.path))
    return collections.Counter({("file in hidden folders", entry.name): inside})


def notes(where: Path, left_out: LeftOut) -> list[str]:
    """A line that says what was left out of a folder, by kind; none if nothing was."""
    kinds = []
    for one, several in _WHY.items():
        found = {name: number for (why, name), number in left_out.items() if why == one and number}
        if found:
            number = sum(found.values())
            what = one if number == 1 else several
            kinds.append(f"{number} {what} ({few([*map(shown, sorted(found))])})")
    if not kinds:
        return []
    convert = sorted(_TO_CONVERT & {name for _, name in left_out})
    advice = f"; convert {', '.join(convert)} to JPEG or PNG" if convert else ""
    return [f"{shown(where)}: left out: {', '.join(kinds)}{advice}"]
