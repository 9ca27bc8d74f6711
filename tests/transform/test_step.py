"""The loop around a pruned model: any Optax transformation, accumulation, checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from measures import equations
from rewritten import loss_of, numbers, selection_of, weights

from pbr_jax import freeze_unselected, prune, train_step

D = 64


@pytest.fixture(autouse=True)
def promotion():
    """Optax's Adam mixes its integer count with floats, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def model(params, x):
    x = jnp.tanh(x @ params["in"]["w"])
    x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    return x @ params["head"]["w"] + params["head"]["b"][None]


def loss(params, x):
    return jnp.mean(model(params, x) ** 2)


@pytest.fixture(scope="module")
def params():
    parts = {"in": weights(0, w=(D, D)), "head": weights(1, w=(D, 8), b=(8,))}
    return parts | weights(2, stack=(2, D, D))


@pytest.fixture(scope="module")
def pruned(params):
    return prune(model, params, numbers(0, 4, D), keep=0.25)


LABELS = {"in": "a", "head": "b", "stack": "a"}
DECAYED = optax.adamw(1e-2, weight_decay=0.1)
OPTIMIZERS = {
    "chain": optax.chain(optax.clip_by_global_norm(0.5), DECAYED),
    "multi_transform": optax.multi_transform({"a": DECAYED, "b": optax.sgd(0.1)}, LABELS),
    "masked": optax.masked(DECAYED, {"in": True, "head": False, "stack": True}),
    "MultiSteps": optax.MultiSteps(DECAYED, 2),
    "adafactor": optax.adafactor(1e-2, weight_decay_rate=0.1, momentum=0.9),
    "ema": optax.chain(optax.adam(1e-2), optax.ema(0.9)),
    "muon": optax.contrib.muon(1e-2),
}


