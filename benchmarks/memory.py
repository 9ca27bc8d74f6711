"""Compiled memory of a train step per method, for a card that need not be there.

    JAX_PLATFORMS=cpu python benchmarks/memory.py --out benchmarks/results/memory_h200.json

ViT-B/16 by default: batch 128, 224 px, bfloat16 activations, float32 weights, SGD with momentum,
clipping. `temp` is all that the step needs beside its arguments (weights, momentum, the batch).
"""

import argparse
import dataclasses
from pathlib import Path

import jax

from pbr_jax import __version__, methods
from pbr_jax.configs.common import Config, Model, Optimizer
from pbr_jax.gpu import compile_for, find_card, memory
from pbr_jax.training import from_config
from pbr_jax.training.metrics import write_json


def main() -> None:
    """Prints a table in GB (10^9 bytes) and writes bytes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", default="h200")
    parser.add_argument("--methods", default=",".join((*methods.METHODS, "fast/js50")))
    parser.add_argument("--size", default="B", choices=["Ti", "S", "B", "L"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    base = Config(
        batch_size=args.batch,
        model=Model(size=args.size, patch=16, num_classes=100, dtype="bfloat16"),
        optimizer=Optimizer(name="sgd", momentum=0.9, clip_norm=1.0, warmup_steps=100),
    )
    rows = {}
    print("| method | saved activations | temp | peak |\n|---|---|---|---|", flush=True)
    for method in args.methods.split(","):
        config = dataclasses.replace(base, method=method)
        parts = from_config.build(config)
        shapes = (from_config.state_shapes(config, parts), from_config.batch_specs(config))
        step = compile_for(parts.train_step, shapes, find_card(args.card), donate_argnums=0)
        report = memory(step)
        saved = from_config.memory_use(config).activations
        rows[method] = {"saved_bytes": saved, "peak_bytes": report.peak_bytes, **report._asdict()}
        cells = (f"{n / 1e9:.2f} GB" for n in (saved, report.temp_bytes, report.peak_bytes))
        print(f"| `{method}` | {' | '.join(cells)} |", flush=True)
    if args.out:
        setting = {k: v for k, v in vars(args).items() if k not in ("out", "methods")}
        versions = {"jax": jax.__version__, "pbr_jax": __version__}
        write_json(args.out, {**setting, "versions": versions, "rows": rows})


if __name__ == "__main__":
    main()
