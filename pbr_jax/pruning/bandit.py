"""The multiplicative-weights step of the bandit, lines 3-11 of Algorithm 2.

The bandit minimises `sum_d ||g_d||^2 / p_d`, the variance term of Theorem 1, from the gradients
of the active arms alone. An active arm's loss is the derivative of its term, `-||g_d||^2 / p_d^2`;
dividing it by `p_d` once more makes it an unbiased estimate over the draw.

Three readings of the paper:

* Norms are divided by G, the round's largest active norm, so `step_size` is free of the scale of
  the loss function. (The authors' release does so; a running maximum converges far worse.)
* `offset="paper"` charges the constant `G^2 / min_prob^2` of line 5, which makes every loss
  positive, to the active arms only. In expectation it cancels in the projection; its variance
  drowns the signal, and the bandit does not learn at any step size. `"none"` leaves it out, which
  changes no expectation. `"minimum"` shifts by the smallest active loss, as the release does in
  JointSPAR.
* Probabilities are capped at 1, see `projection`.
"""

import functools

import jax
import jax.numpy as jnp

from pbr_jax.pruning.projection import Simplex, project

OFFSETS = ("none", "paper", "minimum")


@functools.partial(jax.jit, static_argnames="offset")
def bandit_update(
    probs: jax.Array,
    arms: jax.Array,
    sq_norms: jax.Array,
    simplex: Simplex,
    *,
    step_size: float | jax.Array,
    offset: str = "none",
) -> jax.Array:
    """One call of UPDATE(p_t, S_t, {g_d}): w_d = p_d exp(-a l_d / p_d), projected in KL.

    Args:
      probs: float32 [A], p_t, in [min_prob, 1].
      arms: int32 [S], the active set without repetition; index A marks an unused slot.
      sq_norms: float32 [S], squared gradient norms of those arms, before any division by p. Values
        of unused slots and values that are not finite are ignored.
      simplex: the set P.
      step_size: a, the paper's alpha_p, in units of 1 / G^2.
      offset: one of `OFFSETS`, what is added to the losses of the active arms.

    Returns:
      float32 [A], p_{t+1}; p_t, projected, when every norm is zero.

    Raises:
      ValueError: for an unknown `offset`.
    """
    if offset not in OFFSETS:
        raise ValueError(f"offset = {offset!r}: must be one of {', '.join(OFFSETS)}")
    observed = (arms < probs.shape[0]) & jnp.isfinite(sq_norms)
    sq_norms = jnp.where(observed, sq_norms, 0.0)
    largest = jnp.max(sq_norms)
    relative = sq_norms / jnp.where(largest > 0.0, largest, 1.0)
    # Line 5, in units of G^2.
    active_probs = probs.at[arms].get(mode="fill", fill_value=1.0)
    loss = -relative / active_probs**2
    if offset == "paper":
        loss = loss + jnp.where(largest > 0.0, simplex.largest_loss, 0.0)
    elif offset == "minimum":
        loss = loss - jnp.min(loss)
    # Line 9 in logarithms: an arm that is not active has no loss (line 7) and keeps its weight.
    change = jnp.where(observed, -step_size * loss / active_probs, 0.0)
    log_weights = jnp.log(probs).at[arms].add(change, mode="drop")
    return project(log_weights, simplex)
