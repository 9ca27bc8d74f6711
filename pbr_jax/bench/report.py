"""The part that all benchmarks share: flags, where figures come from, how they are shown."""

import argparse
import datetime
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jaxlib

from pbr_jax import __version__
from pbr_jax.configs.common import within
from pbr_jax.files import user_path, write_json
from pbr_jax.measure import text
from pbr_jax.measure.timing import Ceilings
from pbr_jax.settings.flags import number_faults

_MOST_ELEMENTS = 10**12  # of all dimensions together


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


def check_rounds(rounds: int) -> None:
    """Raises ValueError unless the number of rounds is one that can be timed."""
    if faults := number_faults("--rounds", within(1, 10**5), rounds):
        raise ValueError(*faults)


def check_shape(shape: Sequence[int]) -> None:
    """Raises ValueError unless arrays of that shape can be made."""
    faults = number_faults("--shape", within(1, 10**6), *shape)
    if not faults and (size := math.prod(shape)) > _MOST_ELEMENTS:
        faults = [f"--shape {' '.join(map(str, shape))}: {size} elements; at most {_MOST_ELEMENTS}"]
    if faults:
        raise ValueError(*faults)


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
