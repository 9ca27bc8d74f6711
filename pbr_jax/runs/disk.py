"""The disk under a folder: what is free on it, and why it could not be written."""

import shutil
from pathlib import Path

from pbr_jax.measure.text import format_bytes


def free_bytes(folder: Path) -> int:
    """What is free where `folder` lies, or will."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(existing).free


def cause(folder: Path, why: str, num_bytes: int) -> tuple[str, str]:
    """What kept `num_bytes` from being written into `folder`, and what to do about it.

    `why` is what a library says, which wraps the system's own words.
    """
    if not folder.is_dir():
        return "the folder is no longer there", "move it back and resume"
    if "No space left" in why or "quota exceeded" in why:
        free = format_bytes(free_bytes(folder))
        full = f"the disk is full ({format_bytes(num_bytes)} needed, {free} free)"
        return full, "free some space and resume"
    if "No such file" in why:
        return "files were removed from the folder meanwhile", "put them back and resume"
    for words in ("Read-only file system", "Permission denied", "Operation not permitted"):
        if words in why:
            return f"the folder cannot be written ({words})", "make it writable and resume"
    return why, "mend that and resume"
