"""Block sizes of the attention kernels, per card, channels and width of the dtype.

Rows are queries, columns keys. Chosen among those that compile without a spill with everything at
once (causal, window, lengths, segments and dropout, one head of q to each of k and v and several),
the largest tiles first; nothing was timed yet.
"""

from typing import Literal

from pbr_jax.gpu.cards import for_capability
from pbr_jax.kernels.attention_launch import padded
from pbr_jax.kernels.tiles import Blocks

Pass = Literal["forward", "queries", "keys"]
Case = tuple[int, int]  # channels at most, filled up to a power of two; bytes of the dtype

LONGEST_ROW = 416
"""Most keys of a row that is held on chip."""

# Tensor cores that read shared memory, 227 KiB of it to a block.
_HOPPER: dict[Pass, dict[Case, Blocks]] = {
    "forward": {
        (64, 2): Blocks(128, 64, num_warps=8, num_stages=3),
        (128, 2): Blocks(128, 64, num_warps=8, num_stages=2),
        (64, 4): Blocks(64, 32, num_warps=4, num_stages=2),
        (128, 4): Blocks(64, 32, num_warps=8, num_stages=2),
        (256, 2): Blocks(128, 64, num_warps=8, num_stages=2),
        (256, 4): Blocks(32, 32, num_warps=8, num_stages=2),
    },
    "queries": {
        (64, 2): Blocks(128, 64, num_warps=8, num_stages=2),
        (128, 2): Blocks(64, 64, num_warps=4, num_stages=2),
        (64, 4): Blocks(64, 32, num_warps=4, num_stages=2),
        (128, 4): Blocks(32, 32, num_warps=4, num_stages=2),
        (256, 2): Blocks(128, 32, num_warps=8, num_stages=2),
        (256, 4): Blocks(32, 32, num_warps=8, num_stages=2),
    },
    "keys": {
        (64, 2): Blocks(64, 128, num_warps=8, num_stages=2),
        (128, 2): Blocks(64, 64, num_warps=8, num_stages=2),
        (64, 4): Blocks(32, 64, num_warps=8, num_stages=2),
        (128, 4): Blocks(32, 32, num_warps=8, num_stages=2),
        (256, 2): Blocks(64, 32, num_warps=8, num_stages=2),
        (256, 4): Blocks(16, 16, num_warps=8, num_stages=1),
    },
}
# 99 KiB of shared memory to a block: fits every card from compute capability 8.0 on.
_SMALLEST: dict[Pass, dict[Case, Blocks]] = {
    "forward": {
        (64, 2): Blocks(128, 64, num_warps=8, num_stages=2),
        (128, 2): Blocks(128, 32, num_warps=8, num_stages=2),
        (64, 4): Blocks(64, 32, num_warps=4, num_stages=2),
        (128, 4): Blocks(64, 32, num_warps=8, num_stages=2),
        (256, 2): Blocks(64, 32, num_warps=8, num_stages=2),
        (256, 4): Blocks(32, 32, num_warps=8, num_stages=1),
    },
    "queries": {
        (64, 2): Blocks(128, 64, num_warps=8, num_stages=2),
        (128, 2): Blocks(64, 64, num_warps=8, num_stages=2),
        (64, 4): Blocks(32, 32, num_warps=4, num_stages=2),
        (128, 4): Blocks(32, 32, num_warps=4, num_stages=2),
        (256, 2): Blocks(64, 16, num_warps=8, num_stages=2),
        (256, 4): Blocks(16, 16, num_warps=4, num_stages=2),
    },
    "keys": {
        (64, 2): Blocks(32, 128, num_warps=8, num_stages=2),
        (128, 2): Blocks(32, 64, num_warps=8, num_stages=2),
        (64, 4): Blocks(32, 32, num_warps=8, num_stages=2),
        (128, 4): Blocks(32, 32, num_warps=8, num_stages=2),
        (256, 2): Blocks(32, 32, num_warps=8, num_stages=2),
        (256, 4): Blocks(16, 16, num_warps=8, num_stages=1),
    },
}
# Least compute capability -> blocks. Nothing was compiled for cards later than 10.0, and those of
# 12.0 have no more shared memory than 8.6.
TILES = {(8, 0): _SMALLEST, (9, 0): _HOPPER, (10, 1): _SMALLEST}
# The same on every card; channels at most, bytes, keys at most. What is missing does not fit.
_ROWS: dict[tuple[int, int, int], Blocks] = {
    (32, 2, 256): Blocks(16, 256, num_warps=4, num_stages=2),
    (32, 2, 512): Blocks(16, 512, num_warps=8, num_stages=2),
    (32, 4, 256): Blocks(16, 256, num_warps=8, num_stages=2),
    (64, 2, 256): Blocks(32, 256, num_warps=8, num_stages=2),
    (64, 2, 512): Blocks(32, 512, num_warps=8, num_stages=2),
    (128, 2, 256): Blocks(32, 256, num_warps=8, num_stages=2),
    (64, 4, 256): Blocks(16, 256, num_warps=8, num_stages=2),
}


def blocks_for(
    part: Pass, capability: tuple[int, int] | None, channels: int, itemsize: int
) -> Blocks:
    """Blocks of the kernel `part`, at most 256 channels.

    Args:
      capability: CUDA compute capability; None (interpreted) takes the smallest.
      channels: the most that a tile has, of q, k, v or do.
      itemsize: bytes of the dtype.
    """
    return next(
        blocks
        for (most, size), blocks in for_capability(TILES, capability)[part].items()
        if channels <= most and itemsize == size
    )


def blocks_for_rows(num_keys: int, channels: int, itemsize: int) -> Blocks | None:
    """Blocks of the kernel that holds whole rows of scores, None where they do not fit."""
    if num_keys > LONGEST_ROW:
        return None
    return _ROWS.get((max(32, padded(channels)), itemsize, max(256, padded(num_keys))))
