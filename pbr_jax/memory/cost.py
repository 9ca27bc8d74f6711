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
are what to use. `calibrated` puts measured ones in their place where the user has them.
"""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from pbr_jax.configs.common import Config
from pbr_jax.gpu import Card
from pbr_jax.memory.use import MemoryUse
from pbr_jax.plans import SITES, budget_for
from pbr_jax.training import from_config

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
    budgets = from_config.column_budgets(config, method, sizes)
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
        kept = columns[site]
        if plan.linear == "columns":
            kept = budgets.get(site, kept)
        elif plan.linear == "magnitude":
            kept = budget_for(getattr(plan.keep, site), kept)
        gradient = product(kept, features[site]) + passes(kept < columns[site], columns[site])
        block += gradient * (1.0 if method.joint_spar is None else method.joint_spar)
    if plan.recompute:
        block += sum(forward.values()) - forward["fc2"] + attention
        block += passes(2, 6 * width + sizes.mlp_dim * (2 if plan.linear == "dense" else 1))
    elif plan.attention in ("qkv", "recompute", "channels", "elements"):
        block += attention
    if plan.attention == "recompute" and not plan.recompute:
        block += forward["qkv"] + passes(2, 3 * width)
    # Two readings find and pack the largest elements, a writing and a reading restore them.
    pruned = sum(columns.values()) if plan.linear == "elements" else 0
    pruned += 2 * width if plan.layer_norm == "elements" else 0
    pruned += 3 * width + sizes.heads * num_tokens if plan.attention == "elements" else 0
    block += passes(4, pruned)

    saved = 2 * config.optimizer.accumulation_steps * use.activations
    arrays = 3 + 2 * round(use.optimizer / use.parameters)  # of them gradient and parameter
    updated = arrays * use.gradients * (method.joint_spar or 1.0)
    return sizes.depth * block + (saved + updated) / bandwidth


def read_times(file: Path, card: Card, config: Config) -> dict[str, float]:
    """Step times by method as fractions of full fine-tuning's, from a file of `pbr bench step`.

    Each is the median of the ratios within rounds.

    Raises:
      ValueError: the file is none of these, or of another card, model, dtype or batch.
      OSError: it cannot be read.
    """
    model = config.model
    wanted: dict[str, Any] = {
        "device": card.description,
        "family": model.family,
        "size": model.size,
    }
    wanted |= {"dtype": model.dtype, "batch": config.batch_size}
    text = file.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        differing = [f"{k} = {found[k]}, not {v}" for k, v in wanted.items() if found[k] != v]
        full = found["seconds"]["full"]
        ratios = {
            method: statistics.median(s / f for s, f in zip(seconds, full, strict=True))
            for method, seconds in found["seconds"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: no times of steps; give what `pbr bench step --out FILE` wrote"
        ) from error
    if differing:
        raise ValueError(f"{file}: was measured with {', '.join(differing)}; measure this one")
    return ratios


def calibrated(ratios: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Step times by method with measured ones in their place, all as fractions of full's.

    The others are scaled by the geometric mean of measured / arithmetic.
    """
    known = {method: time for method, time in measured.items() if method in ratios}
    others = [math.log(known[m] / ratios[m]) for m in known if m != "full"]
    scale = math.exp(statistics.fmean(others)) if others else 1.0
    return {m: known.get(m, scale * ratio) for m, ratio in ratios.items()}
