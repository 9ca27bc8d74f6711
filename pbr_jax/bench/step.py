"""Time and memory of a whole train step by several methods, on random data."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pbr_jax.compare import steps
from pbr_jax.compare.trials import prepare
from pbr_jax.configs.common import Config
from pbr_jax.families import find
from pbr_jax.gpu import present_card
from pbr_jax.measure import timing
from pbr_jax.measure.text import format_bytes
from pbr_jax.memory import cost
from pbr_jax.memory.use import program_flops
from pbr_jax.methods import with_variants
from pbr_jax.runs.progress import progress
from pbr_jax.settings import saved as configuration
from pbr_jax.settings.resolve import architecture
from pbr_jax.settings.variants import for_family, split_methods, with_method

METHODS = with_variants(
    {
        "remat": ["/chunks1"],
        "prebackrazor++": ["/js70", "/js50"],
        "fast": ["/js50"],
        "lean": ["/js50"],
    }
)


def add_methods(parser: argparse.ArgumentParser) -> None:
    """Adds `--methods`, which `checked_methods` reads."""
    parser.add_argument(
        "--methods", help="names, joined by commas; default: all that the model can be trained by"
    )


def checked_methods(config: Config, names: str | None) -> list[str]:
    """The methods of a list with commas, each once; raises ValueError naming all that are none."""
    methods, faults = split_methods(names or ",".join(for_family(config, METHODS)))
    if faults:
        raise ValueError("\n".join(faults))
    return methods


def measure(config: Config, methods: Sequence[str], rounds: int) -> dict[str, Any]:
    """Times a step by each method, all in turn, and reads the memory that each was compiled to.

    Returns:
      `{"family", "size", "dtype", "batch", "config", "ceilings", "dense_flops",
      "seconds": {method: [...]}, "memory": {method: bytes by purpose}, "arithmetic": {method:
      seconds}, "refused"}`; `dense_flops` are those of the matrix products of a full step, and
      `arithmetic` is what `pbr fit` expects of this GPU, or empty.

    Raises:
      ValueError: "full" is not among the methods, or cannot be compiled.
    """
    if "full" not in methods:
        raise ValueError("--methods: full must be among them, ratios are to it")
    # A method that cannot take this batch, or does not compile, is named and left out.
    refused: dict[str, str] = {}
    prepared = {}
    with progress("train step", len(methods) * (rounds + 3)) as done:
        for method in methods:
            try:
                prepared[method] = prepare(with_method(config, method, keep_plan=True))
            except (ValueError, RuntimeError) as error:
                refused[method] = str(error).splitlines()[0]
            done(f"compiling {method}")
        if "full" not in prepared:
            raise ValueError(f"full cannot be compiled: {refused['full']}")
        # All methods start from the same parameters, and see the same batch.
        batch = steps.random_batch(config)
        runs = {method: steps.new_run(one, batch) for method, one in prepared.items()}
        times = timing.in_turn(runs, rounds, done)
    card = present_card()
    return {
        "family": config.model.family,
        "size": config.model.size,
        "dtype": config.model.dtype,
        "batch": config.batch_size,
        "config": configuration.to_dict(config),
        "ceilings": timing.ceilings(config.model.dtype, rounds)._asdict(),
        "dense_flops": dense_flops(config),
        "seconds": times.seconds,
        "memory": {method: one.planned for method, one in prepared.items()},
        "arithmetic": {
            method: cost.step_seconds(one.config, card, one.use)
            for method, one in prepared.items()
            if card is not None
        },
        "refused": refused | times.refused,
    }


def dense_flops(config: Config) -> int:
    """Operations of the products of a full step: three for every layer, seven for attention."""
    if (family := find(config.model.family)).traced or family.describe is None:
        return program_flops(with_method(config, "full"))
    sizes = architecture(config)
    each = 3 * 2 * sum(site.columns * site.features for site in sizes.sites.values())
    if sizes.attention is not None:
        each += 7 * 2 * sizes.tokens * sizes.width
    return sizes.depth * config.batch_size * sizes.tokens * each


def table(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each method that ran; ratios of times are taken within rounds."""
    seconds, needs, expected = found["seconds"], found["memory"], found["arithmetic"]
    for method, spent in seconds.items():
        need, full = needs[method], needs["full"]
        time, ratio = timing.spread(spent), timing.ratio(spent, seconds["full"])
        line = {
            "method": method,
            "ms": f"{1e3 * time.median:.4g} ±{5e2 * (time.high - time.low):.2g}",
            "/ full": f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            "/ backrazor": "-",
            "examples/s": f"{found['batch'] / time.median:.4g}",
        }
        line |= {name: format_bytes(need[f"{name}_bytes"]) for name in ("saved", "temp", "peak")}
        line["peak / full"] = f"{need['peak_bytes'] / full['peak_bytes']:.2f}"
        if "backrazor" in seconds:
            line["/ backrazor"] = f"{timing.ratio(spent, seconds['backrazor']).median:.2f}"
        if expected:
            line["arithmetic"] = f"{expected[method] / expected['full']:.2f}"
        yield line
