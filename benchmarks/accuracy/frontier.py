"""What keep per site costs on ViT-B/16: time by arithmetic, memory by XLA's compiler for an H200.

    JAX_PLATFORMS=cpu python benchmarks/accuracy/frontier.py

Batch 128, 224 px, bfloat16. Time is the floor of a step relative to full fine-tuning at keep 0.1
(`FLOORS`, arithmetic over matrix products and bytes at the ceilings of the card) plus the weight
gradient of what is kept beyond that: it is 28 % of a full step, shared by the sites in proportion
to the size of their kernels. No time was measured.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax

from pbr_jax import __version__
from pbr_jax.configs.common import Config, Keep, Model, Optimizer, Pruning
from pbr_jax.files import write_json
from pbr_jax.gpu import compile_for, find_card, memory
from pbr_jax.memory.use import memory_use
from pbr_jax.plans import SITES
from pbr_jax.training import from_config

OUT = Path("benchmarks/results/accuracy_frontier_h200.json")
FLOORS = {"prebackrazor": 0.78, "fast": 0.75, "lean": 0.82, "tiny": 0.98}  # at keep 0.1
FLOORS_EXACT = {"full": 1.0, "remat": 1.23}
WEIGHT_GRADIENT = 0.28
_SIZES = {"qkv": 3 / 12, "proj": 1 / 12, "fc1": 4 / 12, "fc2": 4 / 12}
BASE = Config(
    batch_size=128,
    model=Model(size="B", patch=16, num_classes=100, dtype="bfloat16"),
    optimizer=Optimizer(name="sgd", momentum=0.9, clip_norm=1.0, warmup_steps=100),
)


class Point(NamedTuple):
    """A method with its keep at qkv, proj, fc1, fc2; None is the method's own."""

    method: str
    keep: tuple[float, float, float, float] | None = None


POINTS = (
    Point("full"),
    Point("remat"),
    *(Point(m, (k, 0.1, k, 0.1)) for m in ("lean", "fast") for k in (0.1, 0.25, 0.5, 1.0)),
    Point("lean", (0.2, 0.2, 0.2, 0.2)),
    Point("lean", (0.5, 0.5, 0.5, 0.5)),
    *(Point(m, (0.1, 0.1, k, 0.1)) for m in ("lean", "fast") for k in (0.4, 0.5, 1.0)),
    Point("tiny", (0.1, 0.1, 0.1, 0.1)),
    Point("tiny", (0.1, 0.1, 0.4, 0.1)),
)


def floor_time(point: Point) -> float:
    """Of a step, relative to full fine-tuning."""
    if point.keep is None:
        return FLOORS_EXACT[point.method]
    more = sum(_SIZES[site] * (keep - 0.1) for site, keep in zip(SITES, point.keep, strict=True))
    return FLOORS[point.method] + WEIGHT_GRADIENT * more


def make_config(point: Point) -> Config:
    """ViT-B/16 with the method and its keep."""
    keep = None if point.keep is None else Keep(**dict(zip(SITES, point.keep, strict=True)))
    return dataclasses.replace(BASE, method=point.method, pruning=Pruning(keep=keep))


def temp_bytes(config: Config) -> int:
    """Of the compiled step."""
    parts = from_config.build(config)
    shapes = (from_config.state_shapes(config, parts), from_config.batch_specs(config))
    step = compile_for(parts.train_step, shapes, find_card("h200"), donate_argnums=0)
    return memory(step).temp_bytes


def main() -> None:
    """Prints a table in GB (10^9 bytes) and writes bytes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows = []
    print("| method | keep qkv, proj, fc1, fc2 | time, arithmetic | saved | temp |")
    print("|---|---|---|---|---|")
    for point in POINTS:
        config = make_config(point)
        saved, temp = memory_use(config).activations, temp_bytes(config)
        time = floor_time(point)
        rows.append({**point._asdict(), "time": time, "saved_bytes": saved, "temp_bytes": temp})
        keep = "all" if point.keep is None else ", ".join(map(str, point.keep))
        cost = f"{time:.2f} | {saved / 1e9:.2f} GB | {temp / 1e9:.2f} GB"
        print(f"| `{point.method}` | {keep} | {cost} |", flush=True)
    versions = {"jax": jax.__version__, "pbr_jax": __version__}
    command = "python benchmarks/accuracy/frontier.py"
    write_json(args.out, {"command": command, "versions": versions, "rows": rows})


if __name__ == "__main__":
    main()
