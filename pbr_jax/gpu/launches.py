"""Launches of a compiled function: each kernel, the bytes it moves and its arithmetic.

Read from the optimised HLO: it needs no GPU and says what was compiled, not what was meant. Bytes
are those that a kernel has to move: of a buffer that it slices or updates in place only the part
that it touches. A kernel whose operands still lie in the second-level cache is faster than that.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pbr_jax.gpu.hlo import Instruction, dims_of, parse, shape_bytes

_OP_NAME = re.compile(r'op_name="([^"]*)"')
_SAID_FLOPS = re.compile(r'flops(?:\\22|"): (?:\\22|")(\d+)')
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_PLUMBING = {"while", "body", "closed_call", "cond", "blocks"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_CUBLAS = "__cublas"


class Loop(NamedTuple):
    """A loop around a kernel: the JAX operation that it comes from, and how often it runs."""

    path: str
    trips: int


class Launch(NamedTuple):
    """One kernel of the program."""

    name: str  # of the instruction, or of a hand-written kernel
    kind: str  # "gemm", "kernel" (hand-written), "fusion", "copy" or the HLO operation
    path: str  # of the JAX operation that it comes from
    loops: tuple[Loop, ...]  # around it, outermost first
    bytes: int  # that one launch reads and writes
    flops: int  # of matrix products in it; of a hand-written kernel what its metadata says, or 0
    instruction: str = ""  # its name in the program, which a profile of a run has too

    @property
    def times(self) -> int:
        """Number of launches."""
        return math.prod(loop.trips for loop in self.loops)

    @property
    def source(self) -> str:
        """The last parts of the path, without loops and calls."""
        parts = [part for part in self.path.split("/") if part not in _PLUMBING]
        return "/".join(parts[-2:])

    def floor(self, bandwidth: float, flops: float) -> float:
        """Least seconds of all its launches, at bytes per second and operations per second."""
        return self.times * max(self.bytes / bandwidth, self.flops / flops)


def launches(hlo: str) -> list[Launch]:
    """The kernels of a compiled program, in order.

    Args:
      hlo: `compiled.as_text()` of what `pbr_jax.gpu.compile_for` returned.
    """
    computations, entry = parse(hlo)
    return list(_walk(computations, entry, ()))


def _walk(computations, name: str, loops: tuple[Loop, ...]) -> Iterator[Launch]:
    body = computations[name]
    for instruction in body.values():
        if instruction.op in _FREE:
            continue
        if instruction.op == "while":
            loop = Loop(_path(instruction), instruction.trips)
            yield from _walk(computations, instruction.called[0], (*loops, loop))
        elif instruction.op in ("call", "async-start"):
            yield from _walk(computations, instruction.called[0], loops)
        elif instruction.op == "conditional":  # one branch runs: that with the most to do
            branches = [list(_walk(computations, name, loops)) for name in instruction.called]
            yield from max(branches, key=lambda found: sum(one.bytes for one in found))
        elif not instruction.op.endswith("-done"):
            yield _launch(computations, body, instruction, loops)


def _launch(computations, body, instruction: Instruction, loops) -> Launch:
    within, hero = body, instruction
    if instruction.op in ("fusion", "fusion-start"):
        within = computations[instruction.called[0]]
        moved = _fusion_bytes(within)
        # Slices may be fused with a call of a library or of a hand-written kernel.
        hero = next((one for one in within.values() if one.op == "custom-call"), instruction)
    else:
        operands = [shape_bytes(body[operand].shape) for operand in instruction.operands]
        moved = sum(operands) + _result_bytes(instruction)
        if instruction.op == "dynamic-update-slice":
            moved = 2 * operands[1]
        elif instruction.op in _SLICES:
            moved = 2 * shape_bytes(instruction.shape)
    # Of custom calls, a library tells its product by its configuration, a kernel by its metadata.
    kind, name, flops = instruction.op, instruction.name, 0
    if _CUBLAS in hero.rest:
        kind, flops = "gemm", _gemm_flops(within, hero)
    elif "xla.gpu.triton" in hero.rest or "triton_kernel_call" in hero.rest:
        named = re.search(r'name = "(\w+)"', hero.rest)
        kind, name = "kernel", named[1] if named else name
        said = _SAID_FLOPS.search(hero.rest)
        flops = int(said[1]) if said else 0
    elif within is not body:
        flops = sum(_dot_flops(within, one) for one in within.values() if one.op == "dot")
        kind = "gemm" if flops else "fusion"
    path = _path(instruction) or _path(hero)
    return Launch(name, kind, path, loops, moved, flops, instruction.name)


def _path(instruction: Instruction) -> str:
    found = _OP_NAME.search(instruction.rest)
    return found[1] if found else ""


def _fusion_bytes(fused: dict[str, Instruction]) -> int:
    """Bytes that a fused computation reads of its parameters and writes as its results."""
    users: dict[str, list[Instruction]] = {}
    for instruction in fused.values():
        for operand in instruction.operands:
            users.setdefault(operand, []).append(instruction)

    # A parameter of which every user takes a slice is read by slices, and else as a whole.
    def reads(name: str) -> int:
        whole, some = shape_bytes(fused[name].shape), 0
        for user in users.get(name, []):
            first = user.operands[0] == name
            if user.op in _SLICES and first:
                some += shape_bytes(user.shape)
            elif user.op == "bitcast":
                some += reads(user.name)
            elif user.op != "dynamic-update-slice" or not first:
                return whole
        return min(whole, some)

    def writes(name: str) -> int:
        instruction = fused[name]
        if instruction.op == "tuple":
            return sum(writes(operand) for operand in instruction.operands)
        if instruction.op == "bitcast":
            return writes(instruction.operands[0])
        if instruction.op == "dynamic-update-slice":
            return shape_bytes(fused[instruction.operands[1]].shape)
        return _result_bytes(instruction)

    read = sum(reads(one.name) for one in fused.values() if one.op == "parameter")
    return read + writes(list(fused)[-1])


def _gemm_flops(body, instruction: Instruction) -> int:
    config = json.loads(instruction.rest[instruction.rest.index("backend_config=") + 15 :])
    axes = config["gemm_backend_config"]["dot_dimension_numbers"]["lhs_contracting_dimensions"]
    return _product_flops(body, instruction, axes)


def _dot_flops(fused, instruction: Instruction) -> int:
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    assert axes is not None
    return _product_flops(fused, instruction, filter(None, axes[1].split(",")))


def _product_flops(body, instruction: Instruction, contracted: Iterable[str]) -> int:
    dims = dims_of(body[instruction.operands[0]].shape)
    result = math.prod(dims_of(instruction.shape))
    return 2 * result * math.prod(dims[int(axis)] for axis in contracted)


def _result_bytes(instruction: Instruction) -> int:
    """Without the workspace of a library, which is no traffic."""
    workspace = re.findall(r"s8\[(\d+)\]", instruction.shape) if _CUBLAS in instruction.rest else []
    return shape_bytes(instruction.shape) - sum(map(int, workspace))
