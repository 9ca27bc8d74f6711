"""Files of the user's: only regular ones are read, and what is wrong with one is said by its name.

A pipe or a device that is named like a file would be waited for without end, and a file that is
larger than it can reasonably be would fill the memory before anything could be said about it.
"""

import codecs
import os
import re
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# First bytes -> what is often saved in place of the file itself.
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file itself",
    b"<": "a web page; download the file itself",
}
_TEXT_BYTES = 2**26  # lists of names and words are far smaller


def shown(path: Path | str) -> str:
    """A path as it can be printed: bytes that are not UTF-8 are shown as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def regular_size(path: Path | str) -> int:
    """Number of bytes of the regular file at `path`, or at the end of a link.

    Raises:
      ValueError: nothing is there, or something else; names it.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        cause = error.strerror if isinstance(error, OSError) else str(error)
        target = f"; a link to {shown(os.readlink(path))}" if os.path.islink(path) else ""
        raise ValueError(f"{shown(path)}: cannot be read ({cause}{target})") from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a special file")
        raise ValueError(f"{shown(path)}: is {kind}, not a file")
    return found.st_size


def read_bytes(path: Path | str, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
      ValueError: it cannot be read, or is larger; names it.
    """
    size = regular_size(path)
    if size > most:
        raise ValueError(f"{shown(path)}: has {size} bytes; at most {most} are read")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{shown(path)}: cannot be read ({error.strerror})") from error


def read_lines(path: Path | str) -> list[str]:
    """The lines of a text file in UTF-8, which may begin with a byte-order mark.

    Lines end as editors end them: with a line feed, a carriage return, or both.

    Raises:
      ValueError: it cannot be read, or is not UTF-8; names it, and the line.
    """
    content = read_bytes(path, _TEXT_BYTES)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: is UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        line = len(re.split("\r\n|\r|\n", before))
        byte = content[error.start]
        raise ValueError(f"{path}:{line}: is not UTF-8 (byte 0x{byte:02x}); save it so") from error
    return re.split("\r\n|\r|\n", text)


def foreign(start: bytes) -> str | None:
    """What a file is, by its first bytes, that was saved in place of the one it is named like."""
    if not start:
        return "an empty file"
    return next((what for magic, what in _FOREIGN.items() if start.startswith(magic)), None)
