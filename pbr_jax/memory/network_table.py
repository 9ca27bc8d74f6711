"""Steps of several devices by arithmetic, as `pbr fit --link` prints them."""

from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
from rich.text import Text

from pbr_jax.gpu import Card
from pbr_jax.measure.text import format_seconds, markdown
from pbr_jax.memory.fit import MethodFit
from pbr_jax.memory.network import Comparison, Network, compared, pair, to_json

TITLES = ("method", "compute", "exchange", "step", "overlapped", "full / method", "cautious")


def comparisons(rows: Sequence[MethodFit], card: Card, network: Network) -> dict[str, Comparison]:
    """By method, of those whose need is known; none where no link is."""
    if not network.link:
        return {}
    known = [row for row in rows if row.need is not None]
    wire = {row.method: row.need.wire_bytes for row in known if row.need is not None}
    return {row.method: compared(row.config, card, network, wire) for row in known}


def json_values(found: Comparison | None, network: Network) -> dict[str, Any]:
    """What a row of `pbr fit --json` says of the network; null where it is not known."""
    return {
        "hosts": network.hosts,
        "link": network.link or None,
        "seconds": None if found is None else to_json(found),
    }


def cells(method: str, found: Comparison) -> tuple[str, ...]:
    """A row of the table."""
    step = found.step
    times = map(format_seconds, (step.compute, step.exchange, step.exposed, step.hidden))
    ratios = (pair(found.times_faster(cautious)) for cautious in (False, True))
    return (method, *times, *ratios)


def headline(network: Network) -> str:
    """One line that says what the table is."""
    return f"Steps by arithmetic, not measured, over {network.link} between {network.partners}"


def remarks(network: Network) -> list[str]:
    """What the columns are, and are not."""
    inside = "; what the cards of one host exchange with each other counts as nothing"
    return [
        "step: nothing of the exchange is hidden; overlapped: as much as 60 % of the compute takes."
        " Ratios give both.",
        "compute: the least that it can take. full / method: how many times faster; quote"
        " `cautious`, with twice the compute.",
        "exchange: a ring all-reduce at the link's nominal rate"
        + (inside if network.hosts > 1 else "")
        + ".",
    ]


def to_markdown(found: dict[str, Comparison], network: Network) -> list[str]:
    """Lines of Markdown; none without a link."""
    if not found:
        return []
    rows = [cells(f"`{method}`", own) for method, own in found.items()]
    table = markdown([TITLES, *rows])
    notes = (f"* {note}" for note in remarks(network))
    return ["", f"{headline(network)}:", "", table, "", *notes]


def print_steps(found: dict[str, Comparison], network: Network, out: rich.console.Console) -> None:
    """Prints the table; nothing without a link."""
    if not found:
        return
    out.print()
    out.print(Text(headline(network), style="bold"))
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=0, pad_edge=False)
    drawn.add_column(TITLES[0], no_wrap=True)
    for title in TITLES[1:]:
        drawn.add_column(title, justify="right", no_wrap=True)
    for method, own in found.items():
        drawn.add_row(*cells(method, own))
    out.print(drawn)
    for note in remarks(network):
        out.print(Text(note, style="dim"))
