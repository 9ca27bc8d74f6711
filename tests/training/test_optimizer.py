"""Row-sparse updates: equal to the dense optimizer with what was not selected put back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pbr_jax.ops import dispatch
from pbr_jax.training.optimizer import (
    ALL,
    Optimizer,
    Rows,
    learning_rate,
    make_optimizer,
    update_rows,
)

BLOCKS, COLUMNS, FEATURES, KEPT = 3, 6, 2, 4
SHAPES = {
    "fc": {"kernel": (BLOCKS, COLUMNS, FEATURES), "bias": (BLOCKS, FEATURES)},
    "norm": {"scale": (BLOCKS, 4)},
    "head": {"kernel": (4, 5)},
}
OPTIMIZERS = {
    "sgd": {"name": "sgd", "momentum": 0.9, "clip_norm": None},
    "sgd without momentum": {"name": "sgd", "momentum": 0.0, "clip_norm": None},
    "sgd, decay, clipped": {"name": "sgd", "weight_decay": 0.3, "clip_norm": 0.5},
    "adamw": {"name": "adamw", "weight_decay": 0.3, "clip_norm": None},
    "adamw, clipped": {"name": "adamw", "weight_decay": 0.3, "clip_norm": 0.5},
}


@pytest.fixture(autouse=True)
def promotion():
    """Optax's Adam mixes its integer count with floats, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def optimizer(name="adamw", **options):
    return make_optimizer(name, lambda count: jnp.asarray(0.1), **options)


