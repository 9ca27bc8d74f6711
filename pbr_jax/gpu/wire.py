"""What the devices of a compiled program exchange, read off its text."""

from collections.abc import Mapping

from pbr_jax.gpu.hlo import Instruction, parse, shape_bytes

_INTO = ("while", "call", "async-start", "conditional")
_ONE_WAY = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def exchanged_bytes(program: str) -> int:
    """Bytes that devices exchange in an HLO program, as bytes of all-reduces that move as much.

    A ring moves what an all-reduce sums twice, once as sums and once as results. What another
    collective takes or gives, whichever is more, it moves once, and so it counts half. Collectives
    in a loop count at each turn, and of branches the one that exchanges most.
    """
    computations, entry = parse(program)
    return round(_exchanged(computations, entry))


def _exchanged(computations: Mapping[str, Mapping[str, Instruction]], name: str) -> float:
    total, body = 0.0, computations[name]
    for one in body.values():
        if one.op in _INTO:
            inner = [_exchanged(computations, called) for called in one.called]
            total += one.trips * (max(inner) if one.op == "conditional" else sum(inner))
            continue
        collective = one.op.removesuffix("-start")
        if collective == "all-reduce":
            total += sum(shape_bytes(body[operand].shape) for operand in one.operands)
        elif collective in _ONE_WAY:
            # The first half of an operation has operands in its result, too.
            taken = sum(shape_bytes(body[operand].shape) for operand in one.operands)
            given = shape_bytes(one.shape) - (taken if one.op != collective else 0)
            total += max(taken, given) / 2
    return total
