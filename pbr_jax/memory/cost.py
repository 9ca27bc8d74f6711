"""Time of a train step by arithmetic: a floor, to rank methods before anything has run.

What is counted, for each of the L blocks with T = batch * N tokens:

* every matrix product at the card's matrix rate, or at its memory bandwidth if that takes longer:
  forward, input gradient, and the weight gradient of K of the D inputs (docs/performance.md);
* attention: two products of [N, N] forward, five backward;
* what the plan computes again: the block but for its last product, attention's scores, q k v, and
  the traffic of what that leaves for a moment;
* reading an activation once more to gather columns, and BackRazor's packing and unpacking;
* writing and reading what is saved between the passes, and the optimizer's arrays;
* moving what is offloaded, as far as a pass takes longer by it: it goes beside the computing.

Not counted: element-wise work, which fuses into its neighbours at best, launches, and the patches
or words before the first block. So the seconds are less than any card needs; ratios between methods
are what to use. `calibrated` puts measured ones in their place where the user has them.

Of a module of one's own the products of its program are counted, at the card's matrix rate, with
what is saved between the passes and the optimizer's arrays.
"""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from pbr_jax.configs.common import Config
from pbr_jax.families import Architecture, find
from pbr_jax.files import NUMBER, DamagedFile, read_json
from pbr_jax.gpu import Card
from pbr_jax.gpu.rates import copy_rate, link_rate, matrix_rate
from pbr_jax.memory.use import MemoryUse, offloaded_bytes, program_flops
from pbr_jax.plans import ResidualPlan
from pbr_jax.settings.resolve import architecture, resolve_method


def step_seconds(config: Config, card: Card, use: MemoryUse) -> float:
    """Least seconds of a train step on `card`; `use` is `memory_use(config)`."""
    method = resolve_method(config)
    saved = 2 * config.optimizer.accumulation_steps * (use.activations + offloaded_bytes(config))
    # The update reads and writes the drawn rows and their moments, and reads their gradient.
    share = 1.0 if method.state == "packed" else use.gradients / use.parameters
    updated = (3 * use.gradients + 2 * share * use.optimizer) * (method.joint_spar or 1.0)
    beside = (saved + updated) / copy_rate(card)
    if (family := find(config.model.family)).traced or family.describe is None:
        return program_flops(config) / matrix_rate(card, config.model.dtype) + beside
    sizes = architecture(config)
    plan, width, sites = method.plan, sizes.width, sizes.sites
    linear, norm, kind = (plan.kind(op) for op in ("linear", "layer_norm", "attention"))
    rate, item = matrix_rate(card, config.model.dtype), jnp.dtype(config.model.dtype).itemsize
    bandwidth = copy_rate(card)
    tokens = config.batch_size * sizes.tokens

    def product(inputs: int, outputs: int) -> float:
        traffic = item * tokens * (inputs + outputs)
        return max(2 * tokens * inputs * outputs / rate, traffic / bandwidth)

    def passes(count: float, channels: float) -> float:
        return count * item * tokens * channels / bandwidth

    # Forward pass and input gradients, which every plan computes in full.
    forward = {name: product(site.columns, site.features) for name, site in sites.items()}
    attention = 4 * tokens * sizes.tokens * width / rate if sizes.attention else 0.0
    block = 2 * sum(forward.values()) + 3.5 * attention
    # Weight gradients of the columns that are kept, after one more reading to gather them.
    for name, (columns, features, _) in sites.items():
        kept = linear.kept_columns(columns, plan.keep_at(name), method.group_size)
        gradient = product(kept, features) + passes(kept < columns, columns)
        block += gradient * (1.0 if method.joint_spar is None else method.joint_spar)
    # What the backward pass computes again; a block's last product is not needed again.
    if plan.recompute:
        block += sum(forward.values()) - forward[[*sites][-1]] + attention
    elif sizes.attention is not None:
        again = forward[sizes.attention.site] * kind.recomputes_heads
        block += attention * kind.recomputes_scores + again
    block += passes(2, recomputed_channels(plan, sizes))
    # Two readings find and pack the largest elements, a writing and a reading restore them.
    searched = sum(linear.searched_channels(site.columns) for site in sites.values())
    searched += 2 * norm.searched_channels(width)
    if sizes.attention is not None:
        searched += kind.searched_channels(width, sizes.attention.heads, sizes.tokens)
    block += passes(4, searched)

    # What is offloaded leaves in one pass and returns in the other.
    moved = config.optimizer.accumulation_steps * offloaded_bytes(config) / link_rate(card)
    first = sizes.depth * (sum(forward.values()) + attention)
    second = sizes.depth * block - first
    return max(first, moved) + max(second, moved) + beside


def recomputed_channels(plan: ResidualPlan, sizes: Architecture) -> int:
    """Channels of a token that the backward pass of a block makes again and leaves for a moment."""
    if plan.recompute:
        return 6 * sizes.width + sizes.hidden * (1 + plan.kind("linear").whole)
    if sizes.attention is None:
        return 0
    return 3 * sizes.width * plan.kind("attention").recomputes_heads


def read_times(file: Path, card: Card, config: Config) -> dict[str, float]:
    """Step times by method as fractions of full fine-tuning's, from a file of `pbr bench step`.

    Each is the median of the ratios within rounds.

    Raises:
      DamagedFile: the file is none of these, or cannot be read.
      ValueError: it is of another card, model, dtype or batch.
    """
    model = config.model
    wanted: dict[str, Any] = {"device": card.description, "batch": config.batch_size}
    wanted |= {name: getattr(model, name) for name in ("family", "size", "dtype")}
    advice = "give what `pbr bench step --out FILE` wrote"
    form = {**dict.fromkeys(wanted, object), "seconds": {"full": [NUMBER], ...: [NUMBER]}}
    found = read_json(file, form, advice)
    differing = [f"{k} = {found[k]}, not {v}" for k, v in wanted.items() if found[k] != v]
    full = found["seconds"]["full"]
    try:
        ratios = {
            method: statistics.median(s / f for s, f in zip(seconds, full, strict=True))
            for method, seconds in found["seconds"].items()
        }
    except (ValueError, ArithmeticError) as error:  # of another length, none, or zero
        raise DamagedFile(f"{file}: no times of steps ({error}); {advice}") from error
    if not all(0 < ratio < math.inf for ratio in ratios.values()):
        raise DamagedFile(f"{file}: no times of steps (they must be above 0); {advice}")
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
