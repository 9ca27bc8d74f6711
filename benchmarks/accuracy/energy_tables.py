"""Tables of the energy study: shares by site and by depth, and how probabilities concentrate."""

from collections.abc import Sequence
from typing import Any

import numpy as np

DEEP = ("best K, behind the backward pass", "norms of x, last step", "importance", "forecast")


def table(results: dict[str, Any], sites: Sequence[str]) -> str:
    """Shares of energy in per cent, means over blocks, by site."""
    rows = [f"| chooser | {' | '.join(sites)} |", "|---|" + "---|" * len(sites)]
    for name, by_site in results.items():
        cells = [
            f"{100 * np.mean(by_site[s]['share']):.1f}" if s in by_site else "-" for s in sites
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def spread(results: dict[str, Any], sites: Sequence[str]) -> str:
    """How far each policy's probabilities concentrate, and which columns it never trained."""
    rows = ["| policy | site | effective columns / D | p > 0.9 | never trained |", "|---" * 5 + "|"]
    for name, by_site in results.items():
        for site in sites:
            found = by_site.get(site, {})
            if "effective" in found:
                kinds = ("effective", "certain", "never")
                shown = " | ".join(f"{100 * np.mean(found[kind]):.1f} %" for kind in kinds)
                rows.append(f"| {name} | {site} | {shown} |")
    return "\n".join(rows)


def depths(results: dict[str, Any], sites: Sequence[str]) -> str:
    """Shares of energy in per cent by block, of the choosers of `DEEP`."""
    blocks = range(len(next(iter(results.values()))[sites[0]]["share"]))
    rows = [
        f"| chooser | site | {' | '.join(map(str, blocks))} |",
        "|---|---" + "|---" * len(blocks) + "|",
    ]
    for name in DEEP:
        for site in sites:
            shown = " | ".join(f"{100 * share:.1f}" for share in results[name][site]["share"])
            rows.append(f"| {name} | {site} | {shown} |")
    return "\n".join(rows)
