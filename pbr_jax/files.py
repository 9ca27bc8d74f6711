"""Paths as users type them, and files that are always whole.

A reader sees the old content of a file or the new one, never a part.
"""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user typed; `~` and `~name` at its beginning are home folders.

    Variables such as `$HOME` are left to the shell. Messages show the text as it was typed.

    Raises:
      FileNotFoundError: it begins with `~`, and no such home folder is known.
    """
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

    Whatever interrupts it leaves the old file as it was.
    """
    # A name of its own for each writer: two that write the same file must not mix their parts.
    temporary = Path(f"{path}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
