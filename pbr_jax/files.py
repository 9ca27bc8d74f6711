"""Files that are always whole: a reader sees the old content or the new one, never a part."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
