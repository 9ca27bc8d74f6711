"""The method that a memory budget chooses for a run, and advice when memory runs out."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from pbr_jax.configs.common import Config, size_in_bytes
from pbr_jax.gpu import Card, GpuCompilerMissing, present_card, require_compiler, sized_card
from pbr_jax.measure.memory import memory_limit
from pbr_jax.measure.text import format_bytes
from pbr_jax.memory import fit
from pbr_jax.memory.cache import cache_folder, cached
from pbr_jax.memory.room import offload_fault
from pbr_jax.memory.table import Table, in_brief
from pbr_jax.settings.variants import candidates, with_method

RESERVE = "0.75GiB"
"""Memory that stays free: driver, libraries, the compiler's own tuning, fragments."""


class OutOfMemory(RuntimeError):
    """The accelerator's memory did not suffice; the message lists what would need less."""


def settle(config: Config, saved: Mapping[str, Any] | None) -> tuple[Config, list[str]]:
    """Gives `config` the method that its `memory_budget` chooses, and lines that say so.

    The fastest of `candidates` that fits: compiled for the GPU at hand with the budget as its
    memory, or for a card of that size, or estimated where the compiler is not installed. The choice
    of a run that is resumed stays; `saved` are its settings.

    Raises:
      ValueError: nothing fits.
    """
    if config.memory_budget is None:
        return config, []
    if saved is not None and saved.get("memory_budget") == config.memory_budget:
        kept = with_method(config, saved["method"])
        return kept, [f"memory_budget = {config.memory_budget}: {kept.method}, as at the start"]
    # The budget is all of the memory of a card like the one at hand, if there is one.
    budget, reserve = size_in_bytes(config.memory_budget), size_in_bytes(RESERVE)
    assert budget is not None and reserve is not None
    card = present_card() or sized_card(config.memory_budget, budget)
    card = dataclasses.replace(card, name=config.memory_budget, memory_bytes=budget)
    rows: list[fit.MethodFit] = []
    with measure_for(card) as (measure, missing):
        target = fit.Target(card, reserve, measure)
        runs = [run for run in fit.by_time(config, card) if not offload_fault(run)]
        for run in runs:  # what is slower than the choice is not compiled
            rows.append(fit.fit_method(run, target, largest=False))
            if rows[-1].fits:
                break
    table = Table(config, card, reserve, tuple(rows), missing)
    if not rows[-1].fits:
        raise ValueError(f"memory_budget = {config.memory_budget}: {table.smallest_need()}")
    return rows[-1].config, [f"memory_budget = {config.memory_budget}: {in_brief(table)}"]


@contextlib.contextmanager
def measure_for(
    card: Card, *, cache: bool = True, hosts: int = 1
) -> Iterator[tuple[fit.Measure, str]]:
    """Yields how memory is found out here for `card`, and why nothing is compiled, if so.

    The devices of `mesh.data` stand in so many hosts.
    """
    missing = ""
    try:
        require_compiler()
    except GpuCompilerMissing as error:
        missing = str(error)
    # Without the compiler there is nothing to remember either.
    folder = cache_folder() if cache and not missing else None
    with contextlib.nullcontext(fit.estimated) if missing else fit.compiled(card, hosts) as measure:
        yield (cached(measure, card, folder, _warn, hosts) if folder else measure), missing


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


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
    device, limit = jax.local_devices()[0], memory_limit()
    need = fit.estimated(config).peak_bytes
    lines = [
        f"out of memory: {error.strip().splitlines()[0]}",
        f"{config.method} at batch {config.batch_size} needs about {format_bytes(need)} a step"
        + (f"; JAX has {format_bytes(limit)} of {device.device_kind}" if limit else ""),
        "What needs less, the least time first (memory by a formula; `pbr fit` compiles):",
    ]
    target = fit.Target(sized_card(device.device_kind, limit or need), 0, fit.estimated)
    options = {f"--config.method={n}": with_method(config, n) for n in candidates(config)}
    options = {words: option for words, option in options.items() if not offload_fault(option)}
    parts = 2 * config.optimizer.accumulation_steps
    halved = dataclasses.replace(config.optimizer, accumulation_steps=parts)
    words = f"--config.optimizer.accumulation_steps={parts}"
    options[words] = dataclasses.replace(config, optimizer=halved)
    # What hardly needs less is no help.
    less = []
    for words, option in options.items():
        found = fit.fit_method(option, target, largest=False)
        if found.need is not None and found.need.peak_bytes < 0.95 * need:
            less.append((found.time, found.need.peak_bytes, words))
    lines += [
        f"  {words:<44} about {format_bytes(peak):>7}, time {time:.2f} of full fine-tuning's"
        for time, peak, words in sorted(less)
    ]
    lines.append(f"  --config.batch_size={config.batch_size // 2 or 1} or less: another course")
    if device.platform == "gpu":
        share = "XLA_CLIENT_MEM_FRACTION=0.95"
        lines.append(f"  {share} gives JAX more than the usual 75 % of the card")
    return lines
