"""A user's own module in the trainer: packed gradients, what moves, what else it changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import batch, config, token_batch

from pbr_jax.configs.common import Data, Keep, Model, Optimizer, Pruning
from pbr_jax.memory.flops import matrix_flops
from pbr_jax.models.own import make_own
from pbr_jax.training import from_config

IMAGES = Model(image_size=8, channels=1, num_classes=4, family="own_models:mlp")
TEXTS = dataclasses.replace(IMAGES, family="own_models:bag", vocab_size=20, max_length=8)
SGD = Optimizer(learning_rate=0.1, momentum=0.0, schedule="constant", clip_norm=None)
ADAMW = Optimizer(name="adamw", learning_rate=0.01, schedule="constant", weight_decay=0.3)


def settings(name="mlp", method="prebackrazor", **changes):
    text = name == "bag"
    model = dataclasses.replace(TEXTS if text else IMAGES, family=f"own_models:{name}")
    data = Data(name="jsonl", path="no", tokenizer="no") if text else Data(name="npz", path="no")
    return config(method, **{"model": model, "data": data, "optimizer": SGD} | changes)


def examples(name, seed=0):
    if name == "bag":
        return token_batch(seed=seed)
    small = batch(seed=seed)
    return small | {"image": np.tile(small["image"], (1, 2, 2, 1))}


def start(*args, **changes):
    config = settings(*args, **changes)
    parts = from_config.build(config)
    params, extra, _ = parts.model.begin(0, None)
    return parts, from_config.new_state(config, parts, params, extra)


@functools.cache
def stepped(name):
    """One step of SGD: parts, states before and after, and the packed gradient's selection."""
    parts, state = start(name)
    after, metrics = jax.jit(parts.train_step)(state, examples(name))
    assert bool(metrics.finite)
    key, _ = jax.random.split(jax.random.fold_in(state.key, 0))
    return parts, state, after, parts.model.select(key, state.pruning, state.step)[1]


def dense_gradient(name, state):
    full = from_config.build(settings(name, "full")).model
    _, key = jax.random.split(jax.random.fold_in(state.key, 0))
    return jax.jit(jax.grad(full.loss, has_aux=True))(
        state.params, {}, state.extra, {}, examples(name), key
    )


PRUNED = {
    "mlp": {"hidden_0/kernel": 0, "hidden_1/kernel": 0},
    "mixer": {"layers/0/kernel": 0, "layers/1/kernel": 0},
    "scanned": {"blocks/mlp/kernel": 1},  # behind the axis of the scan
    "bag": {"kernel": 1},  # its columns lie along the second axis
}


def mask_of(columns, leaf, axis):
    """Which elements of a parameter lie in the selected rows."""
    mask = np.zeros(leaf.shape, bool)
    if columns.ndim == 2:
        for row, own in zip(mask, columns, strict=True):
            row[own] = True
    elif axis:
        mask[:, columns] = True
    else:
        mask[columns] = True
    return mask


@pytest.mark.parametrize("name", PRUNED)
def test_selected_rows_move_by_the_dense_gradient_and_no_others(name):
    _, before, after, selection = stepped(name)
    gradient, (_, extra) = dense_gradient(name, before)
    assert {*selection} == {*PRUNED[name]}
    for path, leaf in flat(before.params).items():
        moved = np.asarray(flat(after.params)[path] - leaf)
        expected = -0.1 * np.asarray(flat(gradient)[path])
        if path in selection:
            columns = np.asarray(selection[path])
            assert columns.shape[-1] == 8
            mask = mask_of(columns, leaf, PRUNED[name][path])
            assert not moved[~mask].any()
            moved, expected = moved[mask], expected[mask]
        np.testing.assert_allclose(moved, expected, rtol=2e-4, atol=1e-7)
        assert moved.any()
    # Running statistics are those of the unpruned model, bit for bit.
    jax.tree.map(np.testing.assert_array_equal, after.extra, extra)
    if name in ("mlp", "mixer"):
        assert any(map(np.any, jax.tree.leaves(jax.tree.map(jnp.subtract, extra, before.extra))))


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("name", PRUNED)
def test_under_adamw_the_other_rows_and_their_moments_stand_still(name):
    parts, state = start(name, optimizer=ADAMW)
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        after, _ = jax.jit(parts.train_step)(state, examples(name))
    _, _, _, selection = stepped(name)
    for path, axis in PRUNED[name].items():
        leaf, moved = (flat(tree.params)[path] for tree in (state, after))
        mask = mask_of(np.asarray(selection[path]), leaf, axis)
        np.testing.assert_array_equal(np.asarray(moved != leaf), mask)
        for moment in ("mu", "nu"):
            (own,) = [v for k, v in flat(after.opt_state).items() if k.endswith(f"{moment}/{path}")]
            assert not np.asarray(own)[~mask].any() and np.asarray(own).any()


def test_gradients_are_packed_and_policies_learn():
    parts, before, after, selection = stepped("mlp")
    trained, frozen = parts.model.split(before.params, selection)
    assert trained["hidden_1"]["kernel"].shape == (8, 64)
    assert frozen["hidden_1/kernel"].shape == (64, 64)
    # Layers whose names differ in a number are blocks of one site.
    assert {*after.pruning.columns} == {"hidden_*/kernel"}
    state = after.pruning.columns["hidden_*/kernel"]
    assert state.counts.shape == (2, 64) and int(state.counts.sum()) == 16
    drawn = [np.flatnonzero(row) for row in np.asarray(state.counts)]
    for row, path in zip(drawn, ("hidden_0/kernel", "hidden_1/kernel"), strict=True):
        np.testing.assert_array_equal(row, selection[path])
    assert np.ptp(state.probs) > 0


