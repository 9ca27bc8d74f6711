"""The object that `prune` returns: what it refuses, what it names, and how often it traces."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rewritten import check_against_dense, compare, loss_of, numbers, selection_of, weights

import pbr_jax
from pbr_jax import prune

D = 64
KEYS = {"layers/0/w": 0, "layers/1/w": 1}


def model(params, x):
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    return x @ params["head"]


def make_params():
    layers = [weights(i, w=(D, D), b=(D,)) for i in range(2)]
    return {"layers": layers, **weights(9, head=(D, 8))}


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture(scope="module")
def x():
    return numbers(1, 4, D)


@pytest.fixture(scope="module")
def pruned(params, x):
    return prune(model, params, x, keep=0.25)


def test_names_come_from_paths(pruned):
    assert list(pruned.groups) == ["layers/0/w", "layers/1/w"]
    assert pruned.unpruned["head"] == "named by exclude"
    assert pruned.unpruned["layers/0/b"] == "used by `add`"
    assert repr(pruned) == "<Pruned: 2 parameters in 2 groups, 3 dense>"


def test_keep_by_pattern(params, x):
    pruned = prune(model, params, x, keep={"0/w": 0.5, r"layers/\d+/w": 0.125}, exclude=None)
    assert [(s.path, s.num_kept) for s in pruned.sites] == [("layers/0/w", 32), ("layers/1/w", 8)]
    assert pruned.unpruned["head"] == "no pattern of keep names it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": {"w": 0.1, "nothing": 0.2}}, "keep names 'nothing': it matches no parameter"),
        ({"include": "nothing"}, "include names 'nothing': it matches no parameter; there are"),
        (
            {"include": ["w", "b$"]},
            "include names 'b\\$', which cannot be pruned: layers/0/b: used",
        ),
        ({"min_columns": 65}, "nothing can be pruned: .*64 columns, fewer than min_columns = 65"),
        ({"exclude": "w|head"}, "nothing can be pruned: .*named by exclude"),
        ({"keep": 0.0}, "keep = 0.0: must be in"),
        ({"include": "("}, "must be regular expressions"),
        ({"policy": "best"}, "name = 'best': must be one of"),
    ],
)
def test_refuses_settings_by_name(params, x, arguments, message):
    with pytest.raises(ValueError, match=message):
        prune(model, params, x, **arguments)


def test_refuses_two_shares_of_one_activation():
    two = lambda params, x: x @ params["q"] + x @ params["k"]  # noqa: E731
    with pytest.raises(ValueError, match=r"k: 0\.5, q: 0\.25: these read one activation"):
        prune(two, weights(0, q=(D, D), k=(D, D)), numbers(0, 2, D), keep={"q": 0.25, "k": 0.5})


def test_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="model is a int"):
        prune(3, jnp.ones(2))
    with pytest.raises(ValueError, match="needs prune"):
        prune(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "selection lacks layers/0/w, layers/1/w"),
        (lambda s: {"layers/0/w": s["layers/0/w"]}, "selection lacks layers/1/w"),
        (lambda s: s | {"other": s["layers/0/w"]}, "selection has the unknown other"),
        (lambda s: s | {"layers/0/w": s["layers/0/w"][:8]}, r"must be int32\[16\]"),
        (lambda s: s | {"layers/0/w": jnp.ones(16)}, r"float32\[16\]: must be int32"),
        (lambda s: None, "selection is a NoneType"),
    ],
)
def test_refuses_a_partial_or_foreign_selection(pruned, params, x, change, message):
    with pytest.raises(ValueError, match=message):
        pruned.value_and_grad(loss_of(model))(params, change(selection_of(pruned)), x)


def test_refuses_other_parameters(pruned, params, x):
    run = pruned.value_and_grad(loss_of(model))
    with pytest.raises(ValueError, match="it lacks layers/0/b, layers/0/w, layers/1/b and has"):
        run({"head": params["head"], "extra": x}, selection_of(pruned), x)
    with pytest.raises(ValueError, match=r"head has shape \(8,\): must be \(64, 8\)"):
        run(params | {"head": jnp.ones(8)}, selection_of(pruned), x)
    with pytest.raises(ValueError, match="head is int32, which has no gradient"):
        run(params | {"head": jnp.ones((D, 8), jnp.int32)}, selection_of(pruned), x)


def test_differentiated_without_a_selection_it_raises(pruned, params, x):
    np.testing.assert_array_equal(pruned.apply(params, x), model(params, x))
    for wrap in (lambda f: f, jax.jit, jax.checkpoint):
        with pytest.raises(ValueError, match="layers/0/w is pruned, and is differentiated without"):
            jax.grad(lambda p, wrap=wrap: wrap(pruned.apply)(p, x).sum())(params)


def test_apply_with_a_selection_under_stock_autodiff(pruned, params, x):
    """Dense gradients, zero but for the selected rows: composes with jax.value_and_grad."""
    selection = selection_of(pruned)
    loss = loss_of(lambda p, x: pruned.apply(p, x, selection=selection))
    value, grads = jax.jit(jax.value_and_grad(loss))(params, x)
    expected, dense = jax.jit(jax.value_and_grad(loss_of(model)))(params, x)
    assert value == expected
    compare(grads, pruned.masks(selection), dense)


def test_a_loss_may_use_parameters_as_it_likes(pruned, params, x):
    """A penalty, a second call and a constant copy of the model, in the loss itself."""

    def loss(params, x):
        teacher = model(jax.lax.stop_gradient(params), 2 * x)
        value = loss_of(model)(params, x) + jnp.sum(model(params, x) * teacher)
        return value + 0.1 * sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    check_against_dense(pruned, loss, params, x, tolerance=1e-5)


def test_a_loss_may_cast_parameters(pruned, params, x):
    """Autodiff also rounds the gradient to the cast's dtype; here it has more digits."""

    def loss(params, x):
        params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        return loss_of(model)(params, x.astype(jnp.bfloat16))

    grads = check_against_dense(pruned, loss, params, x, tolerance=2e-2)
    assert grads["layers"][0]["w"].dtype == jnp.float32


