"""The arrays that fill a compiled step's memory at its fullest moment, by name and place.

XLA reports no more than sums. What it can write to a folder beside says the rest: where each value
lies in which buffer, from which instruction to which it is needed, and the program itself, which
knows the JAX operation and the line that a value comes from.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

_ALLOCATION = re.compile(r"allocation \d+: size \d+, (.*):$")
_VALUE = re.compile(
    r" value: <\d+ (?P<name>[^ {]+)(?P<part>\{[\d,]*\})?(?: \(phi\))? @\d+> "
    r"\(size=(?P<size>\d+),offset=(?P<offset>\d+)\): (?P<shape>[^{ ]+)"
)
_RANGE = re.compile(r"    (?P<name>[^ {]+)(?P<part>\{[\d,]*\}):(?P<first>\d+)-(?P<last>\d+)$")
_INSTRUCTION = re.compile(r"  (?:ROOT )?%(?P<name>[\w.-]+) = .*?metadata=\{(?P<metadata>[^}]*)\}")
_PLACES = ("FileNames", "FileLocations", "StackFrames")
_PURPOSES = {"parameter": "argument", "output": "output", "temp": "temp"}  # constants: none
# Instructions that hand on what another one made.
_PASSED_ON = ("while", "arg_tuple", "tuple", "get-tuple-element", "copy", "bitcast")


class Alive(NamedTuple):
    """Arrays of one shape and origin that are in memory at the fullest moment."""

    bytes: int  # of all of them
    number: int
    shape: str  # of one, such as "bf16[128,197,768]"
    purpose: str  # "argument", "output" or "temp"
    operation: str  # the JAX operation, or the argument's name, such as "jit(step)/jvp()/tanh"
    source: str  # "file.py:41" of the user's code, or "" where XLA has lost it


class _Value(NamedTuple):
    name: str
    size: int
    offset: int
    shape: str
    first: int  # instruction that makes it
    last: int  # that reads it last


def dump_options(folder: Path) -> dict[str, bool | str]:
    """Compiler options that have XLA write what `largest` reads to an empty folder."""
    return {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}


def largest(folder: Path) -> tuple[Alive, ...]:
    """All arrays in memory at the fullest moment, the largest first.

    Arguments and outputs have memory all along, and so count whenever that moment is.

    Args:
      folder: what `dump_options` named, after one compilation.

    Raises:
      ValueError: a file is missing, or its form is not the one that is known.
    """
    assignment = _read(folder, "buffer-assignment.txt")
    ranges = {
        found["name"] + found["part"]: (int(found["first"]), int(found["last"]))
        for line in _read(folder, "live-range.txt").splitlines()
        if (found := _RANGE.match(line))
    }
    origins = _origins(_read(folder, "gpu_after_optimizations.txt"))
    buffers = _buffers(assignment, ranges)
    if not buffers:
        raise ValueError(f"{folder}: XLA's assignment of buffers has an unknown form")
    sizes: Counter[tuple[str, ...]] = Counter()
    counts: Counter[tuple[str, ...]] = Counter()
    for purpose, values in buffers:
        for alive in _at_its_fullest(values) if purpose == "temp" else [values]:
            size, shape = max((value.size, value.shape) for value in alive)
            key = (shape, purpose, *_origin(alive, values, origins))
            sizes[key] += size
            counts[key] += 1
    arrays = [Alive(size, counts[key], *key) for key, size in sizes.items()]
    return tuple(sorted(arrays, key=lambda array: -array.bytes))


def _read(folder: Path, ending: str) -> str:
    files = sorted(folder.glob(f"*{ending}"))
    if len(files) != 1:
        raise ValueError(f"{folder}: {len(files)} files *{ending}, expected 1 by XLA")
    return files[0].read_text()


def _buffers(
    assignment: str, ranges: Mapping[str, tuple[int, int]]
) -> list[tuple[str, list[_Value]]]:
    """Values of each buffer, with the buffer's purpose; constants are part of the program."""
    buffers: list[tuple[str, list[_Value]]] = []
    values: list[_Value] = []
    for line in assignment.splitlines():
        if head := _ALLOCATION.match(line):
            values = []
            purpose = next((p for word, p in _PURPOSES.items() if word in head[1]), "")
            if purpose:
                buffers.append((purpose, values))
        elif found := _VALUE.match(line):
            name, part = found["name"], found["part"] or "{}"
            if (name + part) in ranges and not found["shape"].startswith("("):
                first, last = ranges[name + part]
                place = int(found["size"]), int(found["offset"]), found["shape"]
                values.append(_Value(name, *place, first, last))
    return [(purpose, values) for purpose, values in buffers if values]


def _at_its_fullest(values: list[_Value]) -> Iterable[list[_Value]]:
    """Values alive at the moment when most of a buffer is in use, those of one place together."""
    # What is alive changes only where a value begins.
    moments = sorted({value.first for value in values})

    def places(moment: int) -> dict[int, list[_Value]]:
        alive: dict[int, list[_Value]] = {}
        for value in values:
            if value.first <= moment <= value.last:
                alive.setdefault(value.offset, []).append(value)
        return alive

    def used(moment: int) -> int:
        return sum(max(v.size for v in alive) for alive in places(moment).values())

    return places(max(moments, key=used)).values()


def _origin(
    alive: Iterable[_Value], values: Iterable[_Value], origins: Mapping[str, tuple[str, str]]
) -> tuple[str, str]:
    """Operation and line of what lies in one place.

    A loop hands on what was made in it or before it, and a copy may have no origin: then that of
    another value that had the same place is taken, the nearest in time.
    """
    now = max(alive, key=lambda value: value.size)
    same = [v for v in values if (v.offset, v.size) == (now.offset, now.size) and v.name in origins]
    same.sort(key=lambda value: (_is_passed_on(value), abs(value.first - now.first)))
    return origins[same[0].name] if same else ("", "")


def _is_passed_on(value: _Value) -> bool:
    return value.name.startswith(_PASSED_ON)


def _origins(program: str) -> dict[str, tuple[str, str]]:
    """Name of an instruction -> its JAX operation and the line of the source."""
    tables: dict[str, dict[str, str]] = {name: {} for name in _PLACES}
    table: dict[str, str] | None = None
    origins = {}
    for line in program.splitlines():
        if line in tables:
            table = tables[line]
        elif not line:
            table = None
        elif table is not None:
            number, _, rest = line.partition(" ")
            table[number] = rest.strip('"')
        elif found := _INSTRUCTION.match(line):
            operation = re.search(r'op_name="([^"]*)"', found["metadata"])
            frame = re.search(r"stack_frame_id=(\d+)", found["metadata"])
            place = _place(tables, frame[1]) if frame else ""
            origins[found["name"]] = (operation[1].replace("\\'", "'") if operation else "", place)
    return {name: origin for name, origin in origins.items() if any(origin)}


def _place(tables: Mapping[str, Mapping[str, str]], frame: str) -> str:
    """`file.py:41` of a frame."""
    location = re.search(r"file_location_id=(\d+)", tables["StackFrames"].get(frame, ""))
    found = tables["FileLocations"].get(location[1], "") if location else ""
    file = re.search(r"file_name_id=(\d+)", found)
    line = re.search(r"\bline=(\d+)", found)
    if file is None or line is None:
        return ""
    return f"{Path(tables['FileNames'].get(file[1], '?')).name}:{line[1]}"