def test_norms_from_the_optimizer_teach_what_gradients_do():
    parts, before, _, selection = stepped("bag")
    model = parts.model
    trained, frozen = model.split(before.params, selection)
    gradient = jax.grad(model.loss, has_aux=True)
    grads, _ = gradient(
        trained, frozen, before.extra, selection, examples("bag"), jax.random.key(1)
    )
    slices = model.slices(selection, before.params)
    norms = jax.tree.map(
        lambda s, g: s.norms(g), slices, grads, is_leaf=lambda leaf: hasattr(leaf, "gather")
    )
    learned = [model.learn(before.pruning, selection, grads, 0, n) for n in (None, norms)]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, *learned)
    unbiased = model.unbias(before.pruning, selection, grads)
    np.testing.assert_allclose(unbiased["kernel"], 8 * grads["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(unbiased["table"], grads["table"])


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Of a model without running statistics, which see every part by itself."""
    parts, state = start("bag", optimizer=dataclasses.replace(SGD, accumulation_steps=4))
    after, _ = jax.jit(parts.train_step)(state, examples("bag"))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, after.params, stepped("bag")[2].params)


def test_without_pruning_nothing_is_learned():
    parts, state = start("scanned", "full")
    after, _ = jax.jit(parts.train_step)(state, examples("scanned"))
    assert after.pruning == state.pruning == (({}, {}))


def test_keep_goes_by_patterns_of_paths():
    pruning = Pruning(keep=Keep(0.5, hidden_0=0.125))
    parts, state = start("mlp", pruning=pruning)
    _, selection = parts.model.select(state.key, state.pruning, state.step)
    assert {path: len(own) for path, own in selection.items()} == {
        "hidden_0/kernel": 8,
        "hidden_1/kernel": 32,
    }
    # Blocks that keep different numbers are sites of their own.
    assert {*state.pruning.columns} == {"hidden_0/kernel", "hidden_1/kernel"}


def test_a_seed_is_a_seed():
    model = make_own("own_models:mixer", IMAGES)
    first, again, other = (model.begin(seed, None)[0] for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["head"]["kernel"] != other["head"]["kernel"]).any()


@pytest.mark.parametrize("name", ["ready_mixer", "pretrained_mlp"])
def test_what_a_run_donates_is_there_for_the_next(name):
    model = make_own(f"own_models:{name}", IMAGES)
    specs = from_config.build(settings(name, "full")).model.input_specs(1)
    for _ in range(2):
        params, extra, _ = model.begin(0, specs)
        jax.tree.map(lambda leaf: leaf.delete(), (params, extra))


def test_pretrained_parameters_are_taken_and_the_rest_is_new():
    parts, _ = start("pretrained_mlp")
    params, extra, notes = parts.model.begin(3, None)
    assert notes == [
        "pruned: hidden_*/kernel keeps 8 of 64 columns",
        "not pruned: head/kernel (named by exclude)",
        "not among the weights, so new: head",
    ]
    other, _, _ = parts.model.begin(4, None)
    np.testing.assert_array_equal(params["hidden_0"]["kernel"], other["hidden_0"]["kernel"])
    assert (params["head"]["kernel"] != other["head"]["kernel"]).any()
    assert extra["batch_stats"]["BatchNorm_0"]["mean"].shape == (64,)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing", "returned Mlp; must return a Linen or NNX module and what it reads"),
        ("of_another_array", "the model reads pixels of a batch, which has image"),
        ("of_another_shape", r"outputs have shape \(1, 5\): must be \[B, 4\]"),
    ],
)
def test_what_a_function_returns_is_checked(name, told):
    with pytest.raises(ValueError, match=told):
        parts, state = start(name, "full")
        jax.eval_shape(parts.train_step, state, jax.tree.map(lambda a: a[:1], examples("mlp")))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "lean"}, "method = lean: own_models:mlp can be trained by full, lora, static"),
        ({"method": "remat+offload"}, r"set method=prebackrazor; .* nn.remat\(Block, policy="),
        ({"method": "prebackrazor/js50"}, "method = prebackrazor/js50: is for the blocks"),
        (
            {"optimizer": Optimizer(rate_for_keep=0.5)},
            "optimizer.rate_for_keep = 0.5: is for the blocks",
        ),
        ({"pruning": Pruning(sampler="bernoulli")}, "pruning.sampler = bernoulli: is for"),
    ],
)
def test_what_is_for_blocks_of_ours_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        from_config.build(settings(**changes))


def test_operations_are_counted_in_scans_and_convolutions():
    w, x = jnp.ones((4, 4)), jnp.ones((2, 4))

    def scanned(x):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.dot)(x, w), None), x, None, 3)[0]

    assert matrix_flops(scanned, x) == 3 * 2 * 2 * 4 * 4
    image, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert matrix_flops(convolve, image, kernel) == 2 * 8 * 8 * 5 * 27
    branches = [lambda x: x @ w, lambda x: x @ w @ w]
    assert matrix_flops(lambda x: jax.lax.cond(True, *branches, x), x) == 2 * 64