def arrays_of(tree, name, shape):
    """Arrays of a shape whose path names a parameter."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [a for keys, a in found if name in jax.tree_util.keystr(keys) and a.shape == shape]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_were_never_selected_stand_still(pruned, params, name):
    """And so do their moments; selected ones move. MultiSteps draws anew for every part."""
    tx = freeze_unselected(OPTIMIZERS[name], pruned)
    state, now = tx.init(params), params
    selections = [selection_of(pruned, seed) for seed in range(4)]

    @jax.jit
    def step(params, state, selection):
        masks = pruned.masks(selection)
        grads = jax.tree.map(lambda p: 0.1 + p, params)
        grads["in"]["w"] *= masks["in/w"]
        grads["stack"] *= masks["stack"]
        updates, state = tx.update(grads, state, params, selection=selection)
        return optax.apply_updates(params, updates), state

    for selection in selections:
        now, state = step(now, state, selection)
    drawn = [pruned.masks(s) for s in selections]
    for path, old, new in (
        ("in/w", params["in"]["w"], now["in"]["w"]),
        ("stack", params["stack"], now["stack"]),
    ):
        ever = np.any([np.asarray(masks[path]) for masks in drawn], axis=0)
        still = np.broadcast_to(~ever, old.shape)
        assert still.any()
        np.testing.assert_array_equal(new[still], old[still])
        assert np.all(np.any(new != old, axis=-1, keepdims=True)[ever])
        for moment in arrays_of(state, path.split("/")[0], old.shape):
            assert not np.asarray(moment)[still].any()
    assert np.all(now["head"]["b"] != params["head"]["b"]) or name in ("masked",)


def test_equals_the_plain_optimizer_where_all_is_selected(pruned, params):
    """Rows of one selection that never changes move as under the optimizer alone."""
    selection = selection_of(pruned)
    mask = np.asarray(pruned.masks(selection)["in/w"])[:, 0]
    grads = jax.tree.map(jnp.cos, params)
    tx, frozen = DECAYED, freeze_unselected(DECAYED, pruned)
    expected, _ = tx.update(grads, tx.init(params), params)
    actual, _ = frozen.update(grads, frozen.init(params), params, selection=selection)
    np.testing.assert_array_equal(actual["in"]["w"][mask], expected["in"]["w"][mask])
    assert not actual["in"]["w"][~mask].any()
    np.testing.assert_array_equal(actual["head"]["w"], expected["head"]["w"])


@pytest.mark.parametrize("name", ["chain", "sgd"])
def test_packed_rows_move_as_in_the_shape_of_the_parameters(pruned, params, name):
    """Three steps with other columns each; the update of a packed step reads K of D rows."""
    tx = optax.sgd(0.1, momentum=0.9, nesterov=True) if name == "sgd" else OPTIMIZERS[name]
    ended = []
    for packed in (False, True):
        train = train_step(pruned, loss, tx, packed=packed)
        state, step = train.init(params), jax.jit(train.step)
        for number in range(3):
            state, _ = step(state, jax.random.key(number), numbers(number, 4, D))
        ended.append(state)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-7)
    jax.tree.map(close, *ended)
    # No sum, product or root of an array as large as a pruned parameter.
    arithmetic = {"add", "sub", "mul", "div", "sqrt", "integer_pow"}
    given = (ended[1], jax.random.key(0), numbers(0, 4, D))
    program = equations(jax.make_jaxpr(train.step)(*given).jaxpr)
    seen = [eqn for eqn in program if eqn.primitive.name in arithmetic]
    assert seen
    assert not [e for e in seen if e.outvars[0].aval.shape in ((D, D), (2, D, D))]


def test_packed_gradients_are_refused_by_name(pruned, params):
    selection, tx = selection_of(pruned), freeze_unselected(DECAYED, pruned)
    packed = pruned.gather(params, selection)
    with pytest.raises(ValueError, match=r"in/w has shape \(16, 64\): .*pruned.dense"):
        tx.update(packed, tx.init(params), params, selection=selection)


def test_accumulation_equals_the_whole_batch(pruned, params):
    x = numbers(0, 4, D)
    ends = []
    for accumulate in (1, 2):
        train = train_step(pruned, loss, optax.sgd(0.1), accumulate=accumulate)
        state, value = jax.jit(train.step)(train.init(params), jax.random.key(0), x)
        ends.append((state, value))
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert ends[0][0].step == 1
    assert np.any(ends[0][0].pruning["in/w"]["probs"] != 0.25)
    with pytest.raises(ValueError, match="accumulate = 3: must divide the leading axis"):
        train_step(pruned, loss, optax.sgd(0.1), accumulate=3).step(
            ends[0][0], jax.random.key(0), x
        )
    with pytest.raises(ValueError, match="accumulate = 0: must be at least 1"):
        train_step(pruned, loss, optax.sgd(0.1), accumulate=0)


def test_trains_an_nnx_module_and_returns_by_orbax(tmp_path):
    """Loss falls, counts of dropout move, and the whole state comes back from a checkpoint."""
    import orbax.checkpoint as ocp

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Linear(D, D, rngs=rngs), nnx.Linear(D, 8, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

        def __call__(self, x):
            return self.two(self.dropout(jnp.tanh(self.one(x))))

    module, x = Net(nnx.Rngs(0)), numbers(0, 4, D)
    pruned = prune(module, x, keep=0.25)
    train = train_step(pruned, lambda m, x: jnp.mean(m(x) ** 2), optax.adamw(1e-2))
    state, step = train.init(module), jax.jit(train.step)
    values = []
    for i in range(5):
        if i == 3:
            half = state
        state, value = step(state, jax.random.key(i), x)
        values.append(float(value))
    assert values[-1] < values[0]
    count = nnx.to_pure_dict(state.extra[1])["dropout"]["rngs"]["count"]
    assert count == 5
    # The rest again, from what a checkpoint of all of it gives back.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", half)
        checkpointer.wait_until_finished()
        again = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: half))
    for i in (3, 4):
        again, value = step(again, jax.random.key(i), x)
        assert value == values[i]
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_nnx_optimizer():
    """The usual loop of NNX, with the gradient of `value_and_grad` unpacked."""
    module, x = nnx.Linear(D, 8, rngs=nnx.Rngs(0)), numbers(0, 4, D)
    pruned = prune(module, x, keep=0.25)
    selection = selection_of(pruned)
    before = np.asarray(module.kernel[...])
    optimizer = nnx.Optimizer(module, freeze_unselected(DECAYED, pruned), wrt=nnx.Param)
    gradient = pruned.value_and_grad(lambda module, x: loss_of(lambda m, x: m(x))(module, x))

    @nnx.jit
    def step(module, optimizer, x):
        value, grads = gradient(module, selection, x)
        optimizer.update(module, pruned.dense(grads, selection), selection=selection)
        return value

    step(module, optimizer, x)
    changed = np.any(np.asarray(module.kernel[...]) != before, axis=1)
    np.testing.assert_array_equal(changed, np.asarray(pruned.masks(selection)["kernel"])[:, 0])
