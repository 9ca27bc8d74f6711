"""Time of a train step by arithmetic: a floor, to rank methods before anything has run.

What is counted, for each of the L blocks with T = batch * N tokens:

* every matrix product at the card's matrix rate, or at its memory bandwidth if that takes longer:
  forward, input gradient, and the weight gradient of K of the D inputs (docs/performance.md);
* attention: two products of [N, N] forward, five backward;
* what the plan computes again: the block but for its last product, attention's scores, q k v, and
  the traffic of what that leaves for a moment;
* reading an activation once more to gather columns, and BackRazor's packing and unpacking;
* writing and reading what is saved between the passes, and the optimizer's arrays.

Not counted: element-wise work, which fuses into its neighbours at best, launches, and the patches
or words before the first block. So the seconds are less than any card needs; ratios between methods
are what to use. `calibrated` puts measured ones in their place where a benchmark ran on the card.
"""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp

from pbr_jax.configs.common import Config
from pbr_jax.gpu import Card
from pbr_jax.memory.use import MemoryUse
from pbr_jax.plans import SITES, ResidualPlan
from pbr_jax.training import from_config

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
"""Of benchmarks, in a checkout; an installed package has none."""

# Compute capability -> bfloat16 operations of a multiprocessor in a clock, accumulated in float32,
# without sparsity: the makers' data sheets, divided by cores and boost clock. Float32 products run
# as TensorFloat-32, at half of it.
_TENSOR_OPERATIONS = {
    (8, 0): 2048,
    (8, 6): 512,
    (8, 9): 512,
    (9, 0): 4096,
    (10, 0): 8192,
    (12, 0): 512,
}

# Of the peaks, what is within reach; on an H200 790 TFLOP/s in products, 4.3 TB/s in copies.
_REACHED_RATE, _REACHED_BANDWIDTH = 0.74, 0.90


def matrix_rate(card: Card, dtype: str) -> float:
    """Rate of matrix products that is within reach, operations per second.

    A card without bfloat16 units runs them on its float32 units; one that is newer than the table
    has the rate of the newest in it.
    """
    if card.has_bfloat16:
        known = max(c for c in _TENSOR_OPERATIONS if c <= card.capability)
        operations = _TENSOR_OPERATIONS[known] // (1 if dtype == "bfloat16" else 2)
    else:
        operations = 2 * card.fpus_per_core
    return _REACHED_RATE * operations * card.cores * card.clock_ghz * 1e9


def step_seconds(config: Config, card: Card, use: MemoryUse) -> float:
    """Least seconds of a train step on `card`; `use` is `from_config.memory_use(config)`."""
    method, sizes = from_config.resolve_method(config), from_config.model_sizes(config)
    plan, width = method.plan, sizes.width
    linear, norm, kind = (plan.kind(op) for op in ("linear", "layer_norm", "attention"))
    rate, item = matrix_rate(card, config.model.dtype), jnp.dtype(config.model.dtype).itemsize
    bandwidth = _REACHED_BANDWIDTH * card.bandwidth
    num_tokens = from_config.num_tokens(config)
    tokens = config.batch_size * num_tokens
    columns = from_config.num_columns(sizes)
    features = {"qkv": 3 * width, "proj": width, "fc1": sizes.mlp_dim, "fc2": width}

    def product(inputs: int, outputs: int) -> float:
        traffic = item * tokens * (inputs + outputs)
        return max(2 * tokens * inputs * outputs / rate, traffic / bandwidth)

    def passes(count: float, channels: float) -> float:
        return count * item * tokens * channels / bandwidth

    forward = {site: product(columns[site], features[site]) for site in SITES}
    attention = 4 * tokens * num_tokens * width / rate
    block = 2 * sum(forward.values()) + 3.5 * attention
    for site in SITES:  # weight gradients
        group_size = config.pruning.group_size
        kept = linear.kept_columns(columns[site], plan.keep_at(site), group_size)
        gradient = product(kept, features[site]) + passes(kept < columns[site], columns[site])
        block += gradient * (1.0 if method.joint_spar is None else method.joint_spar)
    if plan.recompute:
        block += sum(forward.values()) - forward["fc2"] + attention
    else:
        block += attention * kind.recomputes_scores + forward["qkv"] * kind.recomputes_heads
    block += passes(2, recomputed_channels(plan, width, sizes.mlp_dim))
    # Two readings find and pack the largest elements, a writing and a reading restore them.
    searched = sum(map(linear.searched_channels, columns.values()))
    searched += 2 * norm.searched_channels(width)
    searched += kind.searched_channels(width, sizes.heads, num_tokens)
    block += passes(4, searched)

    saved = 2 * config.optimizer.accumulation_steps * use.activations
    arrays = 3 + 2 * round(use.optimizer / use.parameters)  # of them gradient and parameter
    updated = arrays * use.gradients * (method.joint_spar or 1.0)
    return sizes.depth * block + (saved + updated) / bandwidth


def recomputed_channels(plan: ResidualPlan, width: int, mlp_dim: int) -> int:
    """Channels of a token that the backward pass of a block makes again and leaves for a moment."""
    if plan.recompute:
        return 6 * width + mlp_dim * (1 + plan.kind("linear").whole)
    return 3 * width * plan.kind("attention").recomputes_heads


def calibrated(
    ratios: Mapping[str, float], card: Card, config: Config, folder: Path = RESULTS
) -> tuple[dict[str, float], set[str]]:
    """`(times, measured)`: step times by method with measured ones in their place, and which.

    `ratios` and `times` are fractions of full fine-tuning. Measured ones are those of
    `pbr bench step` in `step_<card>.json`, if it is of the family, size, dtype and batch of
    `config`. The others are scaled by the geometric mean of measured / arithmetic.
    """
    path = folder / f"step_{card.name}.json"
    if not path.is_file():
        return dict(ratios), set()
    found = json.loads(path.read_text(encoding="utf-8"))
    model = config.model
    setting = (model.family, model.size, model.dtype, config.batch_size)
    if tuple(found[key] for key in ("family", "size", "dtype", "batch")) != setting:
        return dict(ratios), set()
    full = found["seconds"]["full"]
    measured = {
        method: statistics.median(s / f for s, f in zip(seconds, full, strict=True))
        for method, seconds in found["seconds"].items()
        if method in ratios
    }
    others = [math.log(measured[m] / ratios[m]) for m in measured if m != "full"]
    scale = math.exp(statistics.fmean(others)) if others else 1.0
    return {m: measured.get(m, scale * ratio) for m, ratio in ratios.items()}, set(measured)
