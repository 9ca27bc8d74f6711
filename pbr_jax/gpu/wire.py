"""What the devices of a compiled program exchange, read off its text."""

import math
import re

# Of XLA's types, in bits. Of an operation in two halves the second has the result alone.
_BITS = re.compile(r"(?:pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-done)?\("
)


def exchanged_bytes(program: str) -> int:
    """Bytes of the results of all collective operations of an HLO program, each counted once.

    A collective in a loop counts once too; the steps of this package have none there.
    """
    total = 0
    for found in _COLLECTIVE.finditer(program):
        for bits, sizes in _BITS.findall(found[1]):
            count = math.prod(int(size) for size in sizes.split(",") if size)
            total += count * max(int(bits or 8) // 8, 1)
    return total
