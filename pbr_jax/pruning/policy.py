"""Which columns to keep: the probabilities of one site, what is drawn by them, how they learn.

A policy belongs to one site, an activation with D columns that feeds linear layers. Each step it
draws the columns whose rows of the weight gradient will be computed (Algorithm 1, lines 5-6), and
afterwards learns from the squared norms of those rows (line 24). Arms are contiguous groups of
`group_size` columns (1 = the paper). The names:

* `uniform`: p = K / D throughout.
* `bandit`: Algorithm 2, see `bandit`.
* `importance`: p proportional to the root of a running mean of the squared norms, clipped to
  [min_prob, 1]: the closed-form minimiser of `sum_d E||g_d||^2 / p_d`, which the bandit follows.
"""

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.pruning import sampling
from pbr_jax.pruning.bandit import bandit_update
from pbr_jax.pruning.projection import Simplex, make_simplex, project

NAMES = ("uniform", "bandit", "importance")
SAMPLERS = {"systematic": sampling.systematic, "bernoulli": sampling.bernoulli}
# Of K / D. On log-normal norms (768 arms, K = 80) this floor costs 1-2 % of the optimum, and it is
# what bounds the damage of noise: at step size 1e-2 the regret is 2.8 instead of 5.5 with 0.1.
DEFAULT_MIN_PROB = 0.2


def _check_choice(argument: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} = {value!r}: must be one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class Learning:
    """How probabilities follow the gradient.

    Attributes:
      step_size: of the bandit, in units of 1 / (largest squared norm of the round).
      min_prob: lower bound of a probability, of `bandit` and `importance`; None = 0.2 K / D.
      offset: of the bandit; "paper" is the literal Algorithm 2, which does not learn.
      decay: of the running mean, for `importance`.

    Raises:
      ValueError: for a choice or number outside its range.
    """

    step_size: float = 1e-3
    min_prob: float | None = None
    offset: str = "none"
    decay: float = 0.9

    def __post_init__(self) -> None:
        _check_choice("offset", self.offset, ("none", "paper"))
        if not 0.0 < self.step_size < math.inf:
            raise ValueError(f"step_size = {self.step_size}: must be positive and finite; try 1e-3")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay = {self.decay}: must be in [0, 1); try 0.9")


