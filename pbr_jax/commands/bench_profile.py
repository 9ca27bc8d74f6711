"""Profiles a train step on this device: each kernel, its time, and the least that it could take.

    pbr bench profile --config configs/vit_b16.py --config.method=fast --config.model.dtype=bfloat16

The floor of a kernel is the longer of its bytes at the bandwidth of a copy and its matrix products
at the rate of a large one, both measured in the same run; those of hand-written kernels count bytes
only. Kernels inside CUDA graphs may lack their instruction's name, and then a floor: switch graphs
off with XLA_FLAGS=--xla_gpu_enable_command_buffer= in the environment.
"""

import argparse
import statistics

from pbr_jax.bench import profile, report
from pbr_jax.settings.flags import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    report.add_arguments(parser, rounds=5)


def main(args: argparse.Namespace) -> int:
    report.check_rounds(args.rounds)
    found = profile.measure(args.arguments.config, args.rounds)
    # What the kernels do not explain of a step is the host, or time between kernels.
    wall = statistics.median(found["seconds"])
    spent = sum(row["seconds"] for row in found["kernels"])
    floors = sum(row["floor"] or 0.0 for row in found["kernels"])
    summary = (
        f"{found['method']}: a step takes {1e3 * wall:.3g} ms, its kernels {1e3 * spent:.3g} ms;"
        f" the sum of their floors is {1e3 * floors:.3g} ms."
    )
    return report.finish(args, found, summary, report.table(profile.table(found)))
