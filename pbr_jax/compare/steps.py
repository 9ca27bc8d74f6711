"""Steps of a prepared method on this device: their time, and the memory that they have in use.

Weights and data may be random: neither time nor memory depends on them, as long as they are not
zeros throughout, which a GPU multiplies faster.
"""

import multiprocessing
import os
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.compare.trials import Prepared, prepare
from pbr_jax.configs.common import Config
from pbr_jax.families import find
from pbr_jax.measure import timing
from pbr_jax.measure.memory import peak_in_use
from pbr_jax.training import from_config
from pbr_jax.training.step import Batch

_ROUNDS = 40
_SECONDS = 4.0  # spent on timing two methods, if the fewest rounds allow


def random_batch(config: Config, *, padded: bool = False) -> Batch:
    """Noise or random tokens, with random labels.

    Sequences are full, or with `padded` between half full and full.
    """
    family, specs = find(config.model.family), from_config.batch_specs(config)
    below = family.integers(config.model) | {"label": config.model.num_classes}
    batch = {
        name: timing.random_like(spec, seed, below.get(name, 1))
        for seed, (name, spec) in enumerate(specs.items())
    }
    # A row of a language model is one text, all of whose tokens are learned.
    if config.data.source.kind == "language":
        places = jnp.arange(config.model.max_length, dtype=jnp.int32)
        batch["positions"] = jnp.broadcast_to(places, specs["positions"].shape)
        batch["segments"] = jnp.ones_like(batch["segments"])
    # Lengths are not drawn as other integers are: most of a text is there.
    if family.lengths in specs:
        tokens = config.model.max_length
        missing = 1 + tokens // 2 if padded else 1
        batch[family.lengths] = tokens - timing.random_like(specs[family.lengths], 0, below=missing)
    return batch


def random_params(config: Config, parts: from_config.Parts) -> Any:
    """Small random numbers, and ones where a LayerNorm scales.

    Those that two methods share, which LoRA adds to, are the same for both.
    """

    def draw(path, spec):
        return 0.02 * timing.random_like(spec, spec.size) + float(path[-1].key == "scale")

    shapes = from_config.state_shapes(config, parts).params
    return jax.tree_util.tree_map_with_path(draw, shapes)


def new_run(prepared: Prepared, batch: Batch) -> timing.Run:
    """A step that goes on from the state of the one before; all methods begin alike."""
    parts = prepared.parts
    params, (_, like) = random_params(prepared.config, parts), parts.model.shapes()
    extra = jax.tree.map(lambda spec: jnp.ones(spec.shape, spec.dtype), like)
    state = parts.placement.state(from_config.new_state(prepared.config, parts, params, extra))
    batch = parts.placement.batch(batch)

    def keep(result):
        nonlocal state
        state, _ = result

    return timing.Run(prepared.step, lambda: (state, batch), keep, chained=True)


def time_against(
    full: Prepared, other: Prepared, batch: Batch
) -> tuple[timing.Spread, timing.Spread]:
    """Seconds of a step of `other`, and their ratio to those of `full` within each round.

    Raises:
      RuntimeError: one of them cannot run.
    """
    runs = {"full": new_run(full, batch), "other": new_run(other, batch)}
    spent, refused = timing.in_turn(runs, _ROUNDS, seconds=_SECONDS)
    if refused:
        raise RuntimeError(f"{other.config.method}: {'; '.join(refused.values())}")
    return timing.spread(spent["other"]), timing.ratio(spent["other"], spent["full"])


def memory_in_own_process(config: Config) -> dict[str, int | None]:
    """`memory_here` in a process of its own, since a peak never falls again.

    This process must not have used its GPU before, whose memory would be taken.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_here, (config,))


def memory_here(config: Config) -> dict[str, int | None]:
    """Bytes that a step of `config` was planned to need, and that the device had in use for it.

    Returns:
      The items of `Prepared.planned`, with "compiling" and "running", the peaks in use after each,
      None where the device reports none. XLA tries out kernels while it compiles: where `running`
      is no more than `compiling`, that was the peak, and not the step.
    """
    # Memory that JAX takes in advance would count as in use.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    prepared = prepare(config)
    compiling = peak_in_use()
    run = new_run(prepared, random_batch(config))
    for _ in range(3):
        run.keep(jax.block_until_ready(run.function(*run.arguments())))
    return {**prepared.planned, "compiling": compiling, "running": peak_in_use()}
