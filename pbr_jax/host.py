"""Memory of the machine that this process runs on."""

from pathlib import Path

# Limits of a container or a batch system, version 2 and 1: limit, use, and the part of the use that
# is only a cache of files.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say."""
    found = []
    if (free := _entry(Path("/proc/meminfo"), "MemAvailable:")) is not None:
        found.append(free * 1024)
    for limit, used, cache in _LIMITS:
        most, now = _number(Path(limit)), _number(Path(used))
        if most is not None and now is not None:
            cached = _entry(Path(limit).parent / "memory.stat", cache) or 0
            found.append(max(0, most - now + cached))
    return min(found, default=None)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return None


def _entry(file: Path, name: str) -> int | None:
    """The number behind `name` in a file of names and numbers."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(words[1]) for words in lines if words[:1] == [name]), None)
