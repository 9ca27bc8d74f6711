"""KL projection onto the set of inclusion probabilities, line 11 of Algorithm 2.

PreBackRazor keeps one probability per arm in

    P = {p in R^A : sum_d p_d = budget, min_prob <= p_d <= 1}

and projects the multiplicative-weights update `w` back onto it:

    p = argmin_{q in P} KL(q || w),   solved by   p_d = clip(c w_d, min_prob, 1).

The paper's P has no upper bound; without it a "probability" exceeds 1. The same map with
`w_d = ||g_d||` is the minimiser of `sum_d ||g_d||^2 / p_d` over P, the objective that the bandit
follows.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Candidates tried at once in a round of the search for c, and rounds: few, because on a GPU each
# round costs kernel launches. 15**-6 of a bracket log(1 / min_prob) <= 13.9 wide is 1.2e-6.
_SECTIONS = 16
_ROUNDS = 6
_WEIGHTLESS = 1e30  # |log weight| that stands for infinity, so that differences stay finite
_SMALLEST_MIN_PROB = 1e-6


class Simplex(NamedTuple):
    """The set P of one site as numbers, so that sites stack and `jax.vmap` projects them at once.

    Attributes:
      budget: int32, what the probabilities sum to.
      min_prob: float32, the lower bound of each.
      log_range: float32, `log(1 / min_prob)`.
      largest_loss: float32, `1 / min_prob**2`, the constant of line 5 of Algorithm 2 where G = 1.
      surely_kept: int32, the m of `project`.
      lone: bool, whether P holds only the point where all are `mean`.
      mean: float32, `budget / A`.
    """

    budget: np.int32
    min_prob: np.float32
    log_range: np.float32
    largest_loss: np.float32
    surely_kept: np.int32
    lone: np.bool_
    mean: np.float32


def make_simplex(num_arms: int, budget: int, min_prob: float) -> Simplex:
    """The set P, rounded from float64.

    Args:
      num_arms: A.
      budget: K, what the probabilities sum to.
      min_prob: lower bound of every probability, at least 1e-6.

    Raises:
      ValueError: P is empty, or float32 cannot represent the search for a point of it.
    """
    _check_feasible(num_arms, budget, min_prob)
    lone = budget == num_arms or min_prob * num_arms >= budget
    surely_kept = 0 if lone else math.floor((budget - num_arms * min_prob) / (1.0 - min_prob))
    return Simplex(
        budget=np.int32(budget),
        min_prob=np.float32(min_prob),
        log_range=np.float32(-math.log(min_prob)),
        largest_loss=np.float32(1.0 / min_prob**2),
        surely_kept=np.int32(surely_kept),
        lone=np.bool_(lone),
        mean=np.float32(budget / num_arms),
    )


@jax.jit
def project(log_weights: jax.Array, simplex: Simplex) -> jax.Array:
    """Projects weights onto P in KL divergence, line 11 of Algorithm 2.

    Weights come as logarithms, so exp(-step_size * loss / p) of line 9 never overflows; a weight of
    zero (`-inf`) is allowed. The constant c is found by sectioning in log space. Its bracket needs
    one order statistic: with m = floor((budget - A min_prob) / (1 - min_prob)), the arm with the
    (m+1)-th largest weight v has p >= min_prob at the lower end c = min_prob / v, where the sum is
    at most the budget, and p = 1 at the upper end c = 1 / v, where it exceeds it.

    Args:
      log_weights: float32 [A], natural logarithms of w up to a common constant, never NaN.
      simplex: P.

    Returns:
      float32 [A], within a relative 1e-6 of the exact projection.
    """
    log_weights = jnp.clip(log_weights, -_WEIGHTLESS, _WEIGHTLESS)
    last = log_weights.shape[0] - 1
    pivot = jnp.sort(log_weights, stable=False)[last - simplex.surely_kept]
    # With c in [min_prob, 1] an arm beyond these limits is at a bound whatever c is.
    weights = jnp.exp(jnp.clip(log_weights - pivot, -simplex.log_range, simplex.log_range))
    steps = jnp.linspace(0.0, 1.0, _SECTIONS, dtype=weights.dtype)

    def narrow(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, width = bracket
        scaled = jnp.exp(low + width * steps)[:, None] * weights[None]
        room, total = _room_and_total(scaled, simplex)
        # The largest candidate that stays within the budget; the first one does by construction.
        index = jnp.clip(jnp.sum(total <= room) - 1, 0, _SECTIONS - 2)
        return low + width * steps[index], width / (_SECTIONS - 1)

    bracket = (jnp.asarray(-simplex.log_range), jnp.asarray(simplex.log_range))
    low, _ = jax.lax.fori_loop(0, _ROUNDS, narrow, bracket)
    # Solving for c among the arms that this c leaves between the bounds removes its rounding error.
    scaled = jnp.exp(low) * weights
    room, total = _room_and_total(scaled, simplex)
    correction = jnp.where(total > 0.0, room / jnp.where(total > 0.0, total, 1.0), 1.0)
    probs = jnp.clip(scaled * correction, simplex.min_prob, 1.0)
    return jnp.where(simplex.lone, simplex.mean, probs)


def _room_and_total(scaled: jax.Array, simplex: Simplex) -> tuple[jax.Array, jax.Array]:
    """Splits the condition sum(clip(scaled, min_prob, 1)) = budget at the bounds.

    Returns what the arms at a bound leave of the budget, and the sum of the arms between the
    bounds: the condition is that they are equal. Arms at a bound are counted, not summed, because
    a float32 sum of thousands of ones hides a remainder of a few hundredths.
    """
    at_one = jnp.sum(scaled >= 1.0, axis=-1)
    at_min = jnp.sum(scaled <= simplex.min_prob, axis=-1)
    room = (simplex.budget - at_one).astype(scaled.dtype)
    room = room - at_min.astype(scaled.dtype) * simplex.min_prob
    inside = (scaled > simplex.min_prob) & (scaled < 1.0)
    return room, jnp.sum(jnp.where(inside, scaled, 0.0), axis=-1)


def _check_feasible(num_arms: int, budget: int, min_prob: float) -> None:
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
