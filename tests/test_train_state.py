"""Flax' own TrainState, with layers and with `prune`: as docs/models.md writes it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

import pbr_jax
from pbr_jax import layers

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64)), jnp.float32)


@pytest.fixture(autouse=True)
def promotion():
    """Optax's Adam mixes its integer count with floats, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def applied(state, grads, selection):
    """The two lines of the documentation, in the place of `state.apply_gradients`."""
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params, selection=selection)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def step_of_layers(state, key):
    def loss(params):
        y, drawn = state.apply_fn(
            {"params": params}, X, rngs={"selection": key}, mutable=["selection"]
        )
        return jnp.sum(y * y), drawn["selection"]

    grads, selection = jax.grad(loss, has_aux=True)(state.params)
    return applied(state, grads, selection), selection["selected"]


def step_of(pruned):
    def step(state, key):
        selection = pruned.select(pruned.init(), key)
        loss = lambda params, x: jnp.sum(state.apply_fn({"params": params}, x) ** 2)  # noqa: E731
        _, grads = pruned.value_and_grad(loss)(state.params, selection, X)
        grads = pruned.dense(grads, selection)
        return applied(state, grads, selection), pruned.masks(selection)["kernel"][:, 0]

    return step


@pytest.mark.parametrize("way", ["layers", "prune"])
def test_selected_rows_move_and_no_others(way):
    if way == "layers":
        module, pruned, step = layers.Dense(5), None, step_of_layers
    else:
        module = nn.Dense(5)
        pruned = pbr_jax.prune(module, X, keep=0.1)
        step = step_of(pruned)
    state = TrainState.create(
        apply_fn=module.apply,
        params=module.init(jax.random.key(0), X)["params"],
        tx=pbr_jax.freeze_unselected(optax.adamw(0.1, weight_decay=0.3), pruned),
    )
    step = jax.jit(step)
    for seed in range(2):
        before, (state, selected) = state, step(state, jax.random.key(seed))
        moments = [state.opt_state[0].mu["kernel"], before.opt_state[0].mu["kernel"]]
        for new, old in [(state.params["kernel"], before.params["kernel"]), moments]:
            np.testing.assert_array_equal(np.any(new != old, axis=1), selected)
        assert 0 < np.sum(selected) < 64
    assert state.step == 2


def test_apply_gradients_says_that_it_lacks_a_selection():
    """It has no way to hand one on, and never trains the rows that were not selected instead."""
    params = {"kernel": jnp.ones((64, 5))}
    tx = pbr_jax.freeze_unselected(optax.sgd(0.1))
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    with pytest.raises(TypeError, match="selection"):
        state.apply_gradients(grads=params)