def test_gradients_know_their_selection_while_they_live(pruned, params, x):
    selection = selection_of(pruned)
    gradient = pruned.value_and_grad(loss_of(model))

    @jax.jit
    def both(params, selection, x):
        _, grads = gradient(params, selection, x)
        return pruned.dense(grads), grads

    dense, grads = both(params, selection, x)
    _, eager = gradient(params, selection, x)
    equal = np.testing.assert_array_equal
    jax.tree.map(equal, dense, pruned.dense(grads, selection))
    jax.tree.map(equal, pruned.dense(eager), pruned.dense(eager, selection))
    with pytest.raises(ValueError, match=r"pruned\.dense\(grads, selection\)"):
        pruned.dense(grads)
    assert len(pruned._known._by_array) == len(jax.tree.leaves(params))
    del eager
    assert not pruned._known._by_array


def test_has_aux_keywords_and_integers(pruned, params, x):
    def loss(params, x, *, scale, labels, mode):
        out = model(params, x)
        assert mode == "train"
        return scale * jnp.sum(out * labels[:, None]), {"logits": out}

    labels = jnp.arange(4)
    with jax.numpy_dtype_promotion("standard"):
        run = pruned.value_and_grad(loss, has_aux=True)
        (value, aux), grads = run(
            params, selection_of(pruned), x, scale=2.0, labels=labels, mode="train"
        )
        expected = loss(params, x, scale=2.0, labels=labels, mode="train")
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(aux["logits"], expected[1]["logits"], rtol=1e-6)
    assert grads["layers"][0]["w"].shape == (16, D)


def test_traces_once_for_equal_shapes(pruned, params, x):
    traced = []

    def loss(params, x):
        traced.append(x.shape)
        return loss_of(model)(params, x)

    gradient, selection = pruned.value_and_grad(loss), selection_of(pruned)
    for batch in (x, 2 * x, x[:2], x[:2]):
        jax.eval_shape(gradient, params, selection, batch)
    assert traced == [(4, D), (2, D)]


def test_a_loss_that_closes_over_a_tracer_is_traced_anew(pruned, params, x):
    """Its equations hold values of the outer trace, which must not outlive it."""
    selection, shared = selection_of(pruned), {}
    gradient = pruned.value_and_grad(lambda params: loss_of(model)(params, shared["x"]))

    def run(params, x):
        shared["x"] = x
        return gradient(params, selection)[0]

    values = [jax.jit(lambda p, x, i=i: run(p, x) + 0 * i)(params, x) for i in range(2)]
    assert values[0] == values[1]


def test_vmap_and_scan_around_it(pruned, params, x):
    """Gradients of each example, and a sum over a scan, as with jax.value_and_grad."""
    gradient, selection = pruned.value_and_grad(loss_of(model)), selection_of(pruned)

    @jax.jit
    def run(params, x):
        each = jax.vmap(lambda x: gradient(params, selection, x[None])[1])(x)
        step = lambda total, x: (  # noqa: E731
            jax.tree.map(jnp.add, total, gradient(params, selection, x[None])[1]),
            None,
        )
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:]), each)
        return each, jax.lax.scan(step, zeros, x)[0]

    each, total = run(params, x)
    for parts, whole in zip(jax.tree.leaves(each), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(parts.sum(0), whole, rtol=1e-4, atol=1e-5)


def test_gather_and_scatter_are_inverse(pruned, params):
    selection = selection_of(pruned)
    packed = pruned.gather(params, selection)
    assert packed["layers"][1]["w"].shape == (16, D)
    doubled = pruned.scatter(params, jax.tree.map(lambda a: 2 * a, packed), selection)
    mask = pruned.masks(selection)["layers/0/w"]
    w = params["layers"][0]["w"]
    np.testing.assert_array_equal(doubled["layers"][0]["w"], jnp.where(mask, 2 * w, w))


def test_no_module_of_jax_is_imported_with_the_package():
    program = (
        "import time; t = time.perf_counter(); import sys, pbr_jax;"
        "print(time.perf_counter() - t, 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(pbr_jax.__file__).parents[1],
    )
    seconds, imported = done.stdout.split()
    assert float(seconds) < 0.1 and imported == "False"


def test_columns_are_chosen_in_groups(params, x):
    """S2FT's contiguous rows: whole groups, as many as K holds."""
    pruned = prune(model, params, x, keep=0.4, group_size=16)
    drawn = pruned.select(pruned.init(), jax.random.key(0))
    for name, columns in drawn.items():
        starts = np.asarray(columns).reshape(-1, 16)
        assert np.all(starts[:, 0] % 16 == 0), name
        assert np.all(starts - starts[:, :1] == np.arange(16)[None])
    with pytest.raises(ValueError, match="group_size = 48: must divide the number of columns"):
        prune(model, params, x, group_size=48)
