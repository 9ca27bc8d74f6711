"""Memory of the device at hand, in bytes: as a GPU says itself, and as the kernel says of a CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from pbr_jax.measure.text import format_bytes


class Room(NamedTuple):
    """Memory for a run."""

    total: int  # more than that can never be had
    free: int  # what can be had now
    of: str  # whose memory, for a sentence


def peak_in_use() -> int | None:
    """The most that was in use at once since this process began; it never falls again."""
    return _statistics().get("peak_bytes_in_use")


def memory_limit() -> int | None:
    """Bytes that JAX may take of the device; None where it says nothing (a CPU)."""
    return _statistics().get("bytes_limit")


def host_room(root: Path = Path("/")) -> Room | None:
    """Memory and swap of this machine, or of the container or job; None where nothing says it.

    What others of the same container use is not looked at.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {name: int(text.split()[0]) for name, text in (line.split(":") for line in lines)}
        kilobytes = (sizes[name] for name in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree"))
        memory, available, swap, swap_free = (1024 * size for size in kilobytes)
    except (OSError, ValueError, KeyError, IndexError):
        return None
    limit = min([memory, *_limits_of_groups(root)])
    return Room(limit + swap, min(available, limit) + swap_free, "this machine")


def shortage(size: int) -> str | None:
    """That `size` bytes are more than this machine has free, for a message; None if they fit."""
    room = host_room()
    if room is None or size <= room.free:
        return None
    return f"take {format_bytes(size)} of memory, and {format_bytes(room.free)} are free"


def _limits_of_groups(root: Path) -> Iterator[int]:
    """Limits of the control groups, of both versions, that this process is in."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = ("", "memory.max") if not controllers else ("memory", "memory.limit_in_bytes")
        # A group is bound by all that it is in. What has no limit says "max", or a huge number.
        own = root / "sys/fs/cgroup" / base / path.strip("/")
        for folder in (own, *own.parents):
            try:
                yield int((folder / name).read_text())
            except (OSError, ValueError):
                continue


def _statistics() -> dict[str, int]:
    return jax.local_devices()[0].memory_stats() or {}
