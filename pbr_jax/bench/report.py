"""The part that all benchmarks share: flags, where figures come from, how they are shown."""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jaxlib

from pbr_jax import __version__
from pbr_jax.files import user_path, write_json
from pbr_jax.measure import text
from pbr_jax.measure.timing import Ceilings


def add_arguments(parser: argparse.ArgumentParser, rounds: int | None = None) -> None:
    """Adds `--json`, `--out` and, where there is a number of them, `--rounds`."""
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=int, default=rounds, help="that are timed, default %(default)s"
        )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="write the same JSON to a file"
    )


def check_positive(flag: str, *numbers: int) -> None:
    """Raises ValueError unless all that was given for `flag` is 1 or more."""
    if min(numbers) < 1:
        each = " each" if len(numbers) > 1 else ""
        raise ValueError(f"{flag} {' '.join(map(str, numbers))}: must be 1 or more{each}")


def finish(
    args: argparse.Namespace, measured: Mapping[str, Any], *paragraphs: str, headed: bool = True
) -> int:
    """Writes what was measured and where, and prints it or `paragraphs`; returns the exit code 0.

    Empty paragraphs are left out; the first, if `headed`, is `headline`.
    """
    # Where and when: without it a figure says nothing.
    device = jax.devices()[0]
    versions = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "pbr_jax": __version__,
        "platform": device.client.platform_version.splitlines()[0],
    }
    found = {
        "command": args.command_line,
        "versions": versions,
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        **measured,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, found)
    if args.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print(*filter(None, [headline(found) if headed else "", *paragraphs]), sep="\n")
    return 0


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


def table(rows: Iterable[Mapping[str, Any]], title: str = "") -> str:
    """Rows with the same keys in Markdown, below a blank line and a title; empty without rows."""
    rows = list(rows)
    if not rows:
        return ""
    cells = text.markdown([list(rows[0]), *([str(cell) for cell in r.values()] for r in rows)])
    return f"\n{title}\n\n{cells}" if title else f"\n{cells}"


def refusals(refused: Mapping[str, str]) -> str:
    """A paragraph for each reason, with all that it kept from running."""
    # Several variants are often refused for one reason.
    reasons: dict[str, list[str]] = {}
    for name, why in refused.items():
        reasons.setdefault(why, []).append(name)
    return "\n".join(f"\nNot run: {', '.join(names)}: {why}" for why, names in reasons.items())
