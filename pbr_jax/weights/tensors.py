"""Files of safetensors, whose header is looked at before the library opens them.

The header is JSON and says the type, shape and place of every array, so what is missing from a file
that was cut short is known to the byte. Arrays are views of the file, which the system reads where
they are: memory has one copy of a model, the one that is made of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pbr_jax.files import misfit
from pbr_jax.measure.memory import shortage
from pbr_jax.weights.layout import Arrays

_LENGTH = 8  # bytes of the header's length, little-endian, before the header
_LONGEST = 100_000_000  # bytes of a header that the library reads
_READ = {  # name of a type -> the same in NumPy with ml_dtypes
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "BOOL": "bool",
    **{f"{s[0].upper()}{n}": f"{s}{n}" for s in ("int", "uint") for n in (8, 16, 32, 64)},
}
_FORM = {...: {"dtype": str, "shape": [int], "data_offsets": [int]}}
_AGAIN = "download it again"


def begins(start: bytes) -> bool:
    """Whether a file that begins with `start` is one of safetensors."""
    return start[4:9] == b"\0\0\0\0{"  # a length below 4 GB, and the brace of the header


def read(path: Path) -> Arrays:
    """All arrays of a file, which cannot be written to.

    Raises:
      ValueError: it is cut short or damaged, its arrays have types that are not read, or they are
        larger than the memory of the machine; names the file.
    """
    from safetensors import SafetensorError, safe_open

    header, start = _checked(path)
    try:
        # The library sees to it that arrays have the bytes of their shapes and leave no gap.
        with safe_open(path, framework="numpy"):
            pass
        content = np.memmap(path, np.uint8, mode="r")
        return {name: _array(content[start:], each) for name, each in sorted(header.items())}
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"weights {path}: damaged ({error}); {_AGAIN}") from error


def _array(content: np.ndarray, each: Mapping[str, Any]) -> np.ndarray:
    """The array that the header describes so, as a view of what is behind the header."""
    first, end = each["data_offsets"]
    dtype = np.dtype(getattr(ml_dtypes, _READ[each["dtype"]], _READ[each["dtype"]]))
    return np.asarray(content[first:end]).view(dtype).reshape(each["shape"])


def _checked(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a file whose arrays can be read, and where they begin."""
    size = path.stat().st_size
    header, start = _header(path, size)
    # What the header says must be there.
    end = start + max(
        (offset for each in header.values() for offset in each["data_offsets"]), default=0
    )
    if end > size:
        raise ValueError(
            f"weights {path}: cut short: {end - size} of {end} bytes are missing; {_AGAIN}"
        )
    if end < size:
        raise ValueError(f"weights {path}: damaged: {size - end} bytes follow its arrays; {_AGAIN}")
    # What can be read of it, before the first array is.
    if unread := sorted({each["dtype"] for each in header.values()} - _READ.keys()):
        raise ValueError(
            f"weights {path}: has arrays of type {', '.join(unread)}, which are not read; take the"
            " file of the same model in float32, float16 or bfloat16"
        )
    check_memory(path, size)
    return header, start


def check_memory(path: Path, size: int) -> None:
    """Raises `ValueError` where arrays of `size` bytes are more than the memory can take."""
    if short := shortage(size):
        raise ValueError(
            f"weights {path}: its arrays {short}; close other programs, or take a smaller model"
        )


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """What the header says of each array, and where the arrays begin in the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        start = _LENGTH + length
        if length > _LONGEST:
            raise ValueError(f"weights {path}: damaged: a header of {length} bytes; {_AGAIN}")
        if start > size:
            raise ValueError(
                f"weights {path}: cut short: {start - size} bytes of its header are missing, and"
                f" all arrays; {_AGAIN}"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"weights {path}: damaged: its header is no JSON ({error}); {_AGAIN}"
        ) from error
    header.pop("__metadata__", None)
    if fault := misfit(header, _FORM):
        raise ValueError(f"weights {path}: damaged: in its header {fault}; {_AGAIN}")
    return header, start
