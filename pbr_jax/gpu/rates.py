"""Rates of a card: of matrix products and of copies in its memory, and of its link to the host."""

from pbr_jax.gpu.cards import Card, for_capability

# Compute capability -> bfloat16 operations of a multiprocessor in a clock, accumulated in float32,
# without sparsity: the makers' data sheets, divided by cores and boost clock. Float32 products run
# as TensorFloat-32, at half of it.
_TENSOR_OPERATIONS = {(8, 0): 2048, (8, 6): 512, (8, 9): 512}
_TENSOR_OPERATIONS |= {(9, 0): 4096, (10, 0): 8192, (12, 0): 512}
# Compute capability -> bytes per second of sixteen lanes one way, by the PCIe of its generation.
_LINKS = {(7, 5): 15.75e9, (8, 0): 31.5e9, (9, 0): 63e9}

# Of the peaks, what is within reach; on an H200 790 TFLOP/s in products, 4.3 TB/s in copies.
_REACHED_RATE, _REACHED_BANDWIDTH = 0.74, 0.90


def matrix_rate(card: Card, dtype: str) -> float:
    """Rate of matrix products that is within reach, operations per second.

    A card without bfloat16 units runs them on its float32 units; one that is newer than the table
    has the rate of the newest in it.
    """
    if card.has_bfloat16:
        known = max(c for c in _TENSOR_OPERATIONS if c <= card.capability)
        operations = _TENSOR_OPERATIONS[known] // (1 if dtype == "bfloat16" else 2)
    else:
        operations = 2 * card.fpus_per_core
    return _REACHED_RATE * operations * card.cores * card.clock_ghz * 1e9


def link_rate(card: Card) -> float:
    """Bytes per second between the card and its host, one way, as PCIe has them at most."""
    return for_capability(_LINKS, card.capability)


def copy_rate(card: Card) -> float:
    """Bandwidth of the card's memory that is within reach, bytes per second."""
    return _REACHED_BANDWIDTH * card.bandwidth
