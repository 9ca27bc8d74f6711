"""The table of `pbr fit` on the terminal, in JSON and in Markdown."""

import shlex
from typing import Any, NamedTuple

import jax
import rich.box
import rich.console
import rich.table
from rich.text import Text

from pbr_jax.configs.common import Config
from pbr_jax.families import find
from pbr_jax.gpu import CARDS, Card, MemoryReport
from pbr_jax.measure.text import format_bytes, markdown
from pbr_jax.memory import network_table
from pbr_jax.memory.fit import MethodFit, fastest
from pbr_jax.memory.largest_batch import LARGEST_BATCH
from pbr_jax.memory.network import Comparison, Network
from pbr_jax.settings.flags import train_words
from pbr_jax.settings.variants import joint_spar_suffix, with_method

_WIDE = 96  # columns from which on every row has its parameters and optimizer
_TITLES = ("gradients", "activations", "temp", "peak", "fits", "largest batch", "time")
_HOST = "host"  # of methods that offload
_WIRE = "wire"  # of several devices
_JAX_TAKES = 0.75  # of a card, unless XLA_CLIENT_MEM_FRACTION says otherwise


class Table(NamedTuple):
    """The content of a table of `pbr fit`."""

    config: Config
    card: Card  # its memory, and what was compiled for
    reserve_bytes: int  # left free
    rows: tuple[MethodFit, ...]  # one for each method
    missing: str = ""  # why nothing was compiled and the figures are a formula's
    network: Network = Network()  # where the devices stand; of one host, with no link known

    @property
    def fastest(self) -> MethodFit | None:
        return fastest(self.rows)

    @property
    def steps(self) -> dict[str, Comparison]:
        """Steps by arithmetic, by method; none where no link is known."""
        return network_table.comparisons(self.rows, self.card, self.network)

    def smallest_need(self) -> str:
        """Says what memory there would have to be, where nothing fits."""
        peaks = [(row.need.peak_bytes, row.method) for row in self.rows if row.need is not None]
        if not peaks:
            return f"nothing is known to fit in {format_bytes(self.card.memory_bytes)}"
        peak, least = min(peaks)
        known = [row.largest_batch for row in self.rows if row.largest_batch is not None]
        hint = f"; a batch of {max(known)} would fit" if any(known) else "; no batch would fit"
        return (
            f"nothing fits in {format_bytes(self.card.memory_bytes)}: {least}, the smallest, needs"
            f" {format_bytes(peak + self.reserve_bytes)} with the reserve at batch"
            f" {self.config.batch_size}{hint if known else ''}"
        )


def to_json(table: Table) -> dict[str, Any]:
    """The table as JSON values; sizes in bytes."""
    best, steps = table.fastest, table.steps
    return {
        "gpu": table.card.name,
        "compiled_for": table.card.description,
        "compiled": not table.missing,
        "memory_bytes": table.card.memory_bytes,
        "reserve_bytes": table.reserve_bytes,
        "batch_size": table.config.batch_size,
        "dtype": table.config.model.dtype,
        "fastest": best and best.method,
        "notes": notes(table),
        "versions": {"jax": jax.__version__},
        "rows": [
            json_row(row) | network_table.json_values(steps.get(row.method), table.network)
            for row in table.rows
        ],
    }


def json_row(row: MethodFit) -> dict[str, Any]:
    """One method, with every key, null where it is not known."""
    need, use = row.need, row.use
    return {
        "method": row.method,
        "devices": row.config.mesh.data or 1,
        **{name: need and getattr(need, name) for name in MemoryReport._fields},
        "peak_bytes": need and need.peak_bytes,
        "fits": row.fits,
        "largest_batch": row.largest_batch,
        "parameter_bytes": use and use.parameters,
        "gradient_bytes": use and use.gradients,
        "optimizer_bytes": use and use.optimizer,
        "activation_bytes": use and use.activations,
        "time": row.time and round(row.time, 4),
        "time_measured": row.measured,
        "fault": row.fault,
    }


def to_markdown(table: Table) -> str:
    """The table in Markdown, its notes below."""
    lines: list[tuple[str, ...]] = [("method", *_titles(table))]
    for row in table.rows:
        name = f"**`{row.method}`**" if row == table.fastest else f"`{row.method}`"
        lines.append((name, *_cells(row, table)[2:]))
    remarks = (f"* {note}" for note in notes(table))
    steps = network_table.to_markdown(table.steps, table.network)
    return "\n".join([f"{headline(table)}:", "", markdown(lines), "", *remarks, *steps])


def _cells(row: MethodFit, table: Table) -> list[str]:
    """Cells of a row from parameters on, without its name."""
    use, need = row.use, row.need
    sizes = (use.parameters, use.optimizer, use.gradients, use.activations) if use else [None] * 4
    sizes = (*sizes, *((need.temp_bytes, need.peak_bytes) if need else (None, None)))
    batch = "-" if row.largest_batch is None else f"{row.largest_batch}"
    more = row.largest_batch is not None and row.largest_batch > 0.99 * LARGEST_BATCH
    cells = [
        *("-" if size is None else format_bytes(size) for size in sizes),
        "-" if row.fits is None else "yes" if row.fits else "no",
        f"≥ {batch}" if more else batch,
        "-" if row.time is None else f"{row.time:.2f}" + ("*" if row.measured else ""),
    ]
    if _offloads(table):
        cells.append("-" if need is None else format_bytes(need.host_bytes))
    if _shared(row.config):
        cells.append("-" if need is None else format_bytes(need.wire_bytes))
    return cells


def _offloads(table: Table) -> bool:
    return any(row.need is not None and row.need.host_bytes for row in table.rows)


