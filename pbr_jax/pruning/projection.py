"""KL projection onto the set of inclusion probabilities, line 11 of Algorithm 2.

PreBackRazor keeps one probability per arm in

    P = {p in R^A : sum_d p_d = budget, min_prob <= p_d <= 1}

and projects the multiplicative-weights update `w` back onto it:

    p = argmin_{q in P} KL(q || w),   solved by   p_d = clip(c w_d, min_prob, 1).

The paper's P has no upper bound; without it a "probability" exceeds 1. The same map with
`w_d = ||g_d||` is the minimiser of `sum_d ||g_d||^2 / p_d` over P, the objective that the bandit
follows.
"""

import functools
import math

import jax
import jax.numpy as jnp

# Candidates tried at once in a round of the search for c, and rounds: few, because on a GPU each
# round costs kernel launches. 15**-6 of a bracket log(1 / min_prob) <= 13.9 wide is 1.2e-6.
_SECTIONS = 16
_ROUNDS = 6
_WEIGHTLESS = 1e30  # |log weight| that stands for infinity, so that differences stay finite
_SMALLEST_MIN_PROB = 1e-6


def check_feasible(num_arms: int, budget: int, min_prob: float) -> None:
    """Raises ValueError unless P holds a point and float32 can represent the search for it."""
    if not 1 <= budget <= num_arms:
        raise ValueError(
            f"budget = {budget}: must be between 1 and the number of arms, {num_arms}; keep fewer"
        )
    if not _SMALLEST_MIN_PROB <= min_prob <= 1.0:
        raise ValueError(
            f"min_prob = {min_prob}: must be in [{_SMALLEST_MIN_PROB:g}, 1]; it is a probability, "
            "and a smaller one is lost in float32"
        )
    if min_prob * num_arms > budget * (1 + 1e-9):
        raise ValueError(
            f"min_prob = {min_prob}: {num_arms} arms x min_prob exceeds the budget of {budget}; "
            f"use at most {budget / num_arms:g}"
        )


@functools.partial(jax.jit, static_argnames=("budget", "min_prob"))
def project(log_weights: jax.Array, budget: int, min_prob: float) -> jax.Array:
    """Projects weights onto P in KL divergence.

    Weights come as logarithms, so exp(-step_size * loss / p) of Algorithm 2 never overflows;
    a weight of zero (`-inf`) is allowed. The constant c is found by sectioning in log space. Its
    bracket needs one order statistic: with m = floor((budget - A min_prob) / (1 - min_prob)), the
    arm with the (m+1)-th largest weight v has p >= min_prob at the lower end c = min_prob / v,
    where the sum is at most the budget, and p = 1 at the upper end c = 1 / v, where it exceeds it.

    Args:
        log_weights: float32 [A], natural logarithms of w up to a common constant, never NaN.
        budget: K, what the probabilities sum to.
        min_prob: lower bound of every probability, at least 1e-6.

    Returns:
        float32 [A], within a relative 1e-6 of the exact projection.

    Raises:
        ValueError: when P is empty (`budget > A`, `min_prob * A > budget`, `min_prob > 1`).
    """
    num_arms = log_weights.shape[0]
    check_feasible(num_arms, budget, min_prob)
    if budget == num_arms:
        return jnp.ones_like(log_weights)
    if min_prob * num_arms >= budget:
        return jnp.full_like(log_weights, budget / num_arms)
    surely_kept = math.floor((budget - num_arms * min_prob) / (1.0 - min_prob))
    log_weights = jnp.clip(log_weights, -_WEIGHTLESS, _WEIGHTLESS)
    pivot = jnp.sort(log_weights, stable=False)[num_arms - 1 - surely_kept]
    # With c in [min_prob, 1] an arm beyond these limits is at a bound whatever c is.
    width = -math.log(min_prob)
    weights = jnp.exp(jnp.clip(log_weights - pivot, -width, width))
    steps = jnp.linspace(0.0, 1.0, _SECTIONS, dtype=weights.dtype)

    def narrow(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, width = bracket
        scaled = jnp.exp(low + width * steps)[:, None] * weights[None]
        room, total = _room_and_total(scaled, budget, min_prob)
        # The largest candidate that stays within the budget; the first one does by construction.
        index = jnp.clip(jnp.sum(total <= room) - 1, 0, _SECTIONS - 2)
        return low + width * steps[index], width / (_SECTIONS - 1)

    bracket = (jnp.asarray(-width, weights.dtype), jnp.asarray(width, weights.dtype))
    low, _ = jax.lax.fori_loop(0, _ROUNDS, narrow, bracket)
    # Solving for c among the arms that this c leaves between the bounds removes its rounding error.
    scaled = jnp.exp(low) * weights
    room, total = _room_and_total(scaled, budget, min_prob)
    correction = jnp.where(total > 0.0, room / jnp.where(total > 0.0, total, 1.0), 1.0)
    return jnp.clip(scaled * correction, min_prob, 1.0)


def _room_and_total(scaled: jax.Array, budget: int, min_prob: float) -> tuple[jax.Array, jax.Array]:
    """Splits the condition sum(clip(scaled, min_prob, 1)) = budget at the bounds.

    Returns what the arms at a bound leave of the budget, and the sum of the arms between the
    bounds: the condition is that they are equal. Arms at a bound are counted, not summed, because
    a float32 sum of thousands of ones hides a remainder of a few hundredths.
    """
    at_one = jnp.sum(scaled >= 1.0, axis=-1)
    at_min = jnp.sum(scaled <= min_prob, axis=-1)
    room = (budget - at_one).astype(scaled.dtype) - at_min.astype(scaled.dtype) * min_prob
    inside = (scaled > min_prob) & (scaled < 1.0)
    return room, jnp.sum(jnp.where(inside, scaled, 0.0), axis=-1)
