"""The part that all benchmarks share: flags, where figures come from, how they are shown."""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib

from pbr_jax import __version__
from pbr_jax.files import write_json
from pbr_jax.measure import text
from pbr_jax.measure.timing import Ceilings, Spread


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Adds `--rounds`, `--json` and `--out`."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="that are timed, default %(default)s"
    )
    add_output(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds `--json` and `--out`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the same JSON to a file")


def check_rounds(rounds: int) -> None:
    """Raises ValueError unless there is a round."""
    if rounds < 1:
        raise ValueError(f"--rounds {rounds}: must be 1 or more")


def _origin(command: str) -> dict[str, Any]:
    """Command, versions, device and day of a measurement."""
    device = jax.devices()[0]
    versions = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "pbr_jax": __version__,
        "platform": device.client.platform_version.splitlines()[0],
    }
    return {
        "command": command,
        "versions": versions,
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
    }


def finish(
    args: argparse.Namespace, measured: Mapping[str, Any], show: Callable[[Mapping[str, Any]], None]
) -> int:
    """Writes and prints what was measured and where; returns the exit code 0."""
    found = {**_origin(args.command_line), **measured}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, found)
    if args.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        show(found)
    return 0


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a table in Markdown."""
    return text.markdown([list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)])


def headline(found: Mapping[str, Any]) -> str:
    """The device, its ceilings as measured, and the versions."""
    line = f"{found['device']}, jax {found['versions']['jax']}"
    if "ceilings" in found:
        at_most = Ceilings(**found["ceilings"])
        line += (
            f": {at_most.flops / 1e12:.3g} TFLOP/s in a matrix product and"
            f" {at_most.bandwidth / 1e9:.3g} GB/s in a copy, measured in the same run; a call of"
            f" nothing takes {text.format_seconds(at_most.launch)}"
        )
    return line


def show_refusals(refused: Mapping[str, str]) -> str:
    """A paragraph for each reason, with all that it kept from running."""
    reasons: dict[str, list[str]] = {}
    for name, why in refused.items():
        reasons.setdefault(why, []).append(name)
    return "".join(f"\nNot run: {', '.join(names)}: {why}\n" for why, names in reasons.items())


def show_ratio(value: Spread) -> str:
    """`0.75 (0.74-0.77)`: median and quartiles."""
    return f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})"


def show_milliseconds(value: Spread) -> str:
    """`12.3 ±0.1`: median, and half of the distance between the quartiles."""
    return f"{1e3 * value.median:.4g} ±{5e2 * (value.high - value.low):.2g}"
