"""Float64 NumPy references for the pruning tests, written from the paper's formulas."""

import numpy as np


def project(log_weights: np.ndarray, budget: float, min_prob: float) -> np.ndarray:
    """Argmin KL(q || w) over {sum q = budget, min_prob <= q <= 1}: plain bisection on log c."""
    log_weights = np.asarray(log_weights, np.float64)

    def clipped(log_c: float) -> np.ndarray:
        return np.exp(np.clip(log_c + log_weights, np.log(min_prob), 0.0))

    finite = log_weights[np.isfinite(log_weights)]
    low, high = np.log(min_prob) - finite.max(), -finite.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if clipped(middle).sum() < budget else (low, middle)
    return clipped(low)


def optimal_probs(norms: np.ndarray, budget: float, min_prob: float) -> np.ndarray:
    """The minimiser of sum(norms**2 / p): p proportional to the norm, clipped."""
    return project(np.log(np.asarray(norms, np.float64)), budget, min_prob)


def bandit_update(
    probs, active, sq_norms, budget, step_size, min_prob, offset
) -> np.ndarray:  # fmt: skip
    """Algorithm 2 line by line, in units where G, the largest active norm, is 1."""
    largest = max(sq_norms)
    log_weights = np.log(np.asarray(probs, np.float64))
    losses = {d: -(n / largest) / probs[d] ** 2 for d, n in zip(active, sq_norms, strict=True)}
    shift = {"none": 0.0, "paper": 1.0 / min_prob**2, "minimum": -min(losses.values())}[offset]
    for d, loss in losses.items():
        log_weights[d] -= step_size * (loss + shift) / probs[d]
    return project(log_weights, budget, min_prob)


def largest_z_score(hits: np.ndarray, probs: np.ndarray, draws: int) -> float:
    """The worst |frequency - p| over all arms, in standard errors; inf where p = 1 was missed."""
    probs = np.asarray(probs, np.float64)
    spread = np.sqrt(draws * probs * (1.0 - probs))
    off = np.abs(hits - draws * probs)
    certain = spread == 0.0
    if np.any(off[certain] > 0.0):
        return float("inf")
    return float(np.max(off[~certain] / spread[~certain], initial=0.0))
