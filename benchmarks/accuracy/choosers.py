"""Choosers of columns, replayed on what a dense run recorded: what share of the energy they hold.

`compare` has three groups. Scores order all columns, and the K of highest score are taken. Policies
of `pbr_jax.pruning` draw K columns by their probabilities and learn from the energies of these
alone, as in training. `forecast` is no policy: it draws in proportion to the root of
`|x_d|^2 r_d`, where r_d, the energy of a row over the squared norm of its column, is learned of the
rows that were drawn.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax import pruning
from pbr_jax.pruning.projection import project
from pbr_jax.pruning.sampling import systematic

DECAY = 0.9  # of running means
STALE = 20  # steps between two looks of the chooser that looks seldom
STEP_SIZES = (1e-3, 1e-2, 1e-1)
_TINY = 1e-30


class Drawn(NamedTuple):
    """What a policy drew along a run.

    Attributes:
      share: `[steps, L]` of the energy.
      probs: `[L, D]` at the end.
      counts: `[L, D]`, how often each column was drawn.
    """

    share: jax.Array
    probs: jax.Array
    counts: jax.Array


def share_of_largest(energy: np.ndarray, scores: np.ndarray, budget: int) -> np.ndarray:
    """Share of the energy `[..., D]` in the `budget` columns of the highest score."""
    columns = np.argpartition(-scores, budget - 1, axis=-1)[..., :budget]
    kept = np.take_along_axis(energy, columns, axis=-1).sum(-1)
    return kept / np.maximum(energy.sum(-1), _TINY)


def before(series: np.ndarray) -> np.ndarray:
    """`[steps, ...]` as known one step later; the first step knows nothing, all are equal."""
    return np.concatenate([np.ones_like(series[:1]), series[:-1]])


def running_mean(series: np.ndarray, decay: float = DECAY) -> np.ndarray:
    """Exponential mean over steps, up to and with each."""
    out = [series[0]]
    for row in series[1:]:
        out.append(decay * out[-1] + (1 - decay) * row)
    return np.stack(out)


def seldom(series: np.ndarray, every: int = STALE) -> np.ndarray:
    """The values of the last step whose number `every` divides."""
    return series[np.arange(len(series)) // every * every]


def scores(told: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`{chooser: [steps, L, D]}`; each knows what its name says."""
    energy, norms = told["energy"], told["norms"]
    found = {
        "best K, behind the backward pass": energy,
        "mean of all row norms": before(running_mean(energy)),
        "norms of x, this step": norms,
        "norms of x, last step": before(norms),
        "norms of x, running mean": before(running_mean(norms)),
        "norms of x, one example": told["sample"],
        f"norms of x, every {STALE} steps": seldom(norms),
    }
    if told["affine"].any():
        found["gamma^2 + beta^2"] = told["affine"]
    return found


def replay(policy: Any, energy: jax.Array, seed: int = 0) -> Drawn:
    """A policy along `[steps, L, D]`; it sees the energies of what it drew."""
    blocks = energy.shape[1]
    state = jax.vmap(lambda _: policy.init())(jnp.arange(blocks))

    def step(state, inputs):
        key, now = inputs
        columns = jax.vmap(policy.sample)(jax.random.split(key, blocks), state)
        kept = jnp.take_along_axis(now, columns, axis=-1)
        return jax.vmap(policy.update)(state, columns, kept), kept.sum(-1) / _whole(now)

    keys = jax.random.split(jax.random.key(seed), len(energy))
    state, share = jax.lax.scan(step, state, (keys, energy))
    return Drawn(share, state.probs, state.counts)


def forecast(
    energy: jax.Array, norms: jax.Array, policy: Any, power: float = 0.5, seed: int = 0
) -> Drawn:
    """Draws by last step's norms of x times learned ratios; `policy` has K and bounds of p.

    p is in proportion to that product to the `power`: the root has the least variance, and more
    holds more energy.
    """
    blocks, columns_of_all = energy.shape[1:]
    simplex, budget = policy.simplex, policy.num_slots
    nothing = jnp.zeros((blocks, columns_of_all))

    def step(carry, inputs):
        ratios, counts, last = carry
        key, now, seen = inputs
        known = counts > 0
        average = jnp.sum(jnp.where(known, ratios, 0), -1, keepdims=True)
        average = average / jnp.maximum(jnp.sum(known, -1, keepdims=True, dtype=jnp.float32), 1)
        some = jnp.any(known, -1, keepdims=True)
        guess = last * jnp.where(known, ratios, jnp.where(some, average, 1.0))
        logits = power * jnp.log(jnp.maximum(guess, _TINY))
        probs = jax.vmap(project, (0, None))(logits, simplex)
        keys = jax.random.split(key, blocks)
        drawn = jax.vmap(lambda k, p: systematic(k, p, policy.capacity, budget))(keys, probs)
        rows = jnp.arange(blocks)[:, None]
        kept = now[rows, drawn]
        fresh = kept / jnp.maximum(seen[rows, drawn], _TINY)
        old = ratios[rows, drawn]
        mixed = jnp.where(counts[rows, drawn] == 0, fresh, DECAY * old + (1 - DECAY) * fresh)
        moved = (ratios.at[rows, drawn].set(mixed), counts.at[rows, drawn].add(1), seen)
        return moved, (kept.sum(-1) / _whole(now), probs)

    keys = jax.random.split(jax.random.key(seed), len(energy))
    start = (nothing, nothing, jnp.ones_like(nothing))
    (_, counts, _), (share, probs) = jax.lax.scan(step, start, (keys, energy, norms))
    return Drawn(share, probs[-1], counts)


def _whole(energy: jax.Array) -> jax.Array:
    return jnp.maximum(energy.sum(-1), _TINY)


def _summary(drawn: Drawn, first: int) -> dict[str, Any]:
    """Share, and how p concentrates: of D the columns that would be as spread, and those near 1."""
    probs = np.asarray(drawn.probs, np.float64)
    effective = probs.sum(-1) ** 2 / np.square(probs).sum(-1) / probs.shape[-1]
    return {
        "share": np.asarray(drawn.share)[first:].mean(0),
        "effective": effective,
        "certain": (probs > 0.9).mean(-1),
        "never": (np.asarray(drawn.counts) == 0).mean(-1),
    }


def compare(told: Mapping[str, np.ndarray], budget: int, first: int) -> dict[str, dict[str, Any]]:
    """`{chooser: {"share": [L], ...}}` of one site, means over the steps from `first` on."""
    found: dict[str, dict[str, Any]] = {
        name: {"share": share_of_largest(told["energy"], score, budget)[first:].mean(0)}
        for name, score in scores(told).items()
    }
    energy, norms = jnp.asarray(told["energy"]), jnp.asarray(told["norms"])
    width = energy.shape[-1]
    policies = {
        "uniform": pruning.make_policy("uniform", width, budget),
        "importance": pruning.make_policy("importance", width, budget),
    }
    sizes = {f"{size:g}": size for size in STEP_SIZES}
    # Its update divides a loss by p^3, which this undoes at the mean of p.
    cube = (budget / width) ** 3
    for name, size in {**sizes, "0.1 keep^3": 0.1 * cube, "keep^3": cube}.items():
        learning = pruning.Learning(step_size=size)
        policy = pruning.make_policy("bandit", width, budget, learning=learning)
        policies[f"bandit, step size {name}"] = policy
    for name, policy in policies.items():
        found[name] = _summary(replay(policy, energy), first)
    for name, power in (("forecast", 0.5), ("forecast, p in proportion", 1.0)):
        found[name] = _summary(forecast(energy, norms, policies["importance"], power), first)
    return found
