"""The plan that a memory budget chooses for a run, and what to do when memory runs out."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from pbr_jax.configs.common import Config, size_in_bytes
from pbr_jax.gpu import Card, GpuCompilerMissing, present_card, require_compiler, sized_card
from pbr_jax.memory import fit
from pbr_jax.memory.cache import cache_folder, cached
from pbr_jax.memory.table import Table, in_brief
from pbr_jax.runs.console import format_bytes

RESERVE = "0.75GiB"
"""Memory that stays free: driver, libraries, the compiler's own tuning, fragments."""


class OutOfMemory(RuntimeError):
    """The accelerator's memory did not suffice; the message lists what would need less."""


def settle(config: Config, saved: Mapping[str, Any] | None) -> tuple[Config, list[str]]:
    """`config` with the method that its `memory_budget` chooses, and lines that say so.

    The fastest of `fit.candidates` that fits: compiled for the GPU at hand with the budget as
    its memory, or for a card of that size, or estimated where the compiler is not installed.

    Args:
      config: the run.
      saved: the settings of the run that is resumed; its choice stays.

    Raises:
      ValueError: nothing fits.
    """
    if config.memory_budget is None:
        return config, []
    if saved is not None and saved.get("memory_budget") == config.memory_budget:
        kept = fit.with_method(config, saved["method"])
        return kept, [f"memory_budget = {config.memory_budget}: {kept.method}, as at the start"]
    budget, reserve = size_in_bytes(config.memory_budget), size_in_bytes(RESERVE)
    assert budget is not None and reserve is not None
    card = present_card() or sized_card(config.memory_budget, budget)
    card = dataclasses.replace(card, name=config.memory_budget, memory_bytes=budget)
    measure, missing = measure_for(card)
    rows = []
    for name, time in fit.by_time(config, card).items():
        row, _ = fit.find_row(config, name, card, reserve, measure, largest=False)
        rows.append(row._replace(time=time))
        if row.fits:
            break
    table = Table(config, card, reserve, tuple(rows), missing)
    if not rows[-1].fits:
        raise ValueError(f"memory_budget = {config.memory_budget}: {table.smallest_need()}")
    return rows[-1].config, [f"memory_budget = {config.memory_budget}: {in_brief(table)}"]


def measure_for(card: Card, *, cache: bool = True) -> tuple[fit.Measure, str]:
    """How memory is found out here for `card`, and why nothing is compiled, if that is so."""
    try:
        require_compiler()
    except GpuCompilerMissing as missing:
        return fit.estimated, str(missing)
    compiled = fit.compiled(card)
    return (cached(compiled, card, cache_folder()) if cache else compiled), ""


@contextlib.contextmanager
def explain_out_of_memory(config: Config) -> Iterator[None]:
    """Turns JAX's error into `OutOfMemory`, which lists what would need less, cheapest first."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory("\n".join(_advice(config, str(error)))) from error


def _advice(config: Config, error: str) -> list[str]:
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    need = fit.estimated(config).peak_bytes
    lines = [
        f"out of memory: {error.strip().splitlines()[0]}",
        f"{config.method} at batch {config.batch_size} needs about {format_bytes(need)} a step"
        + (f"; JAX has {format_bytes(limit)} of {device.device_kind}" if limit else ""),
        "What needs less, the least time first (memory by a formula; `pbr fit` compiles):",
    ]
    card = sized_card(device.device_kind, limit or need)
    options = {f"--config.method={n}": fit.with_method(config, n) for n in fit.candidates(config)}
    parts = 2 * config.optimizer.accumulation_steps
    halved = dataclasses.replace(config.optimizer, accumulation_steps=parts)
    options[f"--config.optimizer.accumulation_steps={parts}"] = dataclasses.replace(
        config, optimizer=halved
    )
    found = []
    for words, option in options.items():
        row, _ = fit.find_row(option, option.method, card, 0, fit.estimated, largest=False)
        if row.need is not None and row.need.peak_bytes < 0.95 * need:
            found.append((row.time, row.need.peak_bytes, words))
    lines += [
        f"  {words:<44} about {format_bytes(peak):>7}, time {time:.2f} of full fine-tuning's"
        for time, peak, words in sorted(found)
    ]
    lines.append(f"  --config.batch_size={config.batch_size // 2 or 1} or less: another course")
    if device.platform == "gpu":
        lines.append(
            "  XLA_CLIENT_MEM_FRACTION=0.95 gives JAX more than the usual 75 % of the card"
        )
    return lines
