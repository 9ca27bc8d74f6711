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

_ITEM_BITS = {"pred": 8, "bf16": 16, "c64": 64, "token": 0}
_SHAPE = re.compile(r"(?P<dtype>[a-z]+[0-9]*[a-z0-9]*)\[(?P<dims>[0-9,]*)\]")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"  (?P<root>ROOT )?%(?P<name>[\w.-]+) = ")
_CALLED = re.compile(r"(?:calls|body|to_apply)=%([\w.-]+)")
_BRANCHES = re.compile(r"(?:true_computation|false_computation)=%([\w.-]+)")
_BRANCH_LIST = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
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


class _Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    operands: list[str]
    rest: str


def launches(hlo: str) -> list[Launch]:
    """The kernels of a compiled program, in order.

    Args:
      hlo: `compiled.as_text()` of what `pbr_jax.gpu.compile_for` returned.
    """
    computations, entry = _parse(hlo)
    return list(_walk(computations, entry, ()))


def _walk(computations, name: str, loops: tuple[Loop, ...]) -> Iterator[Launch]:
    body = computations[name]
    for instruction in body.values():
        if instruction.op in _FREE:
            continue
        # A loop of unknown length counts once.
        if instruction.op == "while":
            trips = _TRIPS.search(instruction.rest)
            loop = Loop(_path(instruction), int(trips[1]) if trips else 1)
            yield from _walk(computations, _CALLED.findall(instruction.rest)[0], (*loops, loop))
        elif instruction.op in ("call", "async-start"):
            yield from _walk(computations, _CALLED.findall(instruction.rest)[0], loops)
        elif instruction.op == "conditional":  # one branch runs: that with the most to do
            listed = _BRANCH_LIST.search(instruction.rest)
            names = re.findall(r"[\w.-]+", listed[1].replace("%", "")) if listed else []
            names += _BRANCHES.findall(instruction.rest)
            branches = [list(_walk(computations, branch, loops)) for branch in names]
            yield from max(branches, key=lambda found: sum(one.bytes for one in found))
        elif not instruction.op.endswith("-done"):
            yield _launch(computations, body, instruction, loops)


def _launch(computations, body, instruction: _Instruction, loops) -> Launch:
    within, hero = body, instruction
    if instruction.op in ("fusion", "fusion-start"):
        within = computations[_CALLED.findall(instruction.rest)[0]]
        moved = _fusion_bytes(within)
        # Slices may be fused with a call of a library or of a hand-written kernel.
        hero = next((one for one in within.values() if one.op == "custom-call"), instruction)
    else:
        operands = [_bytes(body[operand].shape) for operand in instruction.operands]
        moved = sum(operands) + _result_bytes(instruction)
        if instruction.op == "dynamic-update-slice":
            moved = 2 * operands[1]
        elif instruction.op in _SLICES:
            moved = 2 * _bytes(instruction.shape)
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


def _path(instruction: _Instruction) -> str:
    found = _OP_NAME.search(instruction.rest)
    return found[1] if found else ""


def _fusion_bytes(fused: dict[str, _Instruction]) -> int:
    """Bytes that a fused computation reads of its parameters and writes as its results."""
    users: dict[str, list[_Instruction]] = {}
    for instruction in fused.values():
        for operand in instruction.operands:
            users.setdefault(operand, []).append(instruction)

    # A parameter of which every user takes a slice is read by slices, and else as a whole.
    def reads(name: str) -> int:
        whole, some = _bytes(fused[name].shape), 0
        for user in users.get(name, []):
            first = user.operands[0] == name
            if user.op in _SLICES and first:
                some += _bytes(user.shape)
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
            return _bytes(fused[instruction.operands[1]].shape)
        return _result_bytes(instruction)

    read = sum(reads(one.name) for one in fused.values() if one.op == "parameter")
    return read + writes(list(fused)[-1])


def _gemm_flops(body, instruction: _Instruction) -> int:
    config = json.loads(instruction.rest[instruction.rest.index("backend_config=") + 15 :])
    axes = config["gemm_backend_config"]["dot_dimension_numbers"]["lhs_contracting_dimensions"]
    return _product_flops(body, instruction, axes)


def _dot_flops(fused, instruction: _Instruction) -> int:
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    assert axes is not None
    return _product_flops(fused, instruction, filter(None, axes[1].split(",")))


def _product_flops(body, instruction: _Instruction, contracted: Iterable[str]) -> int:
    dims = _dims(body[instruction.operands[0]].shape)
    result = math.prod(_dims(instruction.shape))
    return 2 * result * math.prod(dims[int(axis)] for axis in contracted)


def _parse(hlo: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Computations by name, each its instructions by name with the root last; and the entry."""
    # Line by line: a head opens a computation, its instructions follow, a brace ends it.
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, root, current = "", "", {}
    for line in hlo.splitlines():
        if line.startswith(("%", "ENTRY")) and (head := _COMPUTATION.match(line)):
            current = computations[head["name"]] = {}
            entry = head["name"] if head["entry"] else entry
        elif found := _INSTRUCTION.match(line):
            shape, after = _split(line[found.end() :])
            op, _, _ = after.partition("(")
            arguments, rest = _split(after[len(op) :])
            operands = re.findall(r"%([\w.-]+)", arguments)
            current[found["name"]] = _Instruction(found["name"], shape, op, operands, rest)
            root = found["name"] if found["root"] else root
        elif line == "}" and root in current:
            current[root] = current.pop(root)
    return computations, entry


def _split(text: str) -> tuple[str, str]:
    """A shape or a list in parentheses, and what follows it."""
    if not text.startswith("("):
        first, _, rest = text.partition(" ")
        return first, rest
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :].lstrip()
    raise ValueError(f"hlo: no end of the parenthesis in {text[:80]!r}")


def _bytes(shape: str) -> int:
    total = 0
    for one in _SHAPE.finditer(re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)):
        digits = re.search(r"\d+", one["dtype"])
        bits = _ITEM_BITS.get(one["dtype"]) or int(digits[0] if digits else 0)
        total += math.prod(int(n) for n in one["dims"].split(",") if n) * bits // 8
    return total


def _dims(shape: str) -> list[int]:
    first = _SHAPE.search(shape)
    assert first is not None
    return [int(n) for n in first["dims"].split(",") if n]


def _result_bytes(instruction: _Instruction) -> int:
    """Without the workspace of a library, which is no traffic."""
    workspace = re.findall(r"s8\[(\d+)\]", instruction.shape) if _CUBLAS in instruction.rest else []
    return _bytes(instruction.shape) - sum(map(int, workspace))
