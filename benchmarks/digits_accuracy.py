"""Accuracy of every method on the digits, over several seeds, paired with full fine-tuning.

    python benchmarks/digits_accuracy.py --seeds 5 --steps 600 --out
    benchmarks/results/digits_accuracy.json

All methods see the same batches, augmentations and pretrained weights of a seed. Results are
written after each run, and runs that the file holds already are not repeated. The table shows the
mean difference to `full` with its 95 % interval (Student's t over seeds).
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from pathlib import Path

import jax

from pbr_jax import data, methods
from pbr_jax.configs import digits
from pbr_jax.files import write_json
from pbr_jax.training import from_config
from pbr_jax.training.inputs import make_inputs
from pbr_jax.training.loop import make_evaluate

T_95 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    8: 2.365,
    10: 2.262,
}  # by number of seeds
JOINT_SPAR = (
    "full/js50",
    "prebackrazor/js50",
    "prebackrazor++/js70",
    "prebackrazor++/js50",
    "prebackrazor++/js30",
)


def run(method: str, seeds: list[int], steps: int, results: dict, out: Path) -> None:
    """Trains `method` once per seed, one compilation for all, and records accuracy and time."""
    config = dataclasses.replace(digits.get_config(), method=method, steps=steps)
    parts = from_config.build(config)
    dataset, inputs = data.load("digits"), make_inputs(config)
    step = jax.jit(parts.train_step, donate_argnums=0)
    evaluate = make_evaluate(
        jax.jit(parts.eval_step), lambda: data.eval_batches(dataset.test, inputs, config.batch_size)
    )
    for seed in seeds:
        if str(seed) in results.setdefault(method, {}):
            continue
        seeded = dataclasses.replace(config, seed=seed)
        params, _ = from_config.init_params(seeded, parts.model)
        state = from_config.new_state(seeded, parts, params)
        batches = data.TrainBatches(dataset.train, inputs, config.batch_size, seed)
        state, _ = step(state, next(batches))
        start = time.perf_counter()
        for _ in range(steps - 1):
            state, metrics = step(state, next(batches))
        jax.block_until_ready(state)
        results[method][str(seed)] = {
            "accuracy": evaluate(state.params)["accuracy"],
            "train_loss": float(metrics.loss),
            "seconds_per_step": (time.perf_counter() - start) / (steps - 1),
        }
        write_json(
            out,
            {
                "steps": steps,
                "jax": jax.__version__,
                "device": jax.devices()[0].device_kind,
                "runs": results,
            },
        )
        print(f"{method} seed {seed}: {results[method][str(seed)]}", flush=True)


def table(results: dict) -> str:
    """Markdown: accuracy and the paired difference to full fine-tuning, in percent points."""
    lines = [
        "| method | accuracy % | difference to full | 95 % interval | seeds |",
        "|---|---|---|---|---|",
    ]
    for method, runs in results.items():
        seeds = sorted(set(runs) & set(results["full"]))
        accuracy = statistics.mean(100 * runs[s]["accuracy"] for s in seeds)
        gaps = [100 * (runs[s]["accuracy"] - results["full"][s]["accuracy"]) for s in seeds]
        interval = ""
        if method != "full" and len(gaps) in T_95:
            half = T_95[len(gaps)] * statistics.stdev(gaps) / math.sqrt(len(gaps))
            interval = (
                f"{statistics.mean(gaps) - half:+.2f} ... {statistics.mean(gaps) + half:+.2f}"
            )
        gap = "" if method == "full" else f"{statistics.mean(gaps):+.2f}"
        lines.append(f"| {method} | {accuracy:.2f} | {gap} | {interval} | {len(seeds)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what the file lacks, then prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join((*methods.METHODS, *JOINT_SPAR)))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/digits_accuracy.json"))
    args = parser.parse_args()
    results = json.loads(args.out.read_text())["runs"] if args.out.is_file() else {}
    for method in args.methods.split(","):
        run(method, list(range(args.seeds)), args.steps, results, args.out)
    print(table(results))


if __name__ == "__main__":
    main()
