"""Frozen rows: equal to the dense optimizer with what was not selected put back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from pbr_jax import freeze_unselected, layers

OPTIMIZERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.3),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.9),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1)),
}
SHAPES = {
    "dense": {"kernel": (6, 3), "bias": (3,)},
    "heads": {"out": {"kernel": (2, 4, 3)}},  # contracts two axes
    "plain": {"kernel": (4, 3)},  # nothing is selected of it
    "norm": {"scale": (3,)},
}
SELECTED = {"dense": (6,), "heads": {"out": (2, 4)}}


@pytest.fixture(autouse=True)
def promotion():
    """Optax's Adam mixes its integer count with floats, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def arrays(shapes, generator, draw):
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jnp.asarray(draw(generator, shape)), shapes, is_leaf=is_shape)


def normal(generator, shape):
    return generator.standard_normal(shape).astype(np.float32)


def draw_step(generator):
    """Masks, their collection, and gradients that are zero where nothing is selected."""
    masks = arrays(SELECTED, generator, lambda g, shape: g.random(shape) < 0.5)
    selection = {
        "dense": {"selected": masks["dense"], "columns": jnp.zeros(2, jnp.int32)},
        "heads": {"out": {"selected": masks["heads"]["out"]}},
    }
    grads = arrays(SHAPES, generator, normal)
    grads["dense"]["kernel"] *= masks["dense"][:, None]
    grads["heads"]["out"]["kernel"] *= masks["heads"]["out"][..., None]
    return masks, selection, grads


def put_back(masks, new, old):
    """`old` in the unselected rows of every leaf that has the shape of a selected kernel."""
    by_shape = {(6, 3): masks["dense"], (2, 4, 3): masks["heads"]["out"]}

    def leaf(new, old):
        mask = by_shape.get(new.shape)
        return new if mask is None else jnp.where(mask[..., None], new, old)

    return jax.tree.map(leaf, new, old)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_dense_optimizer_with_rows_put_back(name):
    dense, frozen = OPTIMIZERS[name](), freeze_unselected(OPTIMIZERS[name]())
    generator = np.random.default_rng(0)
    params = arrays(SHAPES, generator, normal)
    expected, actual = (params, dense.init(params)), (params, frozen.init(params))

    @jax.jit
    def step(actual, expected, masks, selection, grads):
        updates, state = frozen.update(grads, actual[1], actual[0], selection=selection)
        actual = optax.apply_updates(actual[0], updates), state
        updates, state = dense.update(grads, expected[1], expected[0])
        new = optax.apply_updates(expected[0], updates), state
        return actual, put_back(masks, new, expected)

    for _ in range(4):
        actual, expected = step(actual, expected, *draw_step(generator))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), actual, expected
        )
    assert jax.tree.structure(actual) == jax.tree.structure(expected)


def test_momentum_by_hand():
    """Each row is its own optimizer, which sees only the steps that select the row."""
    tx = freeze_unselected(optax.sgd(0.5, momentum=0.8))
    params = {"kernel": jnp.ones((3, 2))}
    state = tx.init(params)
    value, velocity = np.ones((3, 2)), np.zeros((3, 2))
    generator = np.random.default_rng(1)
    for rows in ([0], [0, 2], [2], [1, 2], [0]):
        grad = normal(generator, (3, 2))
        selected = np.isin(np.arange(3), rows)
        updates, state = tx.update(
            {"kernel": jnp.asarray(grad * selected[:, None])},
            state,
            params,
            selection={"selected": jnp.asarray(selected)},
        )
        params = optax.apply_updates(params, updates)
        velocity[rows] = 0.8 * velocity[rows] + grad[rows]
        value[rows] -= 0.5 * velocity[rows]
        np.testing.assert_allclose(params["kernel"], value, rtol=1e-5)


def test_a_stock_optimizer_would_move_unselected_rows():
    params, selected = {"kernel": jnp.ones((3, 2))}, jnp.asarray([True, False, True])
    grads = {"kernel": jnp.ones((3, 2)) * selected[:, None]}
    tx = optax.adamw(0.1, weight_decay=0.3)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert np.all(updates["kernel"][1] != 0)
    frozen = freeze_unselected(tx)
    selection = {"selected": selected}
    updates, _ = frozen.update(grads, frozen.init(params), params, selection=selection)
    assert not np.any(updates["kernel"][1])
    assert np.all(updates["kernel"][0] != 0)


def test_a_selection_without_masks_is_refused():
    """A collection that stayed empty, as under nn.scan without variable_axes, froze nothing."""
    params = {"kernel": jnp.ones((3, 2))}
    frozen = freeze_unselected(optax.adam(0.1))
    with pytest.raises(ValueError, match="selection holds no mask"):
        frozen.update(params, frozen.init(params), params, selection={})


def test_trains_a_model_of_our_layers_under_jit():
    """Rows outside every draw keep their first value, others move, and one program serves all."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jax.nn.relu(layers.Dense(32)(x))
            return layers.Dense(2)(x)

    model, tx = Net(), freeze_unselected(optax.adamw(1e-2, weight_decay=0.1))
    x = jnp.asarray(normal(np.random.default_rng(0), (8, 16)))
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]

    @jax.jit
    def step(params, state, key):
        def loss(p):
            rngs = {"selection": key}
            y, drawn = model.apply({"params": p}, x, rngs=rngs, mutable=["selection"])
            return jnp.mean(jnp.square(y - 1)), drawn["selection"]

        (value, selection), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params, selection=selection)
        return optax.apply_updates(params, updates), state, value, selection

    now, state, losses, ever = params, tx.init(params), [], jnp.zeros(32, bool)
    for i in range(3):
        now, state, value, selection = step(now, state, jax.random.key(i))
        losses.append(float(value))
        ever |= selection["Dense_1"]["selected"]
    moved = np.any(now["Dense_1"]["kernel"] != params["Dense_1"]["kernel"], axis=1)
    np.testing.assert_array_equal(moved, ever)
    assert 8 < ever.sum() < 32
    assert losses[-1] < losses[0]
    assert step._cache_size() == 1


def update(params, selection):
    tx = freeze_unselected(optax.sgd(0.1))
    return tx.update(params, tx.init(params), params, selection=selection)


def test_a_mask_of_another_shape_is_refused():
    params = {"dense": {"kernel": jnp.ones((3, 2))}}
    with pytest.raises(
        ValueError, match=r"dense/kernel has a mask of shape \(2,\): must be the leading axes"
    ):
        update(params, {"dense": {"selected": jnp.ones(2, bool)}})


def test_masks_that_fit_no_kernel_are_named():
    params = {"dense": {"kernel": jnp.ones((3, 2))}, "norm": {"scale": jnp.ones(3)}}
    mask = {"selected": jnp.ones(3, bool)}
    with pytest.raises(ValueError, match="selection names norm, other/deep: params has no such"):
        update(params, {"dense": mask, "norm": mask, "other": {"deep": mask}})


def test_a_selection_must_be_given():
    params = {"kernel": jnp.ones((3, 2))}
    tx = freeze_unselected(optax.sgd(0.1))
    with pytest.raises(TypeError, match="selection"):
        tx.update(params, tx.init(params), params)
