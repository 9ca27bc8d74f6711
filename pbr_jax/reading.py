"""Files of the user's: only regular ones are read, and what is wrong with one is said by its name.

A pipe or a device that is named like a file would be waited for without end, and a file that is
larger than it can reasonably be would fill the memory before anything could be said about it.
Names and texts of theirs are cut and made printable before a message has them.
"""

import os
import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
START = 512  # bytes that tell what a file is
# How begins what is often saved in place of the file itself.
_FOREIGN = {
    rb"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file itself",
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)": "a web page; download the file itself",
}
# How files begin that are no text in UTF-8, what they are, and what makes them one.
_NO_TEXT = (
    (b"\xff\xfe\0\0", "UTF-32", "iconv -f UTF-32 -t UTF-8 {file} > new"),
    (b"\xff\xfe", "UTF-16", "iconv -f UTF-16 -t UTF-8 {file} > new"),
    (b"\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 {file} > new"),
    (b"\x1f\x8b", "compressed by gzip", "gunzip < {file} > new"),
    (b"BZh", "compressed by bzip2", "bunzip2 < {file} > new"),
    (b"\xfd7zXZ", "compressed by xz", "xz -dc < {file} > new"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", "zstd -dc < {file} > new"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", ""),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", ""),
    (b"PAR1", "a Parquet file", ""),
    (b"ARROW1", "an Arrow file", ""),
)
_TEXT_BYTES = 2**26  # lists of names and words are far smaller


def shown(path: Path | str) -> str:
    """A path as it can be printed: bytes that are not UTF-8 are shown as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def excerpt(text: str, longest: int = 60) -> str:
    """A text of the user's as it can be printed in a message, cut where it is longer."""
    cut = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list for a message, and how many there are more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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


def read_text(path: Path | str) -> str:
    """A text in UTF-8, which may begin with a byte-order mark; of at most 64 MiB.

    Raises:
      ValueError: it cannot be read, or is not UTF-8; names it, and the line.
    """
    content = read_bytes(path, _TEXT_BYTES)
    check_text(path, content[:START])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(_lines(content[: error.start].decode("utf-8-sig")))
        byte = content[error.start]
        raise ValueError(f"{path}:{line}: is not UTF-8 (byte 0x{byte:02x}); save it so") from error


def read_lines(path: Path | str) -> list[str]:
    """The lines of such a text.

    Lines end as editors end them: with a line feed, a carriage return, or both.
    """
    return _lines(read_text(path))


def _lines(text: str) -> list[str]:
    return re.split("\r\n|\r|\n", text)


def foreign(start: bytes) -> str | None:
    """What a file is, by its first bytes, that was saved in place of the one it is named like."""
    if not start:
        return "an empty file; copy or download it again"
    found = (what for pattern, what in _FOREIGN.items() if re.match(pattern, start, re.IGNORECASE))
    return next(found, None)


def check_text(path: Path | str, start: bytes) -> None:
    """Raises `ValueError` for a file whose first bytes are of no text in UTF-8; says what makes it.

    Single bytes farther on may still be wrong.
    """
    if start and (what := foreign(start)):
        raise ValueError(f"{path}: is {what}")
    found = next((kind for kind in _NO_TEXT if start.startswith(kind[0])), None)
    # Letters of two bytes each, without the mark that says so.
    for order, zeros in (("LE", start[1:4:2]), ("BE", start[:4:2])):
        if not found and zeros == b"\0\0" and start[:4].strip(b"\0"):
            found = (b"", "UTF-16", f"iconv -f UTF-16{order} -t UTF-8 {{file}} > new")
    if found:
        _, what, command = found
        how = f"`{command.format(file=shlex.quote(str(path)))}` converts it"
        advice = how if command else "export it as such"
        raise ValueError(f"{path}: is {what}: must be text in UTF-8; {advice}")
