"""The state of a training run: one pytree in, the same out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.training.mover import Mover
from pbr_jax.training.pruned_model import PrunedModel

EXTRA = "_extra"  # in an exported tree, beside parameters


def as_tree(params: dict[str, Any], extra: Any) -> dict[str, Any]:
    """Parameters and what else the model changes as one tree, as it is exported."""
    return {**params, EXTRA: extra} if jax.tree.leaves(extra) else params


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: jax.Array  # int32 scalar, steps done
    key: jax.Array  # typed PRNG key of the run; never split, each step folds its number in
    params: Any
    opt_state: Any  # of the optimizer, as its `Mover` keeps it
    pruning: Any  # of the policies that choose columns and tensors
    extra: Any = ()  # what else the model changes, such as running statistics

    @property
    def variables(self) -> tuple[Any, Any]:
        """What evaluation reads."""
        return self.params, self.extra


def init_state(
    key: jax.Array, params: Any, extra: Any, mover: Mover, model: PrunedModel
) -> TrainState:
    """State before the first step. `key` seeds selections and dropout of the whole run."""
    step, pruning = jnp.zeros((), jnp.int32), model.policies()
    return TrainState(step, key, params, mover.init(key, params, pruning), pruning, extra)