def random_tree(generator):
    def draw(shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def draw_step(generator):
    """Columns per block with unused slots, active blocks of the bias, dense gradients."""
    columns = np.stack([generator.permutation(COLUMNS)[:KEPT] for _ in range(BLOCKS)])
    columns[generator.random(columns.shape) < 0.3] = COLUMNS
    active = np.sort(generator.permutation(BLOCKS)[:2])
    kept = np.zeros((BLOCKS, COLUMNS), bool)
    for block, chosen in enumerate(columns):
        kept[block, chosen[chosen < COLUMNS]] = True
    masks = {
        (BLOCKS, COLUMNS, FEATURES): kept[..., None],
        (BLOCKS, FEATURES): np.isin(np.arange(BLOCKS), active)[:, None],
    }
    grads = random_tree(generator)
    grads = jax.tree.map(lambda g: g * masks.get(g.shape, np.float32(1)), grads)
    return jnp.asarray(columns), jnp.asarray(active), masks, grads


def pack(columns, active, grads):
    """Rows and packed gradients, as the train step makes them."""
    flat = jnp.arange(BLOCKS)[:, None] * COLUMNS + columns
    flat = jnp.where(columns < COLUMNS, flat, BLOCKS * COLUMNS)
    rows = jax.tree.map(lambda _: ALL, grads)
    rows["fc"] = {"kernel": Rows(flat), "bias": Rows(active)}
    kernel = grads["fc"]["kernel"].reshape(-1, FEATURES)
    kernel = kernel.at[flat].get(mode="fill", fill_value=0)
    return rows, grads | {"fc": {"kernel": kernel, "bias": grads["fc"]["bias"][active]}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_dense_optimizer_with_rows_put_back(name, implementation):
    tx = optimizer(**OPTIMIZERS[name])
    generator = np.random.default_rng(0)
    params = random_tree(generator)
    actual = expected = (params, tx.init(params))

    @jax.jit
    def sparse(params, state, columns, active, grads):
        rows, packed = pack(columns, active, grads)
        return update_rows(tx, packed, state, params, rows, jnp.asarray(True), implementation)

    @jax.jit
    def dense(params, state, grads):
        updates, state = tx.tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(4):
        columns, active, masks, grads = draw_step(generator)
        *actual, norms = sparse(*actual, columns, active, grads)
        check_norms(norms, pack(columns, active, grads))
        moved = dense(*expected, grads)
        expected = jax.tree.map(
            lambda new, old, masks=masks: jnp.where(masks.get(new.shape, True), new, old),
            moved,
            expected,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            tuple(actual),
            expected,
        )
        untouched = ~np.broadcast_to(
            masks[BLOCKS, COLUMNS, FEATURES], actual[0]["fc"]["kernel"].shape
        )
        assert untouched.any()


def check_norms(norms, packed):
    """Squared norms of the slices that have rows, and of these alone."""
    rows, grads = packed
    assert norms["norm"] == {"scale": None} and norms["head"] == {"kernel": None}
    for name in rows["fc"]:
        squares = np.square(np.asarray(grads["fc"][name], np.float64))
        expected = squares.sum(axis=tuple(range(rows["fc"][name].slots.ndim, squares.ndim)))
        np.testing.assert_allclose(norms["fc"][name], expected, rtol=1e-5)


def test_unselected_rows_keep_their_bits_under_weight_decay(implementation):
    tx = optimizer(weight_decay=0.3)
    params = random_tree(np.random.default_rng(0))
    state = tx.init(params)
    columns, active, masks, grads = draw_step(np.random.default_rng(1))
    rows, packed = pack(columns, active, grads)
    new = update_rows(tx, packed, state, params, rows, jnp.asarray(True), implementation).params
    moved = np.asarray(new["fc"]["kernel"] != params["fc"]["kernel"])
    kept = np.broadcast_to(masks[BLOCKS, COLUMNS, FEATURES], moved.shape)
    np.testing.assert_array_equal(moved, kept)


@pytest.mark.parametrize("name", ["sgd, decay, clipped", "adamw, clipped"])
def test_factors_on_the_rate_multiply_what_is_added(name, implementation):
    tx = optimizer(**OPTIMIZERS[name])
    generator = np.random.default_rng(0)
    params = random_tree(generator)
    state = tx.init(params)
    columns, active, _, grads = draw_step(generator)
    rows, packed = pack(columns, active, grads)
    rates = jax.tree.map(lambda _: 1.0, params)
    rates["fc"]["kernel"], rates["head"]["kernel"] = 3.0, 0.5
    args = tx, packed, state, params, rows, jnp.asarray(True), implementation
    plain, scaled = update_rows(*args), update_rows(*args, rates)
    jax.tree.map(
        lambda old, once, new, rate: np.testing.assert_allclose(
            new - old, rate * (once - old), rtol=1e-4, atol=1e-6
        ),
        *(params, plain.params, scaled.params, rates),
    )
    jax.tree.map(np.testing.assert_array_equal, plain.opt_state, scaled.opt_state)


def test_a_step_that_is_not_applied_changes_nothing(implementation):
    tx = optimizer(weight_decay=0.3)
    params = random_tree(np.random.default_rng(0))
    state = tx.init(params)
    columns, active, _, grads = draw_step(np.random.default_rng(1))
    grads["head"]["kernel"] = grads["head"]["kernel"].at[0, 0].set(jnp.nan)
    rows, packed = pack(columns, active, grads)
    new = update_rows(tx, packed, state, params, rows, jnp.asarray(False), implementation)
    jax.tree.map(np.testing.assert_array_equal, tuple(new[:2]), (params, state))


def test_slices_of_several_rows_and_none_at_all(implementation):
    """JointSPAR freezes whole blocks of a kernel that is trained densely, or all of them."""
    tx = optimizer(weight_decay=0.3)
    params = random_tree(np.random.default_rng(0))
    _, active, _, grads = draw_step(np.random.default_rng(1))
    rows = jax.tree.map(lambda _: ALL, params)
    rows["fc"] = {"kernel": Rows(active), "bias": Rows(active[:0])}
    packed = grads | {"fc": {n: grads["fc"][n][rows["fc"][n].slots] for n in rows["fc"]}}
    new = update_rows(
        tx, packed, tx.init(params), params, rows, jnp.asarray(True), implementation
    ).params
    moved = np.any(np.asarray(new["fc"]["kernel"] != params["fc"]["kernel"]), axis=(1, 2))
    np.testing.assert_array_equal(moved, np.isin(np.arange(BLOCKS), active))
    np.testing.assert_array_equal(new["fc"]["bias"], params["fc"]["bias"])


def test_the_kernel_is_refused_for_an_optimizer_that_it_does_not_know():
    params = random_tree(np.random.default_rng(0))
    columns, active, _, grads = draw_step(np.random.default_rng(1))
    rows, packed = pack(columns, active, grads)
    tx = Optimizer(optax.sgd(0.1))
    with (
        dispatch.interpreted(),
        pytest.raises(ValueError, match="knows the optimizers of make_opt"),
    ):
        update_rows(tx, packed, tx.init(params), params, rows, jnp.asarray(True), "triton")


def test_rows_of_another_optimizer_state_leaf_stay_whole(implementation):
    """The step counter of Adam is no parameter: it advances whatever is selected."""
    tx = optimizer()
    params = random_tree(np.random.default_rng(0))
    columns, active, _, grads = draw_step(np.random.default_rng(1))
    rows, packed = pack(jnp.full_like(columns, COLUMNS), active[:0], grads)
    args = tx, packed, tx.init(params), params, rows, jnp.asarray(True)
    state = update_rows(*args, implementation).opt_state
    counts = optax.tree.get_all_with_path(state, "count")
    assert counts and all(int(count) == 1 for _, count in counts)


def test_weight_decay_acts_on_kernels_only():
    tx = optimizer(weight_decay=0.5)
    params = jax.tree.map(jnp.ones_like, random_tree(np.random.default_rng(0)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["fc"]["kernel"], -0.05)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.05)
    assert not np.any(updates["fc"]["bias"]) and not np.any(updates["norm"]["scale"])


def test_clipping_bounds_the_global_norm():
    tx = make_optimizer("sgd", lambda count: jnp.asarray(1.0), momentum=0.0, clip_norm=0.5)
    params = random_tree(np.random.default_rng(0))
    updates, _ = tx.tx.update(params, tx.init(params), params)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-5)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match=r"optimizer.name = 'lion': must be sgd or adamw"):
        optimizer("lion")


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("cosine", 10, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("constant", 10, {0: 0.0, 5: 0.5, 10: 1.0, 55: 1.0, 100: 1.0}),
        ("linear", 10, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("linear", 0, {0: 1.0, 25: 0.75, 100: 0.0}),
        ("cosine", 0, {0: 1.0, 50: 0.5, 100: 0.0}),
        ("constant", 0, {0: 1.0, 50: 1.0}),
    ],
)
def test_learning_rates(schedule, warmup, expected):
    rate = learning_rate(1.0, 100, warmup, schedule)
    for step, value in expected.items():
        assert float(rate(jnp.asarray(step, jnp.int32))) == pytest.approx(value, abs=1e-6)
