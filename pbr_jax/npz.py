"""Arrays in `.npz` files, of which every header is read before anything is unpacked.

A few megabytes can unpack to more than the memory holds, and a header can promise any shape. Both
stand in the file where they cost nothing to read. Nothing is unpickled.
"""

import contextlib
import math
import reprlib
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from pbr_jax.measure.memory import shortage
from pbr_jax.measure.text import format_bytes
from pbr_jax.reading import foreign, regular_size

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Larger arrays that shrink more than so many times hold one value over and over.
_LARGE, _RATIO = 2**28, 200


class _Fault(Exception):
    """What is wrong with a member, in words of ours."""


def names(path: Path | str) -> list[str]:
    """Names of the arrays, and of whatever else the archive holds.

    Raises:
      ValueError: it is no `.npz` file, or cannot be read; names it.
    """
    with _opened(path) as archive:
        return [*_members(archive)]


def read(path: Path | str, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays that are `wanted` and there, or all; others are not looked at.

    Raises:
      ValueError: the file is none, is damaged, or promises more than it holds or than the memory
        of the machine holds; names the file and the array.
    """
    with _opened(path) as archive:
        members = _members(archive)
        chosen = {name: members[name] for name in members if wanted is None or name in wanted}
        sizes = {name: _size(archive, name, member) for name, member in chosen.items()}
        # Bounded before the first byte is unpacked.
        if short := shortage(sum(sizes.values())):
            largest = max(sizes, key=sizes.__getitem__)
            raise _Fault(
                f"its arrays {short}; {largest} alone is {format_bytes(sizes[largest])}: store "
                "fewer or smaller ones"
            )
        return {name: _array(archive, name, member) for name, member in chosen.items()}


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`; every error inside the context becomes one that names it."""
    regular_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _Fault as fault:
        raise ValueError(f"{path}: {fault}") from fault
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged file can make zipfile and NumPy raise almost anything
        raise ValueError(f"{path}: not a readable .npz file ({_what(path, error)})") from error


def _what(path: Path | str, error: Exception) -> str:
    """What a file is that cannot be read as an archive."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return "one array of np.save; np.savez writes .npz files"
    if start.startswith(b"PK"):
        return f"cut short or damaged: {error}; copy or write it again"
    return foreign(start) or str(error)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _size(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> int:
    """Bytes of an array in memory, by its header and the archive's directory."""
    if member.compress_type == zipfile.ZIP_LZMA:  # may ask for gigabytes before its first byte
        raise _Fault(f"{name} is compressed with LZMA, as NumPy never does; write it with np.savez")
    with _member(archive, name, member) as file:
        shape, dtype = _header(file, name)
        size, held = dtype.itemsize * math.prod(shape), member.file_size - file.tell()
    if size != held or min(shape, default=0) < 0 or not dtype.itemsize:
        raise _Fault(
            f"array {name} should have shape {reprlib.repr(shape)} of {dtype}, by its header, but "
            f"has {held} bytes; write the file again"
        )
    if size > _LARGE and size > _RATIO * member.compress_size:
        raise _Fault(
            f"array {name} is {format_bytes(member.compress_size)} that unpack to "
            f"{format_bytes(size)}, almost all one value; if that is right, write it with np.savez"
        )
    return size


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array; raises `_Fault` where there is none that can be read."""
    try:
        shape, _, dtype = _READERS[np.lib.format.read_magic(file)](file)
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # a header is a Python literal, which can fail in many ways
        raise _Fault(f"{name} is no array of NumPy's; np.savez writes one") from error
    if dtype.hasobject:
        raise _Fault(
            f"array {name} holds Python objects, which are never unpickled; where they are numbers "
            f"or arrays of one shape, np.array(list({name})) makes one array of them"
        )
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    with _member(archive, name, member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """A member as a stream; what goes wrong inside the context is said by its name."""
    try:
        with archive.open(member) as file:
            yield file
    except _Fault:
        raise
    except Exception as error:  # as in `_opened`
        cause = str(error) or type(error).__name__
        raise _Fault(f"array {name} cannot be read ({cause}); copy or write it again") from error