class PolicyState(NamedTuple):
    """What one site of one block has learned.

    Attributes:
      probs: float32 [A], inclusion probability of each arm; sums to K / group_size.
      counts: int32 [A], how often each arm has been selected.
      energy: float32 [A], running mean of squared norms (`importance`); [0] for the others.
    """

    probs: jax.Array
    counts: jax.Array
    energy: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["capacity", "simplex"],
    meta_fields=["name", "num_arms", "sampler", "group_size", "learning", "num_slots"],
)
@dataclasses.dataclass(frozen=True)
class PruningPolicy:
    """Pure functions of one site's policy; all but `init` can be jitted.

    What K decides are leaves of a pytree: `jax.vmap` over stacked policies serves sites of one
    width at once, see `sites`.

    Attributes:
      name: one of `NAMES`.
      num_arms: A = D / group_size.
      sampler: one of `SAMPLERS`.
      group_size: columns of an arm.
      learning: how probabilities follow the gradient.
      num_slots: S, the static length of `columns`: K for systematic sampling, the capacity for
        Bernoulli draws, whose unused slots hold the index D.
      capacity: int32, arms drawn at most.
      simplex: the set P of probabilities.
    """

    name: str
    num_arms: int
    sampler: str
    group_size: int
    learning: Learning
    num_slots: int
    capacity: Any
    simplex: Simplex

    @property
    def num_columns(self) -> int:
        """D."""
        return self.num_arms * self.group_size

    def init(self) -> PolicyState:
        """Algorithm 1, line 1: p_0 = s / D."""
        return PolicyState(
            probs=jnp.full((self.num_arms,), self.simplex.mean, jnp.float32),
            counts=jnp.zeros((self.num_arms,), jnp.int32),
            energy=jnp.zeros((self.num_arms if self.name == "importance" else 0,), jnp.float32),
        )

    def sample(self, key: jax.Array, state: PolicyState) -> jax.Array:
        """Columns S_t to keep, int32 [S], increasing. The key is consumed."""
        draw = SAMPLERS[self.sampler]
        arms = draw(key, state.probs, self.capacity, self.num_slots // self.group_size)
        within = jnp.arange(self.group_size, dtype=jnp.int32)
        columns = arms[:, None] * self.group_size + within[None]
        return jnp.minimum(columns, self.num_columns).reshape(-1)

    def update(self, state: PolicyState, columns: jax.Array, sq_norms: jax.Array) -> PolicyState:
        """Learns from squared row norms, float32 [S], of the gradient before any division by p.

        Those of unused slots are ignored.
        """
        # Column D, an unused slot, lands on arm A, which every scatter below drops.
        arms = columns.reshape(-1, self.group_size)[:, 0] // self.group_size
        counts = state.counts.at[arms].add(1, mode="drop")
        sq_norms = jnp.sum(sq_norms.reshape(-1, self.group_size), axis=1)
        probs, energy, learning = state.probs, state.energy, self.learning
        if self.name == "bandit":
            probs = bandit_update(
                probs,
                arms,
                sq_norms,
                self.simplex,
                step_size=learning.step_size,
                offset=learning.offset,
            )
        elif self.name == "importance":
            energy = _running_mean(state, arms, sq_norms, learning.decay)
            guess = _with_unseen_at_the_mean(energy, counts)
            probs = project(0.5 * jnp.log(guess), self.simplex)  # weights sqrt(guess)
        return PolicyState(probs, counts, energy)

    def inclusion(self, state: PolicyState, columns: jax.Array) -> jax.Array:
        """Probability that each column was drawn with from `state`, float32 [S]; 1 if unused."""
        return state.probs.at[columns // self.group_size].get(mode="fill", fill_value=1.0)


def make_policy(
    name: str,
    num_columns: int,
    budget: int,
    *,
    group_size: int = 1,
    sampler: str = "systematic",
    learning: Learning = Learning(),
) -> PruningPolicy:
    """Makes the policy of one site.

    Args:
      name: one of `NAMES`.
      num_columns: D.
      budget: K columns, see `pbr_jax.plans.budget_for`; a multiple of `group_size`.
      group_size: columns per arm; divides `num_columns`.
      sampler: "systematic" (exactly K columns) or "bernoulli" (the paper's independent draws).
      learning: how probabilities follow the gradient.

    Raises:
      ValueError: for a name, size or number outside its range.
    """
    _check_choice("name", name, NAMES)
    _check_choice("sampler", sampler, SAMPLERS)
    _check_group_size(group_size, num_columns)
    if not 1 <= budget <= num_columns or budget % group_size:
        raise ValueError(
            f"budget = {budget}: must be a multiple of group_size = {group_size} from 1 to "
            f"num_columns = {num_columns}; see pbr_jax.plans.budget_for"
        )
    num_arms, arm_budget = num_columns // group_size, budget // group_size
    min_prob = learning.min_prob
    if min_prob is None:
        min_prob = DEFAULT_MIN_PROB * arm_budget / num_arms
    simplex = make_simplex(num_arms, arm_budget, min_prob)
    if sampler == "systematic":
        sampling.check_systematic_budget(arm_budget)
        capacity = arm_budget
    else:
        capacity = sampling.bernoulli_slots(num_arms, arm_budget, 8 // math.gcd(8, group_size))
    num_slots = capacity * group_size
    return PruningPolicy(
        name, num_arms, sampler, group_size, learning, num_slots, np.int32(capacity), simplex
    )


def _running_mean(
    state: PolicyState, arms: jax.Array, sq_norms: jax.Array, decay: float
) -> jax.Array:
    """Energies after this round; an arm's first observation is taken whole. [A]"""
    old = state.energy.at[arms].get(mode="fill", fill_value=0.0)
    first = state.counts.at[arms].get(mode="fill", fill_value=0) == 0
    new = jnp.where(first, sq_norms, decay * old + (1.0 - decay) * sq_norms)
    new = jnp.where(jnp.isfinite(new), new, old)
    return state.energy.at[arms].set(new, mode="drop")


def _with_unseen_at_the_mean(energy: jax.Array, counts: jax.Array) -> jax.Array:
    """Arms never drawn get the mean energy of the others, lest they starve before a first look.

    Energies are skewed, so the mean is optimistic: above most arms that have been seen. [A]
    """
    seen = counts > 0
    num_seen = jnp.maximum(jnp.sum(seen), 1).astype(energy.dtype)
    return jnp.where(seen, energy, jnp.sum(jnp.where(seen, energy, 0.0)) / num_seen)


def _check_group_size(group_size: int, num_columns: int) -> None:
    if group_size < 1 or num_columns % group_size:
        raise ValueError(
            f"group_size = {group_size}: must divide num_columns = {num_columns}; use 1 for the "
            "paper's single columns"
        )
