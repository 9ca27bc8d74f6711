"""Memory of a train step by several methods: the compiler's plan, and what a GPU had in use.

Every method runs in a process of its own, since a peak never falls again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pbr_jax.compare.steps import memory_in_own_process
from pbr_jax.configs.common import Config
from pbr_jax.measure.text import format_bytes
from pbr_jax.runs.progress import progress
from pbr_jax.settings import saved as configuration
from pbr_jax.settings.variants import with_method


def measure(config: Config, methods: Sequence[str]) -> dict[str, Any]:
    """Measures the memory of each method; this process must not have used its GPU before.

    Returns:
      `{"config", "memory": {method: {"saved_bytes", "argument_bytes", "output_bytes", "temp_bytes",
      "alias_bytes", "peak_bytes", "compiling", "running"}}, "refused"}`; bytes as
      `compare.steps.memory_here` has them.
    """
    found: dict[str, Any] = {"config": configuration.to_dict(config), "memory": {}, "refused": {}}
    with progress("memory", len(methods)) as done:
        for method in methods:
            try:
                run = with_method(config, method, keep_plan=True)
                found["memory"][method] = memory_in_own_process(run)
            except (ValueError, RuntimeError) as error:
                found["refused"][method] = str(error).splitlines()[0]
            done(method)
    return found


def table(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each method."""
    for method, need in found["memory"].items():
        live = need["running"]  # None without a GPU
        line = {"method": method}
        line |= {name: format_bytes(need[f"{name}_bytes"]) for name in ("saved", "temp", "peak")}
        line["in use"] = "-" if live is None else format_bytes(live)
        line["in use / peak"] = "-" if live is None else f"{live / need['peak_bytes']:.3f}"
        line["in use after compiling"] = "-" if live is None else format_bytes(need["compiling"])
        yield line
