"""Time and memory of a whole train step by several methods, on random data."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.bench import report, timing
from pbr_jax.compare import trials
from pbr_jax.configs.common import Config
from pbr_jax.gpu import MemoryReport, memory, present_card
from pbr_jax.memory import cost
from pbr_jax.memory.fit import with_method
from pbr_jax.runs.console import format_bytes
from pbr_jax.settings import load as configuration
from pbr_jax.settings.rules import method_fault
from pbr_jax.training import from_config
from pbr_jax.training.step import Batch

METHODS = (
    *("full", "remat", "remat/chunks1", "backrazor", "prebackrazor-", "prebackrazor"),
    *("prebackrazor++", "prebackrazor++/js70", "prebackrazor++/js50"),
    *("fast", "fast/js50", "lean", "lean/js50", "tiny"),
)


def checked_methods(names: str) -> list[str]:
    """The methods of a list with commas, each once.

    Raises:
      ValueError: naming all that are none.
    """
    methods = list(dict.fromkeys(names.split(",")))
    if faults := [f"--methods {m}: {fault}" for m in methods if (fault := method_fault(m))]:
        raise ValueError("\n".join(faults))
    return methods


def by(method: str, config: Config) -> Config:
    """The run by another method; what does not prune is not told how, the plan is for all."""
    return dataclasses.replace(with_method(config, method), plan=config.plan)


def random_batch(config: Config) -> Batch:
    """Noise, random tokens that fill every sequence, random labels."""
    m = config.model
    below = {"tokens": m.vocab_size, "token_types": 2, "label": m.num_classes}
    batch = {
        name: timing.random_like(spec, seed, below.get(name, 1))
        for seed, (name, spec) in enumerate(from_config.batch_specs(config).items())
    }
    if "lengths" in batch:
        batch["lengths"] = jnp.full_like(batch["lengths"], m.max_length)
    return batch


def measure(
    config: Config,
    methods: Sequence[str],
    rounds: int,
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Times of a step by each method, all in turn, and the memory that each was compiled to.

    Returns:
      `{"family", "size", "dtype", "batch", "tokens", "config", "ceilings", "dense_flops",
      "seconds": {method: [...]}, "memory": {method: bytes by purpose}, "arithmetic": {method:
      seconds}, "refused"}`; `dense_flops` are those of the matrix products of a full step, and
      `arithmetic` is what `pbr fit` expects of this GPU, or empty.

    Raises:
      ValueError: "full" is not among the methods, or cannot be compiled.
    """
    if "full" not in methods:
        raise ValueError("--methods: full must be among them, ratios are to it")
    refused: dict[str, str] = {}
    contestants = {}
    for method in methods:
        try:
            contestants[method] = trials.prepare(by(method, config))
        except (ValueError, RuntimeError) as error:
            refused[method] = str(error).splitlines()[0]
        done(f"compiling {method}")
    if "full" not in contestants:
        raise ValueError(f"full cannot be compiled: {refused['full']}")
    batch = random_batch(config)
    params = random_params(config, contestants["full"].parts)
    runs = {m: new_run(one, params, batch) for m, one in contestants.items()}
    times = timing.in_turn(runs, rounds, done)
    return {
        "family": config.model.family,
        "size": config.model.size,
        "dtype": config.model.dtype,
        "batch": config.batch_size,
        "tokens": from_config.num_tokens(config),
        "config": configuration.to_dict(config),
        "ceilings": timing.ceilings(config.model.dtype, rounds)._asdict(),
        "dense_flops": dense_flops(config),
        "seconds": times.seconds,
        "memory": {
            method: memory_bytes(one.use.activations, memory(one.step))
            for method, one in contestants.items()
        },
        "arithmetic": _arithmetic(contestants),
        "refused": refused | times.refused,
    }


def _arithmetic(contestants: Mapping[str, trials.Contestant]) -> dict[str, float]:
    card = present_card()
    if card is None:
        return {}
    return {m: cost.step_seconds(one.config, card, one.use) for m, one in contestants.items()}


def random_params(config: Config, parts: from_config.Parts) -> Any:
    """Small random numbers, and ones where a LayerNorm scales; the same for every method."""

    def draw(path, spec):
        return 0.02 * timing.random_like(spec, spec.size) + float(path[-1].key == "scale")

    shapes = from_config.state_shapes(config, parts).params
    return jax.tree_util.tree_map_with_path(draw, shapes)


def new_run(one: trials.Contestant, params: Any, batch: Batch) -> timing.Run:
    """A step that goes on from the state of the one before."""
    held = [from_config.new_state(one.config, one.parts, jax.tree.map(jnp.copy, params))]

    def keep(result):
        held[0] = result[0]

    return timing.Run(one.step, lambda: (held[0], batch), keep, chained=True)


def memory_bytes(activations: int, need: MemoryReport) -> dict[str, int]:
    """What a step needs by purpose, and its peak."""
    return {"saved_bytes": activations, **need._asdict(), "peak_bytes": need.peak_bytes}


def dense_flops(config: Config) -> int:
    """Operations of the products of a full step: three for every layer, seven for attention."""
    sizes, tokens = from_config.model_sizes(config), from_config.num_tokens(config)
    layers = sizes.width * (4 * sizes.width + 2 * sizes.mlp_dim)
    each = 3 * 2 * layers + 7 * 2 * tokens * sizes.width
    return sizes.depth * config.batch_size * tokens * each


def table(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each method that ran; ratios of times are taken within rounds."""
    seconds, needs, expected = found["seconds"], found["memory"], found["arithmetic"]
    for method, spent in seconds.items():
        need, full = needs[method], needs["full"]
        median = timing.spread(spent)
        line = {
            "method": method,
            "ms": report.show_milliseconds(median),
            "/ full": report.show_ratio(timing.ratio(spent, seconds["full"])),
            "/ backrazor": "-",
            "examples/s": f"{found['batch'] / median.median:.4g}",
            "saved": format_bytes(need["saved_bytes"]),
            "temp": format_bytes(need["temp_bytes"]),
            "peak": format_bytes(need["peak_bytes"]),
            "peak / full": f"{need['peak_bytes'] / full['peak_bytes']:.2f}",
        }
        if "backrazor" in seconds:
            line["/ backrazor"] = f"{timing.ratio(spent, seconds['backrazor']).median:.2f}"
        if expected:
            line["arithmetic"] = f"{expected[method] / expected['full']:.2f}"
        yield line
