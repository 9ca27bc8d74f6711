"""Which columns to keep: policies as NamedTuples of pure functions, hyper-parameters closed over.

A policy belongs to one site, an activation with D columns that feeds linear layers. Each step it
draws the columns whose rows of the weight gradient will be computed, and afterwards learns from
the squared norms of those rows. Arms are contiguous groups of `group_size` columns (1 = the
paper). The names:

* `uniform`: p = K / D throughout.
* `bandit`: Algorithm 2, see `bandit`.
* `importance`: p proportional to the root of a running mean of the squared norms, clipped to
  [min_prob, 1]: the closed-form minimiser of `sum_d E||g_d||^2 / p_d`, which the bandit follows.
* `magnitude`: PreBackRazor-; the op keeps the columns of x that are largest, and nothing is drawn.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.pruning import sampling
from pbr_jax.pruning.bandit import bandit_update
from pbr_jax.pruning.projection import check_feasible, project

NAMES = ("uniform", "bandit", "importance", "magnitude")
SAMPLERS = ("systematic", "bernoulli")
# Of K / D. On log-normal norms (768 arms, K = 80) this floor costs 1-2 % of the optimum, and it is
# what bounds the damage of noise: at step size 1e-2 the regret is 2.8 instead of 5.5 with 0.1.
DEFAULT_MIN_PROB = 0.2


class PolicyState(NamedTuple):
    """Bandit state of one site of one block; `stacked` gives every leaf a leading [L].

    Attributes:
        probs: float32 [A], inclusion probability of each arm; sums to K / group_size.
        counts: int32 [A], how often each arm has been selected.
        energy: float32 [A], running mean of squared norms (`importance`); [0] for the others.
    """

    probs: jax.Array
    counts: jax.Array
    energy: jax.Array


class PruningPolicy(NamedTuple):
    """Pure functions of one site's policy; all are jittable and vmappable.

    S = `num_slots` is the static length of `columns`: K for systematic sampling, the capacity for
    Bernoulli draws, whose unused slots hold the index D.

    Attributes:
        init: () -> state.
        sample: (key, state) -> columns, int32 [S], increasing. The key is consumed.
        update: (state, columns [S], squared row norms float32 [S]) -> state. Norms are those of
            the gradient before any division by p; those of unused slots are ignored.
        inclusion: (state, columns [S]) -> float32 [S], the probability with which each column was
            drawn from this state (before `update`), for importance weighting; 1 for unused slots.
        overflow: (key, state) -> int32 [], how many draws of `sample(key, state)` found no slot.
        num_slots: S.
    """

    init: Callable[[], PolicyState]
    sample: Callable[[jax.Array, PolicyState], jax.Array]
    update: Callable[[PolicyState, jax.Array, jax.Array], PolicyState]
    inclusion: Callable[[PolicyState, jax.Array], jax.Array]
    overflow: Callable[[jax.Array, PolicyState], jax.Array]
    num_slots: int


def make_policy(
    name: str,
    num_columns: int,
    budget: int,
    *,
    group_size: int = 1,
    sampler: str = "systematic",
    step_size: float = 1e-3,
    min_prob: float | None = None,
    offset: str = "none",
    decay: float = 0.9,
) -> PruningPolicy:
    """Makes the policy of one site.

    Args:
        name: one of `NAMES`.
        num_columns: D.
        budget: K columns, see `pbr_jax.plans.budget_for`; a multiple of `group_size`.
        group_size: columns per arm; divides `num_columns`.
        sampler: "systematic" (exactly K columns) or "bernoulli" (the paper's independent draws).
        step_size: of the bandit, in units of 1 / (largest squared norm of the round).
        min_prob: lower bound of a probability, of `bandit` and `importance`; None = 0.2 K / D.
        offset: of the bandit; "paper" is the literal Algorithm 2, which does not learn.
        decay: of the running mean, for `importance`.

    Raises:
        ValueError: for a name, size or number outside its range.
    """
    _check_choice("name", name, NAMES)
    _check_choice("sampler", sampler, SAMPLERS)
    _check_choice("offset", offset, ("none", "paper"))
    _check_group_size(group_size, num_columns)
    if not 1 <= budget <= num_columns or budget % group_size:
        raise ValueError(
            f"budget = {budget}: must be a multiple of group_size = {group_size} from 1 to "
            f"num_columns = {num_columns}; see pbr_jax.plans.budget_for"
        )
    if not (0.0 < step_size < math.inf):
        raise ValueError(f"step_size = {step_size}: must be positive and finite; try 1e-3")
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay = {decay}: must be in [0, 1); try 0.9")
    num_arms, arm_budget = num_columns // group_size, budget // group_size
    if min_prob is None:
        min_prob = DEFAULT_MIN_PROB * arm_budget / num_arms
    check_feasible(num_arms, arm_budget, min_prob)
    if sampler == "systematic":
        sampling.check_systematic_budget(arm_budget)
        arm_slots = arm_budget
    else:
        arm_slots = sampling.bernoulli_slots(num_arms, arm_budget, 8 // math.gcd(8, group_size))

    def init() -> PolicyState:
        return PolicyState(
            probs=jnp.full((num_arms,), arm_budget / num_arms, jnp.float32),
            counts=jnp.zeros((num_arms,), jnp.int32),
            energy=jnp.zeros((num_arms if name == "importance" else 0,), jnp.float32),
        )

    def sample(key: jax.Array, state: PolicyState) -> jax.Array:
        if name == "magnitude":
            raise ValueError(
                "policy = 'magnitude': its columns are chosen from x inside the op; do not sample"
            )
        if sampler == "systematic":
            arms = sampling.systematic(key, state.probs, arm_budget)
        else:
            arms, _ = sampling.bernoulli(key, state.probs, arm_slots)
        columns = arms[:, None] * group_size + jnp.arange(group_size, dtype=jnp.int32)[None]
        return jnp.minimum(columns, num_columns).reshape(-1)

    def overflow(key: jax.Array, state: PolicyState) -> jax.Array:
        if sampler == "systematic" or name == "magnitude":
            return jnp.zeros((), jnp.int32)
        return sampling.bernoulli(key, state.probs, arm_slots)[1] * group_size

    def arms_of(columns: jax.Array) -> jax.Array:
        # Column D, an unused slot, lands on arm A, which every scatter below drops.
        return columns.reshape(-1, group_size)[:, 0] // group_size

    def update(state: PolicyState, columns: jax.Array, sq_norms: jax.Array) -> PolicyState:
        arms = arms_of(columns)
        counts = state.counts.at[arms].add(1, mode="drop")
        sq_norms = jnp.sum(sq_norms.reshape(-1, group_size), axis=1)
        if name == "bandit":
            probs = bandit_update(
                state.probs,
                arms,
                sq_norms,
                budget=arm_budget,
                step_size=step_size,
                min_prob=min_prob,
                offset=offset,
            )
            return state._replace(probs=probs, counts=counts)
        if name == "importance":
            energy = _running_mean(state, arms, sq_norms, decay)
            guess = _with_unseen_at_the_mean(energy, counts)
            probs = project(0.5 * jnp.log(guess), arm_budget, min_prob)  # weights sqrt(guess)
            return PolicyState(probs=probs, counts=counts, energy=energy)
        return state._replace(counts=counts)

    def inclusion(state: PolicyState, columns: jax.Array) -> jax.Array:
        if name == "magnitude":  # chosen, not drawn
            return jnp.ones(columns.shape, state.probs.dtype)
        return state.probs.at[columns // group_size].get(mode="fill", fill_value=1.0)

    return PruningPolicy(init, sample, update, inclusion, overflow, arm_slots * group_size)


def stacked(policy: PruningPolicy, num_blocks: int) -> PruningPolicy:
    """The same policy for L blocks at once: every array gains a leading [L], keys are split."""

    def init() -> PolicyState:
        state = policy.init()
        return jax.tree.map(lambda leaf: jnp.tile(leaf[None], (num_blocks, 1)), state)

    def with_keys(function: Callable) -> Callable:
        def over_blocks(key: jax.Array, state: PolicyState) -> jax.Array:
            return jax.vmap(function)(jax.random.split(key, num_blocks), state)

        return over_blocks

    return PruningPolicy(
        init=init,
        sample=with_keys(policy.sample),
        update=jax.vmap(policy.update),
        inclusion=jax.vmap(policy.inclusion),
        overflow=with_keys(policy.overflow),
        num_slots=policy.num_slots,
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


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} = {value!r}: must be one of {', '.join(choices)}")


def _check_group_size(group_size: int, num_columns: int) -> None:
    if group_size < 1 or num_columns % group_size:
        raise ValueError(
            f"group_size = {group_size}: must divide num_columns = {num_columns}; use 1 for the "
            "paper's single columns"
        )
