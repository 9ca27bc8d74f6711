"""Memory of the device at hand, in bytes, as it says itself; None where it says nothing (a CPU)."""

import jax


def peak_in_use() -> int | None:
    """The most that was in use at once since this process began; it never falls again."""
    return _statistics().get("peak_bytes_in_use")


def memory_limit() -> int | None:
    """Bytes that JAX may take of the device."""
    return _statistics().get("bytes_limit")


def _statistics() -> dict[str, int]:
    return jax.local_devices()[0].memory_stats() or {}
