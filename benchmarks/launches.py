"""What a train step runs on the GPU, kernel by kernel, and the floor of its time; needs no GPU.

    JAX_PLATFORMS=cpu python benchmarks/launches.py --methods fast,lean,tiny

Reads the program that XLA compiles for the card: how often each kernel is launched, the bytes it
moves, its matrix products, and the least time of both at the ceilings given. ViT-B/16, batch 128,
bfloat16 by default. Prints one line per kernel that takes more than --least of the step, and sums
for the forward pass of a block, the backward pass of a block, and all the rest.
"""

import argparse
import dataclasses
from pathlib import Path

from pbr_jax.configs.common import Config, Model, Optimizer
from pbr_jax.files import write_json
from pbr_jax.gpu import compile_for, find_card, memory
from pbr_jax.gpu.launches import Launch, launches
from pbr_jax.training import from_config


def part(launch: Launch, depth: int) -> str:
    """Where in the step a kernel runs: in the loop over blocks, forward or backward, or outside."""
    if not launch.loops or launch.loops[0].trips != depth:
        return "outside blocks"
    return "block, backward" if "transpose" in launch.loops[0].path else "block, forward"


def main() -> None:
    """Prints a table per method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", default="h200")
    parser.add_argument("--methods", default="fast,lean,tiny")
    parser.add_argument("--implementation", default=None, help="of every op that has kernels")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes per second")
    parser.add_argument("--flops", type=float, default=790e12, help="per second, matrix products")
    parser.add_argument("--least", type=float, default=0.01, help="of the step, to be listed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    base = Config(
        batch_size=args.batch,
        model=Model(size="B", patch=16, num_classes=100, dtype="bfloat16"),
        optimizer=Optimizer(name="sgd", momentum=0.9, clip_norm=1.0, warmup_steps=100),
    )
    plan = dataclasses.replace(base.plan, implementation=args.implementation)
    found = {}
    for method in args.methods.split(","):
        config = dataclasses.replace(base, method=method)
        state = from_config.state_shapes(config, from_config.build(config))
        # Only now: outside `compile_for` there is no card that the named implementation could use.
        step = from_config.build(dataclasses.replace(config, plan=plan)).train_step
        shapes = (state, from_config.batch_specs(config))
        step = compile_for(step, shapes, find_card(args.card), donate_argnums=0)
        listed = launches(step.as_text() or "")
        temp = memory(step).temp_bytes
        sums = report(method, listed, temp, 12, args)
        found[method] = {"temp_bytes": temp, "parts": sums}
    if args.out:
        setting = {k: v for k, v in vars(args).items() if k not in ("out", "methods")}
        write_json(args.out, {**setting, "methods": found})


def report(method: str, listed: list[Launch], temp: int, depth: int, args) -> dict:
    """Prints the kernels and the sums of one method; returns the sums."""
    total = sum(one.floor(args.bandwidth, args.flops) for one in listed)
    print(f"\n{method}: temp {temp / 1e9:.2f} GB, sum of floors {1e3 * total:.2f} ms\n")
    print("| where | kind | kernel | launches | MB each | GFLOP each | floor ms |\n|" + "---|" * 7)
    sums: dict[str, dict[str, float]] = {}
    for one in listed:
        where, floor = part(one, depth), one.floor(args.bandwidth, args.flops)
        for kind in ("all", one.kind):
            row = sums.setdefault(f"{where}, {kind}", {"launches": 0, "bytes": 0, "floor": 0.0})
            row["launches"] += one.times
            row["bytes"] += one.times * one.bytes
            row["floor"] += floor
        if floor >= args.least * total:
            cells = (f"{one.bytes / 1e6:.1f}", f"{one.flops / 1e9:.1f}", f"{1e3 * floor:.3f}")
            name = f"{one.name} ({one.source})"
            print(f"| {where} | {one.kind} | {name} | {one.times} | {' | '.join(cells)} |")
    print("\n| part | launches | GB | floor ms |\n|---|---|---|---|")
    for name, row in sorted(sums.items()):
        print(
            f"| {name} | {row['launches']} | {row['bytes'] / 1e9:.2f} | {1e3 * row['floor']:.2f} |"
        )
    return sums


if __name__ == "__main__":
    main()
