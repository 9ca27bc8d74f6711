"""A real decoder on a real text: loss, memory and time of a step, method by method.

    python benchmarks/real/smollm2.py && python benchmarks/real/definitions.py
    python benchmarks/real/decoders.py --seeds 2 --out benchmarks/results/definitions.jsonl
    python benchmarks/real/decoders.py --table --out benchmarks/results/definitions.jsonl

Every method but `remat`, which computes what `full` does, trains at the same three rates with seed
0. The one with the lowest loss on the validation part is the method's, and is trained with other
seeds, which alone meet the test part. Steps are equal. A line of the file is a run; those that are
there are not run again.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from once import CONFIG, step_at

from pbr_jax import data
from pbr_jax.compare.table import half_interval
from pbr_jax.measure.text import markdown
from pbr_jax.memory.use import memory_use
from pbr_jax.settings import load as configuration
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin
from pbr_jax.training.inputs import load_data, make_inputs
from pbr_jax.training.loop import make_evaluate

METHODS = ("full", "remat", "lora", "static", "tiny")
RATES = (1e-4, 4e-4, 1.6e-3)
_MORE = {"static": ["pruning.interval=none"]}  # once, as PaCA
_MOST = {"val": 20, "test": 60}  # rows of 128 tokens that are looked at, seven senses each
Line = dict[str, Any]


def settings_of(method: str, seed: int = 0, part: str = "val") -> list[str]:
    """The settings of a run on top of `config.py:definitions`."""
    of_data = [f"data.test_split={part}", f"data.max_test={_MOST[part]}"]
    return [f"method={method}", f"seed={seed}", *of_data, *_MORE.get(method, [])]


def run(method: str, rate: float, seed: int, parts: tuple[str, ...], steps: int | None) -> Line:
    """Trains, and evaluates the end on these parts of the data."""
    config = configuration.load(f"{CONFIG}:definitions", settings_of(method, seed))
    built, dataset = from_config.build(config), _data("val")
    step, given = _step(method), jnp.float32(rate)
    ready, _ = begin(config, built, dataset, train_step=lambda s, b: step(s, b, given))
    state, losses, seconds = ready.state, [], []
    for _ in range(steps or config.steps):
        batch = next(ready.batches)
        began = time.monotonic()
        state, metrics = ready.train_step(state, batch)
        losses.append(float(metrics.loss))
        seconds.append(time.monotonic() - began)
    line = {"method": method, "rate": rate, "seed": seed, "steps": len(losses)}
    line |= {"train_loss": losses, "seconds_per_step": statistics.median(seconds[1:])}
    variables = (built.model.merged(state.params), state.extra)
    return line | {part: _evaluation(part)(variables) for part in parts}


@functools.cache
def _step(method: str) -> Any:
    """The compiled step of a method, whose rate is an argument."""
    config = configuration.load(f"{CONFIG}:definitions", settings_of(method))
    step = lambda state, batch, rate: step_at(config, rate)(state, batch)  # noqa: E731
    return jax.jit(step, donate_argnums=0)


@functools.cache
def _data(part: str) -> data.Dataset:
    return load_data(configuration.load(f"{CONFIG}:definitions", settings_of("full", 0, part)))


@functools.cache
def _evaluation(part: str) -> Any:
    """`variables -> figures` of a part of the data, by the plain model."""
    config = configuration.load(f"{CONFIG}:definitions", settings_of("full", 0, part))
    built, inputs = from_config.build(config), make_inputs(config)
    batches = functools.partial(
        data.eval_batches, _data(part).test, inputs, config.batch_size, config.data.workers
    )
    return make_evaluate(jax.jit(built.eval_step), batches, built.task.derived)


def table(lines: list[Line]) -> str:
    """A row for each method, at its own best rate."""
    rows, full = [], {}
    for method in METHODS:
        own = [line for line in lines if line["method"] == method and "test" in line]
        config = configuration.load(f"{CONFIG}:definitions", settings_of(method))
        use = memory_use(config)
        timed = [line["seconds_per_step"] for line in lines if line["method"] == method]
        row = {"method": method, "rate": "", "test loss": "", "to full, %": ""}
        if own:
            losses = {line["seed"]: line["test"]["loss"] for line in own}
            full = full or losses
            gaps = [100 * (losses[seed] / full[seed] - 1) for seed in losses]
            half = f" ± {half_interval(gaps):.2f}" if len(gaps) > 1 and method != "full" else ""
            row |= {
                "rate": f"{own[0]['rate']:g}",
                "test loss": f"{statistics.fmean(losses.values()):.4f}",
                "to full, %": f"{statistics.fmean(gaps):+.2f}{half}" if method != "full" else "",
            }
        row |= {
            "state": f"{(use.parameters + use.optimizer) / 1e9:.2f} GB",
            "gradients and activations": f"{(use.gradients + use.activations) / 1e6:.0f} MB",
            "s/step": f"{statistics.median(timed):.1f}" if timed else "",
        }
        rows.append(row)
    return markdown([[*rows[0]], *([*row.values()] for row in rows)])


def main() -> None:
    """Runs what is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="of what is there; runs nothing")
    args = parser.parse_args()
    there = args.out.read_text().splitlines() if args.out.exists() else []
    lines = [json.loads(text) for text in there]

    def ran(method: str, rate: float, seed: int, *parts: str, steps: int | None = None) -> Line:
        for line in lines:
            if (line["method"], line["rate"], line["seed"]) == (method, rate, seed):
                return line
        line = run(method, rate, seed, parts, steps)
        lines.append(line)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    if not args.table:
        for method in METHODS:
            if method == "remat":
                ran(method, RATES[0], 0, steps=4)
                continue
            searched = [ran(method, rate, 0, "val") for rate in RATES]
            best = min(searched, key=lambda line: line["val"]["loss"])["rate"]
            for seed in range(1, args.seeds + 1):
                ran(method, best, seed, "test")
    print(table(lines))


if __name__ == "__main__":
    main()
