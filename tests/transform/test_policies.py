"""What groups learn and draw: stable names, no empty array, one policy for equal sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rewritten import loss_of, numbers, weights

from pbr_jax import prune
from pbr_jax.pruning import make_policy

D = 64


def model(params, x):
    x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    return jnp.tanh(x @ params["q"]) * (x @ params["k"]) @ params["out"]


@pytest.fixture(scope="module")
def params():
    return weights(0, stack=(3, D, D), q=(D, D), k=(D, D), out=(D, D))


def made(params, policy="bandit", **kwargs):
    return prune(model, params, numbers(1, 4, D), keep=0.25, policy=policy, **kwargs)


@pytest.mark.parametrize("policy", ["bandit", "importance", "uniform"])
def test_state_has_no_empty_array(params, policy):
    state = jax.eval_shape(made(params, policy).init)
    assert list(state) == ["k", "out", "stack"]
    assert state["stack"]["probs"].shape == (3, D) and state["k"]["counts"].shape == (D,)
    assert all(leaf.size for leaf in jax.tree.leaves(state))


def test_draws_and_learns_like_a_policy_of_each_group(params):
    """Packed and dense gradients teach the same; q and k teach their group by their sum."""
    pruned = made(params)

    @jax.jit
    def run(params, key, x):
        state = pruned.init()
        selection = pruned.select(state, key)
        grads = pruned.value_and_grad(loss_of(model))(params, selection, x)[1]
        dense = pruned.dense(grads, selection)
        return selection, grads, *(pruned.learn(state, selection, g) for g in (grads, dense))

    selection, grads, packed, dense = run(params, jax.random.key(3), numbers(1, 4, D))
    jax.tree.map(np.testing.assert_array_equal, packed, dense)
    assert [selection[name].shape for name in selection] == [(16,), (16,), (3, 16)]
    assert all(np.all(np.diff(columns) > 0) for columns in selection.values())
    policy = make_policy("bandit", D, 16)
    norms = sum(jnp.sum(grads[name] ** 2, axis=1) for name in ("q", "k"))
    expected = policy.update(policy.init(), selection["k"], norms)
    np.testing.assert_allclose(packed["k"]["probs"], expected.probs, rtol=1e-5)
    np.testing.assert_array_equal(packed["k"]["counts"], expected.counts)
    assert np.all(packed["stack"]["counts"].sum(axis=1) == 16)
    assert np.any(packed["stack"]["probs"] != packed["stack"]["probs"][:1])


def test_draws_of_a_group_do_not_depend_on_the_others(params):
    """A checkpoint of the state serves a model with more or fewer pruned layers."""
    both, fewer = made(params), made(params, exclude="stack")
    draw = lambda p: jax.jit(lambda key: p.select(p.init(), key))(jax.random.key(0))  # noqa: E731
    np.testing.assert_array_equal(draw(both)["k"], draw(fewer)["k"])
    with pytest.raises(ValueError, match="state lacks stack"):
        both.select(fewer.init(), jax.random.key(0))


def test_round_trip_by_orbax(params, tmp_path):
    import orbax.checkpoint as ocp

    state = made(params).init()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
