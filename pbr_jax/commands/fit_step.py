"""`pbr fit MODULE:FUNCTION`: what a step of the user's own needs, and what fills the memory."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.text import Text

from pbr_jax.families import late
from pbr_jax.gpu import Card, StepMemory, fit
from pbr_jax.gpu.alive import Alive
from pbr_jax.measure.text import format_bytes
from pbr_jax.runs.progress import Terminal

_LISTED = 12  # lines of arrays that are printed; JSON has them all


def load(place: str, arguments: str | None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function at "module:name", and its example arguments.

    Args:
      place: of the function.
      arguments: place of a tuple of arrays or of shapes and dtypes, or of a function that returns
        one; the module may be left out. None is the function's name and `_args`.

    Raises:
      ValueError: nothing is there, or it is of another kind.
    """
    module, _, name = place.partition(":")
    if not module or not name:
        raise ValueError(f"{place}: must be MODULE:FUNCTION, such as train:step for train.py")
    words = arguments or f"{name}_args"
    step = _imported(place)
    args = _imported(words if ":" in words else f"{module}:{words}")
    if not callable(step):
        raise ValueError(f"{place}: is a {type(step).__name__}, and must be a function")
    if callable(args):
        args = args()
    if not isinstance(args, (tuple, list)):
        raise ValueError(
            f"{words}: gives a {type(args).__name__}, and must give a tuple of the arguments of"
            f" {name}: arrays, or jax.ShapeDtypeStruct"
        )
    return step, tuple(args)


def _imported(place: str) -> Any:
    # A program's own folder is where it is started, as with `python -m`.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return late(place)
    except (Exception, SystemExit) as error:  # whatever a module does as it is imported
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{place}: cannot be imported ({why})") from error


def show(place: str, arguments: str | None, card: Card, reserve: int, out: Terminal | None) -> int:
    """Compiles, prints to `out` or else JSON, and returns the exit code: 1 if it does not fit."""
    step, args = load(place, arguments)
    found = fit(step, *args, card=card)
    if out is None:
        print(json.dumps(_to_json(found, reserve), indent=2))
    else:
        _print(place, found, reserve, out)
    return int(not found.fits(reserve))


def _to_json(found: StepMemory, reserve: int) -> dict[str, Any]:
    report = found.report
    return {
        "card": found.card.name,
        "card_bytes": found.card.memory_bytes,
        "reserve_bytes": reserve,
        "fits": found.fits(reserve),
        **report._asdict(),
        "peak_bytes": report.peak_bytes,
        "arrays": [array._asdict() for array in found.arrays],
    }


def _print(place: str, found: StepMemory, reserve: int, out: Terminal) -> None:
    report, card = found.report, found.card
    out.print(Text(f"{place} on {card.name}, {format_bytes(card.memory_bytes)}", style="bold"))
    for title, text in _sums(found, reserve):
        out.print(Text(f"{title:<11}{text}"), soft_wrap=True)
    lines = _lines(found.arrays)
    out.print(Text("\nlargest arrays at the fullest moment", style="bold"))
    for line in lines[:_LISTED]:
        out.print(Text(line), soft_wrap=True)
    if len(lines) > _LISTED:
        out.print(f"and {len(lines) - _LISTED} smaller ones; --json has all")
    out.print(Text(f"Compiled by XLA for {card.description}, not run.", style="dim"))
    if report.alias_bytes == 0 and report.output_bytes > 0.05 * report.peak_bytes:
        advice = "No argument is donated: jax.jit(step, donate_argnums=...) lets outputs take the"
        out.print(f"{advice} place of the arguments that they replace.", soft_wrap=True)


def _lines(arrays: Sequence[Alive]) -> list[str]:
    """One line for those that differ in a number of their path only, as layers do."""
    alike: dict[tuple[str, ...], tuple[int, int]] = {}
    for array in arrays:
        path = re.sub(r"\d+", "*", array.operation)
        key = (array.shape, array.purpose, array.source, path)
        size, number = alike.get(key, (0, 0))
        alike[key] = size + array.bytes, number + array.number
    # Columns stand in line; the path comes last, since it may be of any length.
    cells = [
        (format_bytes(size), f"{number} x {shape}" if number > 1 else shape, *rest)
        for (shape, *rest), (size, number) in sorted(alike.items(), key=lambda item: -item[1][0])
    ]
    widths = [max(map(len, column)) for column in list(zip(*cells[:_LISTED], strict=True))[:-1]]
    return [
        "  ".join(
            [cell.ljust(width) for cell, width in zip(line, widths, strict=False)] + [line[-1]]
        )
        for line in cells
    ]


def _sums(found: StepMemory, reserve: int) -> Iterator[tuple[str, str]]:
    report = found.report
    over = f", {format_bytes(report.alias_bytes)} of them over donated arguments"
    yield "arguments", format_bytes(report.argument_bytes)
    yield "outputs", format_bytes(report.output_bytes) + over * bool(report.alias_bytes)
    yield "temp", format_bytes(report.temp_bytes)
    if report.host_bytes:
        yield "host", format_bytes(report.host_bytes)
    left = found.card.memory_bytes - reserve - report.peak_bytes
    verdict = (
        f"fits, {format_bytes(left)} are left"
        if left >= 0
        else (f"does not fit, {format_bytes(-left)} are missing")
    )
    yield (
        "peak",
        f"{format_bytes(report.peak_bytes)}: {verdict} with {format_bytes(reserve)} in reserve",
    )
