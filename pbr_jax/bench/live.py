"""Memory of a train step by several methods: what the compiler planned, and what a GPU had in use.

Every method runs in a process of its own, since a peak never falls again.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from pbr_jax.bench import step
from pbr_jax.compare import trials
from pbr_jax.configs.common import Config
from pbr_jax.gpu import memory
from pbr_jax.runs.console import format_bytes
from pbr_jax.settings import load as configuration


def measure(
    config: Config, methods: Sequence[str], done: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Memory of each method, in bytes; this process must not have used its GPU before.

    Returns:
      `{"config", "memory": {method: {"saved_bytes", "argument_bytes", "output_bytes", "temp_bytes",
      "alias_bytes", "peak_bytes", "compiling", "running"}}, "refused"}`. The last two are peaks in
      use, None where the device reports none. XLA tries out kernels while it compiles: where
      `running` is no more than `compiling`, that was the peak, and not the step.
    """
    found: dict[str, Any] = {"config": configuration.to_dict(config), "memory": {}, "refused": {}}
    context = multiprocessing.get_context("spawn")
    for method in methods:
        with context.Pool(1) as pool:
            try:
                found["memory"][method] = pool.apply(measure_here, (step.by(method, config),))
            except (ValueError, RuntimeError) as error:
                found["refused"][method] = str(error).splitlines()[0]
        done(method)
    return found


def measure_here(config: Config) -> dict[str, int | None]:
    """One method, in this process."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    one = trials.prepare(config)
    compiling = _peak()
    run = step.new_run(one, step.random_params(config, one.parts), step.random_batch(config))
    for _ in range(3):
        run.keep(jax.block_until_ready(run.function(*run.arguments())))
    planned = step.memory_bytes(one.use.activations, memory(one.step))
    return {**planned, "compiling": compiling, "running": _peak()}


def _peak() -> int | None:
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else None


def table(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each method."""
    for method, need in found["memory"].items():
        line = {"method": method}
        for purpose in ("saved", "temp", "peak"):
            line[purpose] = format_bytes(need[f"{purpose}_bytes"])
        live = need["running"]
        line["in use"] = "-" if live is None else format_bytes(live)
        line["in use / peak"] = "-" if live is None else f"{live / need['peak_bytes']:.3f}"
        line["in use after compiling"] = "-" if live is None else format_bytes(need["compiling"])
        yield line
