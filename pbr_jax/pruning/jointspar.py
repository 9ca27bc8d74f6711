"""JointSPAR over parameter tensors: which of the L blocks train a given kernel.

One `JointSpar` per kernel name; its arms are that kernel's L tensors. As in the authors' release,
the active set is drawn and the probabilities are updated once per `interval` steps, by the same
bandit as the columns', with the losses shifted by the smallest active one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.pruning import sampling
from pbr_jax.pruning.bandit import bandit_update
from pbr_jax.pruning.projection import make_simplex


class JointSparState(NamedTuple):
    """Which blocks train one kernel."""

    probs: jax.Array  # float32 [L], inclusion probability of each block; sums to M
    # int32 [M], the current active blocks, increasing. Before the first `sample`, which belongs
    # to step 0, it holds the first M blocks.
    active: jax.Array
    counts: jax.Array  # int32 [L], how many steps each block has been active


class JointSpar(NamedTuple):
    """Pure functions, all jittable; `step` is an int32 scalar that counts from 0.

    Attributes:
      init: () -> state.
      sample: (key, state, step) -> state; draws `active` anew when step % interval == 0. The key
        is consumed.
      update: (state, squared gradient norms float32 [M] of the active tensors, step) -> state;
        counts, and at the last step of an interval moves the probabilities: they are then still
        those that the set was drawn with.
    """

    init: Callable[[], JointSparState]
    sample: Callable[[jax.Array, JointSparState, jax.Array], JointSparState]
    update: Callable[[JointSparState, jax.Array, jax.Array], JointSparState]


def joint_spar(
    num_blocks: int,
    rate: float,
    *,
    interval: int = 20,
    step_size: float = 1e-3,
    min_prob: float = 1e-3,
) -> JointSpar:
    """Makes the policy of one kernel name.

    Args:
      num_blocks: L.
      rate: fraction of the blocks that train; M = round(rate * L), at least 1.
      interval: steps between draws.
      step_size: of the bandit, in units of 1 / (largest squared norm of the round).
      min_prob: lower bound of a probability.

    Raises:
      ValueError: for a number outside its range.
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks = {num_blocks}: must be at least 1")
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate = {rate}: must be in (0, 1]; 0.5 trains half of the blocks")
    if interval < 1:
        raise ValueError(f"interval = {interval}: must be at least 1 step; the release uses 20")
    if not 0.0 < step_size < float("inf"):
        raise ValueError(f"step_size = {step_size}: must be positive and finite; try 1e-3")
    num_active = max(1, round(rate * num_blocks))
    simplex = make_simplex(num_blocks, num_active, min_prob)

    def init() -> JointSparState:
        return JointSparState(
            probs=jnp.full((num_blocks,), num_active / num_blocks, jnp.float32),
            active=jnp.arange(num_active, dtype=jnp.int32),
            counts=jnp.zeros((num_blocks,), jnp.int32),
        )

    def sample(key: jax.Array, state: JointSparState, step: jax.Array | int) -> JointSparState:
        drawn = sampling.systematic(key, state.probs, simplex.budget, num_active)
        return state._replace(active=jnp.where(step % interval == 0, drawn, state.active))

    def update(state: JointSparState, sq_norms: jax.Array, step: jax.Array | int) -> JointSparState:
        old = state.probs, state.active
        moved = bandit_update(*old, sq_norms, simplex, step_size=step_size, offset="minimum")
        last = step % interval == interval - 1
        return state._replace(
            probs=jnp.where(last, moved, state.probs), counts=state.counts.at[state.active].add(1)
        )

    return JointSpar(init, sample, update)
