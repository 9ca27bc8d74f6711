"""Manifests: what a checkpoint directory must contain, byte for byte.

Orbax restores a flipped bit in array data without noticing and leaves a truncated step as the
newest one. A manifest lists the sha256 and size of every file of a step, so that a checkpoint is
either proven whole or not used.

    manifest.json = {"body": {"step", "metrics", "tree", "files": {path: {"sha256", "bytes"}}},
    "sha256": of the body}
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from pbr_jax.files import DamagedFile, read_json, write_text

FILE_NAME = "manifest.json"
_BODY = {
    "step": int,
    "metrics": (dict, type(None)),
    "tree": {...: str},
    "files": {...: {"sha256": str, "bytes": int}},
}


class Manifest(NamedTuple):
    """Content of one manifest."""

    step: int  # that it belongs to
    metrics: dict[str, float] | None  # evaluation of that step; None if it was not evaluated
    tree: dict[str, str]  # path of each leaf of the state -> `"dtype[shape]"`, as by `describe`
    # Path relative to the step's directory -> `{"sha256": hex digest, "bytes": size}`.
    files: dict[str, dict[str, Any]]


class BrokenCheckpoint(Exception):
    """A checkpoint that must not be restored; names the file and what is wrong with it."""


def describe(state: PyTree) -> dict[str, str]:
    """Maps the path of every leaf to its dtype and shape.

    >>> describe({"head": {"bias": jax.ShapeDtypeStruct((10,), "float32")}})
    {'head/bias': 'float32[10]'}
    """
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in named_leaves(state).items()
    }


def named_leaves(state: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their paths: `head/bias`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def write(
    directory: Path,
    step: int,
    metrics: dict[str, float] | None,
    tree: dict[str, str],
    unlisted: frozenset[str] = frozenset(),
) -> None:
    """Hashes every file below `directory` and writes its manifest, atomically and last.

    Each file is synced to disk before its hash is recorded: a manifest is only there when the data
    it vouches for would survive a power failure. `unlisted` names files, relative to `directory`,
    that may still change.
    """
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = path.relative_to(directory).as_posix()
        if name == FILE_NAME or name in unlisted:
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = {"sha256": digest, "bytes": file.tell()}
    body = {"step": step, "metrics": metrics, "tree": tree, "files": files}
    document = {"body": body, "sha256": _digest(body)}  # a metric may be NaN, as Python writes it
    write_text(directory / FILE_NAME, json.dumps(document, indent=1))


def read(directory: Path) -> Manifest:
    """Reads a step's manifest; raises BrokenCheckpoint where none is there that can be read."""
    path = directory / FILE_NAME
    if not directory.is_dir():
        raise BrokenCheckpoint(f"{directory} does not exist")
    if not path.is_file():
        why = "it cannot be verified" if any(directory.iterdir()) else "the directory is empty"
        raise BrokenCheckpoint(f"{path} is missing ({why})")
    try:
        document = read_json(path, {"body": _BODY, "sha256": str}, "the step is not used")
    except DamagedFile as error:
        raise BrokenCheckpoint(str(error)) from error
    body, digest = document["body"], document["sha256"]
    if _digest(body) != digest:
        raise BrokenCheckpoint(f"{path} is damaged (its own sha256 differs)")
    if str(body["step"]) != directory.name:
        raise BrokenCheckpoint(f"{path} belongs to step {body['step']}")
    # A newer version may say more of a step.
    return Manifest(**{name: body[name] for name in Manifest._fields})


def verify(directory: Path) -> Manifest:
    """Checks every file of the step in `directory` against its manifest, in constant memory.

    Raises:
      BrokenCheckpoint: naming the first file that is missing, truncated or changed.
    """
    manifest = read(directory)
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise BrokenCheckpoint(f"{path} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise BrokenCheckpoint(f"{path} has {size} bytes instead of {expected['bytes']}")
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:  # bad sectors and missing permissions
            raise BrokenCheckpoint(f"{path} cannot be read ({error.strerror})") from error
        if digest != expected["sha256"]:
            raise BrokenCheckpoint(f"{path} is not what was saved (sha256 differs)")
    return manifest


def difference(saved: dict[str, str], wanted: dict[str, str], limit: int = 8) -> list[str]:
    """Lines that name the leaves by which two `describe` results differ; empty if they agree."""

    def line(title: str, names: list[str]) -> str:
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        return f"{title} ({len(names)}): {', '.join(names[:limit])}{more}"

    found = {
        "only in the checkpoint": [name for name in saved if name not in wanted],
        "not in the checkpoint": [name for name in wanted if name not in saved],
        "different": [
            f"{name} is {saved[name]} in the checkpoint and {wanted[name]} here"
            for name in wanted
            if name in saved and saved[name] != wanted[name]
        ],
    }
    return [line(title, names) for title, names in found.items() if names]


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
