"""The kernels of a train step as a device ran them, each beside the least time that it could take.

Times come from JAX's profiler. What a kernel has to move and multiply comes from the compiled
program (`pbr_jax.gpu.launches`). The name of the instruction joins the two.
"""

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pbr_jax.compare import steps
from pbr_jax.compare.trials import prepare
from pbr_jax.configs.common import Config
from pbr_jax.gpu.launches import Launch, launches
from pbr_jax.measure import timing

_SHOWN = 0.005  # of the step
_CONTAINERS = ("while", "conditional", "call")  # on a CPU, of what is listed by itself


class Event(NamedTuple):
    """A run of a kernel: the instruction it came from, or its own name, and seconds."""

    name: str
    seconds: float


def measure(config: Config, rounds: int) -> dict[str, Any]:
    """Profiles `rounds` steps of a run.

    Returns:
      `{"method", "ceilings", "seconds": [of each step, without the profiler], "kernels": [{"name",
      "kind", "source", "times", "seconds", "floor"}, ...]}`, seconds and floors of all runs of a
      kernel in a step, the largest loss first; what the program does not name has no floor.
    """
    ceilings = timing.ceilings(config.model.dtype, rounds)
    one = prepare(config)
    run = steps.new_run(one, steps.random_batch(config))
    times = timing.in_turn({"step": run}, rounds)
    if times.refused:
        raise RuntimeError(f"{config.method}: {times.refused['step']}")
    # Steps are timed without the profiler first, which slows them down.
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(rounds):
                result = jax.block_until_ready(run.function(*run.arguments()))
                run.keep(result)
        (file,) = Path(folder).rglob("*.xplane.pb")
        events = read_events(file)
    program = launches(one.step.as_text() or "")
    return {
        "method": config.method,
        "ceilings": ceilings._asdict(),
        "seconds": times.seconds["step"],
        "kernels": by_kernel(events, program, ceilings, rounds),
    }


def read_events(file: Path) -> list[Event]:
    """Reads what ran on the device: on a GPU all streams, else what names its instruction."""
    found = []
    with warnings.catch_warnings():  # JAX's reader has a type without a module
        warnings.simplefilter("ignore", DeprecationWarning)
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        on_gpu = [plane for plane in planes if plane.name.startswith("/device:GPU")]
        for plane in on_gpu or planes:
            for line in plane.lines:
                if on_gpu and not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    instruction = dict(event.stats).get("hlo_op")
                    if on_gpu or (instruction and not instruction.startswith(_CONTAINERS)):
                        name = str(instruction or event.name)
                        found.append(Event(name, 1e-9 * event.duration_ns))
    return found


def by_kernel(
    events: Iterable[Event], program: Iterable[Launch], ceilings: timing.Ceilings, rounds: int
) -> list[dict[str, Any]]:
    """Rows of `measure`, one for each name, the largest loss (seconds above the floor) first."""
    # An event has the name of its instruction, or of the kernel itself.
    known: dict[str, list[Launch]] = {}
    for launch in program:
        for name in {launch.instruction, launch.name}:
            known.setdefault(name, []).append(launch)
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.name not in rows:
            found = known.get(event.name, [])
            floor = sum(one.floor(ceilings.bandwidth, ceilings.flops) for one in found)
            rows[event.name] = {
                "name": found[0].name if found else event.name,
                "kind": found[0].kind if found else "",
                "source": found[0].source if found else "",
                "times": 0.0,
                "seconds": 0.0,
                "floor": floor if found else None,
            }
        # Means over the steps that were profiled.
        rows[event.name]["times"] += 1 / rounds
        rows[event.name]["seconds"] += event.seconds / rounds
    return sorted(rows.values(), key=lambda row: (row["floor"] or 0.0) - row["seconds"])


def table(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Kernels that take a visible part of the step, the largest loss first."""
    total = sum(row["seconds"] for row in found["kernels"])
    for row in found["kernels"]:
        if row["seconds"] < _SHOWN * total:
            continue
        floor = row["floor"]
        yield {
            "kernel": row["name"],
            "kind": row["kind"],
            "of": row["source"],
            "times": f"{row['times']:.0f}",
            "ms": f"{1e3 * row['seconds']:.3f}",
            "floor ms": "-" if floor is None else f"{1e3 * floor:.3f}",
            "floor / ms": "-" if floor is None else f"{floor / row['seconds']:.2f}",
            "of the step": f"{row['seconds'] / total:.1%}",
        }
