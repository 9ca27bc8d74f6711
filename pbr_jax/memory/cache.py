"""Memory reports of compiled steps, kept between programs: compiling takes seconds, reading none.

A report is valid for what was compiled: the settings that shape the program, the card, the versions
of JAX and its plugin, and every source file of this package. Each is a small file of its own in the
user's cache folder; one that is damaged is as good as absent.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

from pbr_jax.configs.common import Config
from pbr_jax.files import DamagedFile, read_json, write_text
from pbr_jax.gpu import Card, MemoryReport, target_config
from pbr_jax.memory.fit import Measure
from pbr_jax.settings.rules import settings

_PACKAGE = Path(__file__).resolve().parents[1]
_NOT_IN_THE_PROGRAM = ("seed", "memory_budget", "data.path", "model.weights")


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/pbr_jax/fit`, by default below `~/.cache`; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "pbr_jax" / "fit"
    except RuntimeError:  # Python finds no home
        return None


def cached(
    measure: Measure,
    card: Card,
    folder: Path,
    say: Callable[[str], None] = lambda text: None,
    hosts: int = 1,
) -> Measure:
    """Wraps `measure` for `card`, in so many hosts, so that it remembers reports in `folder`.

    The folder is made if it does not exist. One that cannot be written remembers nothing, which
    `say` is told once.
    """
    say_once = functools.cache(say)

    def remembered(config: Config) -> MemoryReport:
        key = cache_key(config, card, hosts)
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        found = _read(path, key)
        if found is None:
            found = measure(config)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps({"key": key, "report": found._asdict()}))
            except OSError as error:
                say_once(f"{folder}: {error.strerror}; what is compiled is not kept")
        return found

    return remembered


def cache_key(config: Config, card: Card, hosts: int = 1) -> str:
    """A text of all that a report depends on."""
    skipped = {entry.key for entry in settings() if entry.field.metadata["resume_safe"]}
    skipped.update(_NOT_IN_THE_PROGRAM)
    skipped -= {"mesh.data", "mesh.fsdp", "mesh.split"}
    # Sites of `keep` are part of the value of `pruning.keep`.
    flat = {
        entry.key: repr(functools.reduce(getattr, entry.key.split("."), config))
        for entry in settings()
        if entry.key not in skipped and not entry.key.startswith("pruning.keep.")
    }
    # Another compiler, or another version of this package, makes another program.
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "jax-cuda13-plugin")
    }
    return json.dumps([flat, target_config(card), hosts, versions, source_digest()])


@functools.cache
def source_digest() -> str:
    """A hash of the package's Python files."""
    digest = hashlib.sha256()
    for folder, _, names in sorted(os.walk(_PACKAGE, followlinks=True)):
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                digest.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> MemoryReport | None:
    sizes = dict.fromkeys(MemoryReport._fields, int)
    try:
        found = read_json(path, {"key": str, "report": sizes}, "it is made anew")
    except DamagedFile:
        return None
    # Two keys of one hash, or a file that someone moved.
    if found["key"] != key:
        return None
    return MemoryReport(**{name: found["report"][name] for name in MemoryReport._fields})