def _same_state(table: Table) -> bool:
    """Whether the optimizer keeps as much by every method."""
    return len({row.use.optimizer for row in table.rows if row.use is not None}) < 2


def _shared(config: Config) -> bool:
    return (config.mesh.data or 1) > 1


def _titles(table: Table) -> list[str]:
    host, wire = [_HOST] * _offloads(table), [_WIRE] * _shared(table.config)
    return [*_TITLES, *host, *wire]


def headline(table: Table) -> str:
    """One line that says what was asked."""
    config, card = table.config, table.card
    reserve = format_bytes(table.reserve_bytes)
    many = f"{config.mesh.data} x " if _shared(config) else ""
    where = f" in {table.network.hosts} hosts" if table.network.hosts > 1 else ""
    return (
        f"{config.name} · batch {config.batch_size} · {config.model.dtype} · "
        f"{many}{card.name}{where}: "
        f"{format_bytes(card.memory_bytes)} with {reserve} in reserve"
    )


def in_brief(table: Table) -> str:
    """One line with the fastest method that fits and its figures."""
    best = table.fastest
    assert best is not None and best.need is not None
    how = f"by a formula, since {table.missing}" if table.missing else "compiled"
    return (
        f"{best.method}, the fastest plan that fits: {format_bytes(best.need.peak_bytes)} {how}, "
        f"{format_bytes(table.reserve_bytes)} in reserve, {best.time:.2f} of full fine-tuning's "
        "time"
    )


def print_table(table: Table, out: rich.console.Console, spec: str) -> None:
    """Prints the table, the fastest method that fits, and what to know about the figures.

    `spec` is the file of its configuration, for the command that trains so.
    """
    wide, best = out.width >= _WIDE, table.fastest
    out.print(Text(headline(table), style="bold"))
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=0, pad_edge=False)
    drawn.add_column("method", no_wrap=True)
    # A narrow table leaves out what is about the same by every method, or told by another column.
    titles, alike = ["parameters", "optimizer", *_titles(table)], _same_state(table)
    more = _shared(table.config) + _offloads(table) + (not alike)
    left_out = {"parameters", *["optimizer"] * alike, *titles[2 : 2 + more]} if not wide else set()
    shown = [number for number, title in enumerate(titles) if title not in left_out]
    for title in (titles[number] for number in shown):
        drawn.add_column(title.replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
    for row in table.rows:
        cells, fits = _cells(row, table), titles.index("fits")
        colour = {True: "green", False: "red", None: "yellow"}[row.fits]
        cells[fits] = f"[{colour}]{cells[fits]}[/]"
        name = f"{row.method} ◀" if row == best else row.method
        own = (cells[number] for number in shown)
        drawn.add_row(name, *own, style="bold" if row == best else "")
    out.print(drawn)
    use = next((row.use for row in table.rows if row.use), None)
    if not wide and use is not None:
        state = f"parameters {format_bytes(use.parameters)}"
        state += f", optimizer {format_bytes(use.optimizer)}" if alike else ""
        out.print(Text(f"{state} by every method"), soft_wrap=True)
    for row in table.rows:
        if row.fault:
            out.print(Text(f"{row.method}: {row.fault}", style="yellow"), soft_wrap=True)
    if best is not None:
        # JointSPAR is that of the configuration, unless the method has its own.
        method = best.method
        if not joint_spar_suffix(method):
            method += joint_spar_suffix(table.config.method)
        command = shlex.join(train_words(spec, with_method(table.config, method)))
        line = Text.assemble(("◀ fastest that fits  ", "bold green"), command)
        out.print(line, soft_wrap=True)
    for note in notes(table):
        out.print(Text(note, style="dim"))
    network_table.print_steps(table.steps, table.network, out)


def notes(table: Table) -> list[str]:
    """Lines that say what the figures are and are not."""
    card, config = table.card, table.config
    lines = [
        f"Estimated by a formula, not compiled: {table.missing}."
        if table.missing
        else f"Compiled by XLA for {card.description} with jax {jax.__version__}, not run: a peak"
        " on a live card is unverified."
    ]
    if card.name not in CARDS and not table.missing:
        lines.append(f"{card.name} is taken for a card like the {card.description}.")
    if config.model.dtype == "bfloat16" and not card.has_bfloat16:
        lines.append(
            f"{card.description} has no bfloat16 units: XLA computes in float32 and stores bfloat16"
            " where the program says so."
        )
    lines.append(
        "time: a step's, as a fraction of full fine-tuning's; estimated by arithmetic, not measured"
        + (" but for those marked *." if any(row.measured for row in table.rows) else ".")
    )
    if _offloads(table):
        lines.append(
            "host: what a step keeps in the host's pinned memory; no part of temp and peak, and"
            " whether the host has it is not known here."
        )
    if _shared(config):
        lines.append(
            f"Each of {config.mesh.data} devices has {config.batch_size // (config.mesh.data or 1)}"
            " examples; memory and time are those of one of them, without what is exchanged."
        )
        lines.append("wire: what a device exchanges with the others in a step.")
    drops = not find(config.model.family).traced  # what JointSPAR may leave out
    if drops and any(not joint_spar_suffix(row.method) for row in table.rows):
        lines.append(
            "JointSPAR (/js50 or the like behind a method) takes less time and as much memory."
        )
    # Rounded down, so that the reserve stays free.
    share = int(100 * (1 - table.reserve_bytes / card.memory_bytes)) / 100
    if share > _JAX_TAKES:
        lines.append(
            f"JAX takes at most {_JAX_TAKES:.0%} of a card; what needs more of it needs"
            f" XLA_CLIENT_MEM_FRACTION={share:.2f} in the environment."
        )
    return lines
