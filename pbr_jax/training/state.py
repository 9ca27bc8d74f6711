"""The state of a training run: one pytree in, the same out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pbr_jax.training.optimizer import Optimizer
from pbr_jax.training.selection import Selector, SelectorState


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, steps done.
      key: typed PRNG key of the run; never split, each step folds its number in.
      params: float32.
      opt_state: of the Optax optimizer.
      pruning: of the policies that choose columns and tensors.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    opt_state: optax.OptState
    pruning: SelectorState


def init_state(key: jax.Array, params: Any, optimizer: Optimizer, selector: Selector) -> TrainState:
    """State before the first step. `key` seeds selections and dropout of the whole run."""
    step, opt_state = jnp.zeros((), jnp.int32), optimizer.init(params)
    return TrainState(step, key, params, opt_state, selector.init())
