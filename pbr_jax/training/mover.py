"""Who draws what a step trains, and moves it: an optimizer of all rows, or of the drawn ones alone.

Both are pure functions of a train state. `whole` draws anew as its interval says and keeps moments
of every row; `packed` (`pbr_jax.training.packed`) keeps a draw, and what belongs to its rows, until
the next one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from pbr_jax.plans import Implementation
from pbr_jax.training.optimizer import Optimizer, Updated, update_rows
from pbr_jax.training.pruned_model import PrunedModel

PyTree = Any


class Moving(Protocol):
    """The part of a train state that a draw reads."""

    @property
    def step(self) -> jax.Array: ...
    @property
    def key(self) -> jax.Array: ...
    @property
    def params(self) -> Any: ...
    @property
    def opt_state(self) -> Any: ...
    @property
    def pruning(self) -> Any: ...


class Drawn(NamedTuple):
    """What a step trains, and the states with which it was drawn."""

    selection: PyTree
    pruning: PyTree
    opt_state: PyTree


class Mover(NamedTuple):
    """Pure functions; hyper-parameters closed over.

    Attributes:
      init: `(key, params, pruning) -> opt_state` before the first step. The key is the run's.
      draw: `state -> Drawn`, before the forward pass (Algorithm 1, lines 5-6).
      update: `(weighted, drawn, params, slices, apply, factors) -> Updated`: one step of the
        optimizer on packed gradients; arguments as of `optimizer.update_rows`.
      norm: global norm of packed gradients, float32.
      end: `state -> opt_state`, of the state after a step, with its number: what the next begins
        with.
    """

    init: Callable[[jax.Array, PyTree, PyTree], PyTree]
    draw: Callable[[Moving], Drawn]
    update: Callable[..., Updated]
    norm: Callable[[PyTree], jax.Array]
    end: Callable[[Moving], PyTree] = lambda state: state.opt_state


def draw_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """The key of the draw at `step`, from that of the run."""
    select_key, _ = jax.random.split(jax.random.fold_in(key, step))
    return select_key


def whole(
    model: PrunedModel,
    optimizer: Optimizer,
    *,
    interval: int | None = 1,
    implementation: Implementation | None = None,
) -> Mover:
    """Moments of all rows; those that are not drawn stay.

    Args:
      interval: steps that draw columns with the same random numbers: the same columns where p
        does not change, and nearly the same ones under a policy that learns. None: all steps.
      implementation: of the update, see `pbr_jax.ops.dispatch`.
    """

    def init(key, params, pruning):
        return optimizer.init(params)

    def draw(state):
        first = state.step * 0 if interval is None else state.step - state.step % interval
        pruning, selection = model.select(draw_key(state.key, first), state.pruning, state.step)
        return Drawn(selection, pruning, state.opt_state)

    def update(weighted, drawn, params, slices, apply, factors=None):
        return update_rows(
            optimizer, weighted, drawn.opt_state, params, slices, apply, implementation, factors
        )

    return Mover(init, draw, update, optimizer.norm)
