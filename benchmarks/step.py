"""Time of a train step per method, all in one process and in turn; ratios to full fine-tuning.

    python benchmarks/step.py --out benchmarks/results/step_cpu.json

A ViT-S/16-sized encoder on random 224-pixel images by default. Nothing is learned; times are
medians, and ratios are taken within each round, so that a drift of the machine cancels.
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from pbr_jax import __version__
from pbr_jax.configs.common import Config, Model, Optimizer
from pbr_jax.training import from_config
from pbr_jax.training.metrics import write_json

METHODS = "full,remat,backrazor,prebackrazor-,prebackrazor,prebackrazor++,fast,lean,tiny,fast/js50"


def prepare(config: Config, batch: dict) -> list:
    """`[compiled step, state, batch]` after one step; the step donates its state."""
    parts = from_config.build(config)
    state = from_config.new_state(config, parts, from_config.random_params(config, parts.model))
    step = jax.jit(parts.train_step, donate_argnums=0).lower(state, batch).compile()
    state, _ = step(state, batch)
    return [step, jax.block_until_ready(state), batch]


def main() -> None:
    """Prints the table and writes the raw times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--size", default="S", choices=["Ti", "S", "B", "L"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((args.batch, 224, 224, 3), np.float32),
        "label": rng.integers(0, 100, args.batch, np.int32),
    }
    base = Config(
        batch_size=args.batch,
        model=Model(size=args.size, patch=16, num_classes=100, dtype=args.dtype),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1),
    )
    runs = {m: prepare(dataclasses.replace(base, method=m), batch) for m in args.methods.split(",")}
    times: dict[str, list[float]] = {m: [] for m in runs}
    for _ in range(args.rounds):
        for method, run in runs.items():
            start = time.perf_counter()
            run[1], _ = run[0](run[1], run[2])
            jax.block_until_ready(run[1])
            times[method].append(time.perf_counter() - start)

    print("| method | ms | of full |\n|---|---|---|")
    for method, spent in times.items():
        ratio = statistics.median(s / f for s, f in zip(spent, times["full"], strict=True))
        print(f"| {method} | {1e3 * statistics.median(spent):.0f} | {ratio:.2f} |")
    if args.out:
        setting = {k: v for k, v in vars(args).items() if k != "out"}
        versions = {"jax": jax.__version__, "pbr_jax": __version__}
        device = jax.devices()[0].device_kind
        write_json(args.out, {**setting, "versions": versions, "device": device, "seconds": times})


if __name__ == "__main__":
    main()
