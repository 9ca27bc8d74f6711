"""Paths as users type them, and our own files: written whole, read by one reader that names faults.

A reader sees the old content or the new one, never a part. What is read may still be damaged, by a
disk or by hand: `read_json` then says which file, what is wrong with it and what to do.
"""

import contextlib
import json
import os
import re
import reprlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pbr_jax import reading

_MOST = 2**31  # bytes of a file of ours; the list of a hundred million examples is smaller
NUMBER = (int, float)
"""The type of a number in JSON, for a form."""


class DamagedFile(ValueError):
    """A file of ours that cannot be used; says which, what is wrong with it, and what to do."""


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user typed; `~` and `~name` at its beginning are home folders.

    Variables such as `$HOME` are left to the shell. Messages show the text as it was typed.

    Raises:
      FileNotFoundError: it is empty, or begins with `~` and no such home folder is known.
    """
    if not os.fspath(text):
        raise FileNotFoundError("an empty path: a variable of the shell may not be set")
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        # A file may be called so: editors name a draft `~$draft.csv`.
        if path.exists():
            return path
        advice = "set HOME, or write" if path.parts[0] == "~" else "write"
        raise FileNotFoundError(
            f"{text}: no home folder is known for {path.parts[0]}; {advice} the path in full"
        ) from None


def write_bytes(path: Path | str, content: bytes) -> None:
    """Replaces the file at `path` by `content`, which is on disk when this returns.

    Whatever interrupts it leaves the old file as it was. An `OSError` names `path`.
    """
    # A name of its own for each writer: two that write the same file must not mix their parts.
    temporary = Path(f"{path}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: Path | str, text: str) -> None:
    """Replaces the file at `path` by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, tree: Mapping[str, Any]) -> None:
    """Replaces the file at `path` by `tree` as JSON, as `write_bytes` does.

    Raises:
      ValueError: a number is not finite, for which JSON has no form.
    """
    write_text(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


class Appended:
    """A file that grows by whole records: one that does not fit leaves no part of itself behind.

    So a full disk costs the records that come while it is full, and no others. Nothing is held back
    in memory.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens the file at `path`, made if it is not there, at its end."""
        self._path = str(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._end = os.fstat(self._file).st_size

    def append(self, record: bytes) -> None:
        """Adds `record`; an `OSError` names the file, which then is as it was."""
        try:
            rest = record
            while rest:  # a disk that fills up takes a part, and refuses the next
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise OSError(error.errno, error.strerror, self._path) from error
        self._end += len(record)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


def read_json(path: Path | str, form: Mapping[Any, Any], advice: str) -> dict[str, Any]:
    """The object in the JSON file at `path`, of which `form` holds.

    A form is a type, a tuple of types, `[form]` for a list, or a mapping from the keys that an
    object must have to forms; the key `...` stands for every other key. `advice` says what to do
    about a damaged file and ends the message.

    Raises:
      DamagedFile: it cannot be read, is no JSON in UTF-8, or has another form.
    """
    encoded = read_bytes(path, advice)
    try:
        content = json.loads(encoded.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path}: is not UTF-8, at byte {error.start}; {advice}") from error
    except json.JSONDecodeError as error:
        place = f", line {error.lineno}: is not JSON: {error.msg}"
        raise DamagedFile(
            f"{path}{place if error.doc.strip() else ': is empty'}; {advice}"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers too long, lists in lists without end
        raise DamagedFile(f"{path}: is not JSON that we wrote ({error}); {advice}") from error
    if fault := misfit(content, form):
        raise DamagedFile(f"{path}: {fault}; {advice}")
    return content


def read_bytes(path: Path | str, advice: str) -> bytes:
    """The content of the file at `path`; raises `DamagedFile`, which names it, if there is none."""
    try:
        return reading.read_bytes(path, _MOST)
    except ValueError as error:
        raise DamagedFile(f"{error}; {advice}") from error


def misfit(value: Any, form: Any, name: str = "") -> str:
    """Says where `value` has not the form that `read_json` describes; empty if it has."""
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            return f"{name or 'its content'} must be an object, not {reprlib.repr(value)}"
        missing = [key for key in form if key is not ... and key not in value]
        if missing:
            return f"{name or 'it'} lacks {', '.join(map(repr, missing))}"
        inner = [(form.get(key, form.get(..., object)), key, each) for key, each in value.items()]
    elif isinstance(form, list):
        if not isinstance(value, list):
            return f"{name} must be a list, not {reprlib.repr(value)}"
        inner = [(form[0], i, each) for i, each in enumerate(value)]
    else:
        return "" if isinstance(value, form) else f"{name} has a wrong value, {reprlib.repr(value)}"
    faults = (misfit(each, kind, f"{name}.{key}".strip(".")) for kind, key, each in inner)
    return next(filter(None, faults), "")


def set_aside(path: Path) -> Path:
    """Renames what is at `path` to a name that ends with `.broken`; returns that."""
    aside = path.with_name(f"{path.name}.broken")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.{number}.broken")
    return path.rename(aside)


# Orbax looks for files by patterns that begin with its folder, takes /gs for a bucket, and wants
# UTF-8: a path that is none of this means the same to all that read it.
_PLAIN = re.compile(r"/(?!(gs|s3|az|hf)(/|$))[A-Za-z0-9._/+=@,-]*")


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A path to an existing folder that no library can misread, whatever the folder is called.

    It is the folder's own, or that of a link to it which is removed afterwards.

    Raises:
      ValueError: the folder for temporary files has such a name too.
    """
    if _PLAIN.fullmatch(str(folder.absolute())):
        yield folder.absolute()
        return
    place = tempfile.gettempdir()
    if not _PLAIN.fullmatch(place):
        raise ValueError(
            f"TMPDIR = {place}: must have letters, digits and ._+=@,- only, since {folder} has"
            " others; set it to another folder, such as /tmp"
        )
    with tempfile.TemporaryDirectory(prefix="pbr-", dir=place) as links:
        link = Path(links) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link
