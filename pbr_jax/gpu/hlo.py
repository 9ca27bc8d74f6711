"""The text of a compiled program, optimised HLO, as computations and their instructions."""

import math
import re
from typing import NamedTuple

_ITEM_BITS = {"pred": 8, "bf16": 16, "c64": 64, "token": 0}
_SHAPE = re.compile(r"(?P<dtype>[a-z]+[0-9]*[a-z0-9]*)\[(?P<dims>[0-9,]*)\]")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"  (?P<root>ROOT )?%(?P<name>[\w.-]+) = ")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """One line of a computation: `%name = shape op(operands), rest`."""

    name: str
    shape: str
    op: str
    operands: list[str]
    rest: str

    @property
    def called(self) -> list[str]:
        """The computations that it runs: the body of a loop, the branches of a conditional."""
        branches = _BRANCHES.search(self.rest)
        listed = re.findall(r"[\w.-]+", branches[1].replace("%", "")) if branches else []
        return listed + _CALLED.findall(self.rest)

    @property
    def trips(self) -> int:
        """How often a loop runs; 1 where that is not known."""
        found = _TRIPS.search(self.rest)
        return int(found[1]) if found else 1


def parse(hlo: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Computations by name, each its instructions by name with the root last; and the entry."""
    # Line by line: a head opens a computation, its instructions follow, a brace ends it.
    computations: dict[str, dict[str, Instruction]] = {}
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
            current[found["name"]] = Instruction(found["name"], shape, op, operands, rest)
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


def shape_bytes(shape: str) -> int:
    """Of an array, or of all those of a tuple."""
    total = 0
    for one in _SHAPE.finditer(re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)):
        digits = re.search(r"\d+", one["dtype"])
        bits = _ITEM_BITS.get(one["dtype"]) or int(digits[0] if digits else 0)
        total += math.prod(int(n) for n in one["dims"].split(",") if n) * bits // 8
    return total


def dims_of(shape: str) -> list[int]:
    """Axes of an array, or of the first of a tuple."""
    first = _SHAPE.search(shape)
    assert first is not None
    return [int(n) for n in first["dims"].split(",") if n]
