"""The train step: what it changes, what it leaves alone, and that it is one compiled program."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import CLASSES, batch, config, param_shapes, random_params
from measures import equations

from pbr_jax.configs.common import Keep, Optimizer, Pruning
from pbr_jax.memory.use import tree_bytes
from pbr_jax.methods import OF_HALF_BLOCKS, resolve
from pbr_jax.plans import SITES
from pbr_jax.training import from_config
from pbr_jax.training.step import make_eval_step, make_train_step

ADAMW = Optimizer(name="adamw", learning_rate=0.01, schedule="constant", weight_decay=0.3)


def start(settings, params=None):
    """The parts and the first state of a run; random parameters have no zeros."""
    parts = from_config.build(settings)
    params = random_params(parts.model.module) if params is None else params
    return parts, from_config.new_state(settings, parts, params)


def compiled(settings):
    parts, state = start(settings)
    return jax.jit(parts.train_step), state


def same_bits(a, b):
    def bits(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    return jax.tree.map(bits, a) == jax.tree.map(bits, b)


@pytest.fixture(scope="module")
def pruned():
    """A step with columns and JointSPAR under SGD with momentum, and its first state."""
    return compiled(config("prebackrazor/js50"))


# The others are exhaustive: most tests below take a step of one of them.
ALWAYS = ("full", "prebackrazor", "lean")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ALWAYS else pytest.mark.exhaustive) for n in OF_HALF_BLOCKS],
)
def test_every_method_learns(name):
    step, state = compiled(config(name))
    losses = []
    for _ in range(25):
        state, metrics = step(state, batch())
        losses.append(float(metrics.loss))
        assert bool(metrics.finite)
    assert int(state.step) == 25
    assert losses[-1] < 0.7 * losses[0]
    # Never compiled again; what a program with spaces of memory gives is committed to its device,
    # as the first state is not.
    assert step._cache_size() == 1 + resolve(name).plan.offload


def test_it_learns_with_half_of_the_tensors_at_a_time(pruned):
    step, state = pruned
    losses = []
    for _ in range(40):  # two draws of tensors
        state, metrics = step(state, batch())
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.7 * losses[0]
    assert step._cache_size() == 1


def test_metrics_are_those_of_the_batch(pruned):
    step, state = pruned
    _, metrics = step(state, batch())
    parts = from_config.build(config("prebackrazor/js50"))
    images = jnp.asarray(batch()["image"])
    logits = jax.jit(parts.model.module.apply)({"params": state.params}, images)
    labels = batch()["label"]
    log_probs = jax.nn.log_softmax(logits)
    loss = -np.mean(np.asarray(log_probs)[np.arange(8), labels])
    assert float(metrics.loss) == pytest.approx(loss, rel=1e-5)
    assert float(metrics.figures["accuracy"]) == np.mean(np.argmax(logits, axis=1) == labels)


def test_the_same_seed_gives_the_same_bits(pruned):
    def run(seed):
        step, _ = pruned
        _, state = start(config("prebackrazor/js50", seed=seed))
        for i in range(3):
            state, metrics = step(state, batch(seed=i))
        return state, metrics

    assert same_bits(run(0), run(0))
    assert not same_bits(run(0)[0].params, run(1)[0].params)


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(pruned):
    step, state = pruned
    state, _ = step(state, batch())
    broken = batch()
    broken["image"][0, 0, 0, 0] = np.nan
    new, metrics = step(state, broken)
    assert not bool(metrics.finite)
    assert int(new.step) == int(state.step) + 1
    assert same_bits(new._replace(step=state.step), state)
    after, metrics = step(new, batch())
    assert bool(metrics.finite)
    assert not same_bits(after.params, new.params)


def test_there_is_no_callback_to_the_host():
    for name in ("prebackrazor++/js50", "backrazor", "lean"):
        parts, state = start(config(name))
        jaxpr = jax.make_jaxpr(parts.train_step)(state, batch()).jaxpr
        names = {equation.primitive.name for equation in equations(jaxpr)}
        assert len(names) > 20
        assert not [name for name in names if "callback" in name or "debug" in name]


# --- accumulation and weighting ---


def first_update(weighting=False, **options):
    """What one step of plain SGD subtracts from the parameters, the policies and the metrics."""
    sgd = Optimizer(learning_rate=0.1, schedule="constant", clip_norm=None, **options)
    step, state = compiled(config(optimizer=sgd, pruning=Pruning(importance_weighting=weighting)))
    new, metrics = step(state, batch())
    return jax.tree.map(jnp.subtract, state.params, new.params), new.pruning, metrics


@pytest.fixture(scope="module")
def plain_update():
    return first_update()


def test_accumulated_gradients_are_those_of_the_whole_batch(plain_update):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, first_update(accumulation_steps=4), plain_update)
    assert float(optax.tree.norm(plain_update[0])) > 0.01


def test_weighted_rows_average_to_the_dense_gradient():
    """Theorem 1: unbiased at any probabilities. Unweighted rows average to p times the gradient."""
    settings = config(pruning=Pruning(importance_weighting=True))
    parts, state = start(settings)
    model = parts.model
    examples = jax.tree.map(jnp.asarray, batch())
    probs = {
        site: np.linspace(0.25, 0.75, policy.probs.shape[1]) * 8 / (policy.probs.shape[1] / 2)
        for site, policy in state.pruning.columns.items()
    }
    columns = {
        site: policy._replace(probs=jnp.asarray(np.stack([probs[site]] * 2), jnp.float32))
        for site, policy in state.pruning.columns.items()
    }
    policies = state.pruning._replace(columns=columns)

    def packed(key):
        drawn, selection = model.select(key, policies, state.step)
        trained, frozen = model.split(state.params, selection)
        grads = jax.grad(lambda t: model.loss(t, frozen, (), selection, examples, key)[0])(trained)
        unbiased = model.unbias(drawn, selection, grads)
        return grads["blocks"], unbiased["blocks"], selection

    @jax.jit
    def mean(keys):
        def rows(key):
            plain, weighted, selection = packed(key)

            def scatter(site, grads):
                size = policies.columns[site].probs.shape[1]
                zeros = jnp.zeros((2, size, grads[site]["kernel"].shape[-1]))
                put = lambda z, c, g: z.at[c].set(g)  # noqa: E731
                return jax.vmap(put)(zeros, selection.columns[site], grads[site]["kernel"])

            return {site: (scatter(site, plain), scatter(site, weighted)) for site in SITES}

        return jax.tree.map(lambda leaf: leaf.mean(0), jax.lax.map(rows, keys))

    averages = mean(jax.random.split(jax.random.key(0), 1500))
    full, key = start(config("full"))[0].model, jax.random.key(0)
    _, nothing = full.select(key, full.policies(), state.step)
    dense = jax.jit(jax.grad(lambda p: full.loss(p, {}, (), nothing, examples, key)[0]))
    expected = dense(state.params)["blocks"]
    for site, (plain, weighted) in averages.items():
        gradient = np.asarray(expected[site]["kernel"])
        norm = np.linalg.norm(gradient)
        assert np.linalg.norm(weighted - gradient) < 0.08 * norm
        shares = probs[site][None, :, None]
        assert np.linalg.norm(plain - shares * gradient) < 0.08 * norm
        assert np.linalg.norm(plain - gradient) > 0.3 * norm


def test_importance_weighting_reaches_the_update(plain_update):
    """Kept rows move 1 / p = 2 times as far in the first step; dense tensors as far as before."""
    plain, weighted = plain_update[0], first_update(weighting=True)[0]
    for site in ("qkv", "proj", "fc1"):  # 8 of 16 columns
        actual, once = (tree["blocks"][site]["kernel"] for tree in (weighted, plain))
        assert np.any(once)
        np.testing.assert_allclose(actual, 2 * once, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(weighted["head"]["kernel"], plain["head"]["kernel"], rtol=1e-4)


def test_a_rate_for_keep_moves_all_farther(plain_update):
    """Three sites keep a half and one keeps a quarter of the columns: 0.4375 in the mean."""
    plain, faster = plain_update[0], first_update(rate_for_keep=0.5)[0]
    expected = jax.tree.map(lambda moved: moved / math.sqrt(0.4375), plain)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, faster, expected)


def test_kernels_of_a_site_may_have_a_rate_of_their_own(plain_update):
    sgd = Optimizer(learning_rate=0.1, schedule="constant", clip_norm=None)
    parts, state = start(config(optimizer=sgd))
    factors = {"blocks/fc1/kernel": 0.5, "blocks/qkv/kernel": 0.0}
    step = make_train_step(
        *(parts.model, parts.mover),
        rates=functools.partial(
            jax.tree_util.tree_map_with_path,
            lambda path, _: factors.get(
                jax.tree_util.keystr(path, simple=True, separator="/"), 1.0
            ),
        ),
    )
    new = jax.jit(step)(state, batch())[0].params
    moved = jax.tree.map(jnp.subtract, state.params, new)
    for site in SITES:
        factor = factors.get(f"blocks/{site}/kernel", 1.0)
        ours, plain = (tree["blocks"][site] for tree in (moved, plain_update[0]))
        assert np.any(plain["kernel"])
        np.testing.assert_allclose(ours["kernel"], factor * plain["kernel"], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(ours["bias"], plain["bias"], rtol=1e-3, atol=1e-6)


# --- what stays as it is ---


@pytest.fixture(scope="module")
def adamw():
    """The step of AdamW with decay and JointSPAR, its state donated; `proj` is trained dense."""
    pruning = Pruning(keep=Keep(proj=1.0))
    settings = config("prebackrazor/js50", optimizer=ADAMW, pruning=pruning)
    parts, state = start(settings)
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        step = jax.jit(parts.train_step, donate_argnums=0)
        return step.lower(state, from_config.batch_specs(settings)).compile(), state


@pytest.fixture(scope="module")
def adamw_run(adamw):
    """First state and the states after steps 1-3, in which one draw of tensors holds."""
    step, state = adamw
    states = [state]
    for seed in range(3):
        states.append(step(jax.tree.map(jnp.copy, states[-1]), batch(seed=seed))[0])
    return states


def test_the_state_is_written_over_the_old_one(adamw):
    step, state = adamw
    aliased = step.memory_analysis().alias_size_in_bytes
    assert 0.98 * tree_bytes(state) <= aliased <= tree_bytes(state)


def moments(state, name):
    (adam,) = (s for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s))
    return getattr(adam, name)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_frozen_tensors_keep_their_bits_and_moments(adamw_run):
    first, last = adamw_run[0], adamw_run[-1]
    for site in SITES:
        for name in ("kernel", "bias"):
            active = last.pruning.tensors[site][name].active.tolist()
            assert len(active) == 1
            for block in range(2):
                trees = (last.params, first.params)
                new, old = (tree["blocks"][site][name][block] for tree in trees)
                moved = [moments(last, m)["blocks"][site][name][block] for m in ("mu", "nu")]
                assert np.any(new != old) == (block in active)
                assert all(np.any(m) == (block in active) for m in moved)


def test_unselected_rows_keep_their_bits_in_every_step(adamw_run):
    for before, after in itertools.pairwise(adamw_run):
        assert set(before.pruning.columns) == set(SITES) - {"proj"}
        for site in before.pruning.columns:
            counts = (s.pruning.columns[site].counts for s in (after, before))
            chosen = np.subtract(*map(np.asarray, counts)).astype(bool)  # [L, D]
            pairs = [
                (tree(after)["blocks"][site]["kernel"], tree(before)["blocks"][site]["kernel"])
                for tree in (
                    lambda s: s.params,
                    lambda s: moments(s, "mu"),
                    lambda s: moments(s, "nu"),
                )
            ]
            for new, old in pairs:
                np.testing.assert_array_equal(np.any(new != old, axis=-1), chosen)
            assert chosen.sum() == 8  # of one active block


def test_every_step_draws_its_own_columns(adamw_run):
    counts = [np.asarray(state.pruning.columns["fc2"].counts) for state in adamw_run]
    draws = np.diff(counts, axis=0)
    assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[1], draws[2])


def test_norms_embedding_and_head_always_train(adamw_run):
    first, last = adamw_run[0].params, adamw_run[-1].params
    for name in ("embedding", "cls", "pos_embedding", "norm", "head"):
        assert not same_bits(first[name], last[name])
    for name in ("norm1", "norm2"):
        assert np.all(first["blocks"][name]["scale"] != last["blocks"][name]["scale"])


def test_columns_stay_for_an_interval():
    """Rows that move are drawn anew every three steps, and not in between."""
    plain = Optimizer(learning_rate=0.05, momentum=0.0, schedule="constant")
    settings = config(optimizer=plain, pruning=Pruning(policy="uniform", interval=3))
    step, state = compiled(settings)
    moved = []
    for _ in range(6):
        old = np.asarray(state.params["blocks"]["fc2"]["kernel"])
        state, _ = step(state, batch())
        moved.append(np.any(old != state.params["blocks"]["fc2"]["kernel"], axis=-1))
    assert all(np.array_equal(moved[0], other) for other in moved[1:3])
    assert all(np.array_equal(moved[3], other) for other in moved[4:])
    assert not np.array_equal(moved[0], moved[3])


# --- evaluation ---


def test_evaluation_counts_only_what_the_mask_allows():
    parts, state = start(config("full"))
    evaluate = jax.jit(make_eval_step(parts.model, parts.task))
    examples = batch(4)
    padded = {name: np.concatenate([a, a]) for name, a in examples.items()}
    padded["image"][4:] = 7.0
    sums = evaluate(state.variables, padded | {"mask": np.arange(8) < 4})
    images = jnp.asarray(examples["image"])
    logits = np.asarray(jax.jit(parts.model.module.apply)({"params": state.params}, images))
    picked = jax.nn.log_softmax(logits)[np.arange(4), examples["label"]]
    assert float(sums["loss"]) == pytest.approx(float(-picked.sum()), rel=1e-5)
    assert int(sums["accuracy"]) == np.sum(logits.argmax(1) == examples["label"])
    assert logits.shape == (4, CLASSES)


def test_parameters_of_all_methods_are_the_same():
    expected = param_shapes(from_config.build(config("full")).model.module)
    for name in OF_HALF_BLOCKS:
        assert param_shapes(from_config.build(config(name)).model.module) == expected
