"""CUB-200-2011, birds of 200 species, from the archive of its authors.

C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie, The Caltech-UCSD Birds-200-2011 dataset,
Technical Report CNS-TR-2011-001, California Institute of Technology, 2011.
https://data.caltech.edu/records/65de6-vp158

The builder of TFDS needs TensorFlow, OpenCV and a second archive, so the archive is unpacked and
read as it is. A `caltech_birds2011` that was prepared elsewhere, as array_record, is read as well.
"""

import tarfile
import tempfile
import zlib
from pathlib import Path

from pbr_jax.data import tfds
from pbr_jax.data.image_folder import FileRecords, sound
from pbr_jax.data.records import Dataset, Request, Skipped
from pbr_jax.files import user_path
from pbr_jax.reading import START, foreign, read_lines

ARCHIVE = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
FOLDER = "CUB_200_2011"
_TABLES = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")


def load(request: Request) -> Dataset:
    """Opens both splits, as the archive divides them, with its class names.

    Raises:
      ValueError: the data set is not prepared, or files of it are missing.
    """
    place = tfds.data_dir(request.path)
    folder = place / FOLDER
    if not folder.is_dir():
        if tfds.find_prepared(request.name, request.path) is not None:
            return tfds.load(request)
        where = f" --path {request.path}" if request.path else ""
        raise ValueError(
            f"data set cub200: not prepared in {place}\n"
            f"Download {ARCHIVE} (1.2 GB) with a browser; then\n"
            f"`pbr data prepare cub200 --archive CUB_200_2011.tgz{where}` unpacks it there."
        )
    request.refuse_other_splits()

    # Each table goes by the number of an image, or of a class; both count from 1.
    files, labels, names, training = (_table(folder / table) for table in _TABLES)
    numbers = [str(number) for number in range(1, len(names) + 1)]
    agree = files.keys() == labels.keys() == training.keys() and {*labels.values()} <= {*names}
    if not agree or {*numbers} != {*names} or not {*training.values()} <= {"0", "1"}:
        raise ValueError(
            f"{folder}: {', '.join(_TABLES)} do not agree; remove the folder and prepare it again"
        )

    def split(flag: str) -> tuple[FileRecords, Skipped]:
        rows = [number for number in files if training[number] == flag]
        images = [folder / "images" / files[number] for number in rows]
        records = FileRecords(images, [int(labels[number]) - 1 for number in rows])
        return sound(records, folder, request.on_error)

    (train, train_skipped), (test, test_skipped) = split("1"), split("0")
    classes = tuple(names[number] for number in numbers)
    return Dataset(train, test, classes, (train_skipped, test_skipped))


def _table(file: Path) -> dict[str, str]:
    """Reads a file with a number and a value on each line."""
    try:
        lines = read_lines(file)
    except ValueError as error:
        raise ValueError(f"{error}; remove {file.parent} and prepare it again") from error
    table: dict[str, str] = {}
    for line_number, line in enumerate(lines, start=1):
        number, _, value = line.strip().partition(" ")
        if not number:  # behind the end of the last line
            continue
        if not value:
            raise ValueError(f"{file}:{line_number}: must have a number and a value")
        table[number] = value
    return table


def prepare(name: str, path: str | None = None, archive: str | None = None) -> Path:
    """Unpacks the archive, unless that was done; returns the folder.

    Raises:
      ValueError: there is no archive, or it is another file, such as a web page saved under its
        name.
    """
    folder = tfds.data_dir(path) / FOLDER
    if folder.is_dir():
        return folder
    if archive is None:
        raise ValueError(
            f"{name}: needs --archive FILE; download {ARCHIVE} (1.2 GB) with a browser first"
        )
    file = user_path(archive)
    if not file.is_file():
        raise ValueError(f"--archive {archive}: no such file; download {ARCHIVE} with a browser")
    _check_archive(file)
    # Unpacked beside its place, so that the name appears only when everything is there.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER}.", dir=folder.parent) as partial:
        try:
            with tarfile.open(file) as tar:
                _unpack(tar, Path(partial))
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"--archive {archive}: cannot be unpacked ({error}); it has {file.stat().st_size} "
                "bytes, perhaps of a download that was cut short"
            ) from error
        unpacked = Path(partial) / FOLDER
        if missing := [table for table in _TABLES if not (unpacked / table).is_file()]:
            raise ValueError(f"--archive {archive}: has no {FOLDER}/{missing[0]}; take {ARCHIVE}")
        unpacked.rename(folder)
    return folder


def _unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """Unpacks all of it; raises TarError for links and paths that lead outside."""
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    # Python before 3.11.4, as in Debian 12, knows no filter: the archive has files and folders.
    for member in tar.getmembers():
        inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
        if not (inside and (member.isfile() or member.isdir())):
            raise tarfile.TarError(f"{member.name} leads outside")
    tar.extractall(folder)


def _check_archive(file: Path) -> None:
    """Raises `ValueError` for what a browser may have saved instead of the archive."""
    with open(file, "rb") as stream:
        start = stream.read(START)
    what = foreign(start)
    if what and b"Google" in start:
        what = "Google's warning that it cannot scan the file for viruses; confirm the download"
    if what:
        raise ValueError(f"--archive {file}: is {what}; take {ARCHIVE}")
    if not tarfile.is_tarfile(file):
        raise ValueError(f"--archive {file}: not a tar archive; download {ARCHIVE}")
