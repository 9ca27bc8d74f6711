"""Graphics cards by name, and the description of each that XLA compiles for.

Sources: what XLA reports for the H200, the files `xla/backends/gpu/target_config/specs` of OpenXLA
for H100 and A100, and for the GeForce cards the output of CUDA's `deviceQuery` with the maker's
boost clock. A driver keeps part of the memory for itself, more of it in newer versions, so
`memory_bytes` is what CUDA offers rather than what the box says.
"""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from pbr_jax.names import nearest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Card:
    """The properties of a graphics card that decide what XLA compiles for it."""

    name: str  # Name in `CARDS`, lower case
    description: str  # The name that the driver gives
    capability: tuple[int, int]  # Compute capability, (major, minor)
    memory_bytes: int  # Global memory that CUDA offers, bytes
    bandwidth: int  # Global memory bandwidth, bytes per second
    cores: int  # Streaming multiprocessors
    fpus_per_core: int  # float32 units of one multiprocessor
    clock_ghz: float  # Boost clock, GHz
    l2_bytes: int  # Second-level cache, bytes
    shared_per_core: int  # Shared memory of one multiprocessor, bytes
    shared_per_block: int  # Most shared memory of one block after opting in, bytes
    threads_per_core: int  # Most resident threads of one multiprocessor

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes in bfloat16; before Ampere XLA emulates that in float32."""
        return self.capability >= (8, 0)


# Field of `Card` -> field of XLA's `GpuDeviceInfoProto`.
PROTO_FIELDS = {
    "memory_bytes": "device_memory_size",
    "bandwidth": "memory_bandwidth",
    "cores": "core_count",
    "fpus_per_core": "fpus_per_core",
    "clock_ghz": "clock_rate_ghz",
    "l2_bytes": "l2_cache_size",
    "shared_per_core": "shared_memory_per_core",
    "shared_per_block": "shared_memory_per_block_optin",
    "threads_per_core": "threads_per_core_limit",
}

# What the compute capability fixes of a multiprocessor: float32 units, KiB of shared memory, KiB of
# one block, resident threads.
_CORES = {
    (9, 0): (128, 228, 227, 2048),
    (8, 9): (128, 100, 99, 1536),
    (8, 6): (128, 100, 99, 1536),
    (8, 0): (64, 164, 163, 2048),
    (7, 5): (64, 64, 64, 1024),
}


def _card(name, description, capability, cores, clock_ghz, l2_mib, memory_bytes, gb_per_s) -> Card:
    fpus, shared_kib, block_kib, threads = _CORES[capability]
    return Card(
        name,
        description,
        capability,
        memory_bytes=memory_bytes,
        bandwidth=round(gb_per_s * 1e9),
        cores=cores,
        fpus_per_core=fpus,
        clock_ghz=clock_ghz,
        l2_bytes=round(l2_mib * 2**20),
        shared_per_core=shared_kib * 2**10,
        shared_per_block=block_kib * 2**10,
        threads_per_core=threads,
    )


# Capability, multiprocessors, GHz, MiB of second-level cache, bytes of memory, GB/s.
_TABLE = (
    _card("h200", "NVIDIA H200", (9, 0), 132, 1.98, 60, 150_754_820_096, 4800),
    _card("h100", "NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50, 84_942_979_072, 3352.32),
    _card("a100", "NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40, 85_100_068_864, 2039.04),
    _card("rtx4090", "NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 72, 25_250_627_584, 1008.096),
    _card("rtx3090", "NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695, 6, 25_206_325_248, 936.096),
    _card("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", (7, 5), 68, 1.545, 5.5, 11_348_672_512, 616),
)
CARDS: dict[str, Card] = {card.name: card for card in _TABLE}


def find_card(name: str) -> Card:
    """Returns the card called `name`, in any case and with or without spaces, `-` and `_`.

    Raises:
      ValueError: There is no such card; the message has the nearest name and all of them.
    """
    key = "".join(character for character in name.lower() if character.isalnum())
    if key in CARDS:
        return CARDS[key]
    close = nearest(key, CARDS)
    hint = f"did you mean {close!r}? " if close else ""
    raise ValueError(f"name = {name!r}: no such card; {hint}Known cards: {', '.join(CARDS)}")


def for_capability(table: Mapping[tuple[int, int], T], capability: tuple[int, int] | None) -> T:
    """The entry of `table` of the latest compute capability that a card has reached.

    A card older than all of them takes the oldest, and so does one of unknown capability.
    """
    reached = [least for least in table if capability is not None and least <= capability]
    return table[max(reached, default=min(table))]


def target_config(card: Card) -> str:
    """Describes `card` as the text of XLA's `GpuTargetConfigProto`.

    What is not a field of `Card` is the same on every card since Turing: threads and registers of a
    block, limits of a grid. The versions are those of CUDA 13 and of the cuDNN that JAX pairs with
    it.
    """
    major, minor = card.capability
    own = " ".join(f"{field}: {getattr(card, name)}" for name, field in PROTO_FIELDS.items())
    return f"""
        gpu_device_info {{
          {own}
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: 49152
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 12 }}
        runtime_version {{ major: 13 }}
        device_description_str: "{card.description}"
    """
