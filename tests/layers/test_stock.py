"""Linen layers against Flax's own: the same parameters and outputs; chosen rows of gradients."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from measures import assert_close, saved_bytes

from pbr_jax import layers

WIDTH = 16
BIASED = {"bias_init": nn.initializers.normal(0.5)}


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


class Case(typing.NamedTuple):
    """A layer of ours, the stock one, and their inputs."""

    ours: nn.Module
    stock: nn.Module
    inputs: tuple


X = normal(3, 5, WIDTH)
CASES = {
    "dense": Case(layers.Dense(6, **BIASED), nn.Dense(6, **BIASED), (X,)),
    "dense of rank 1": Case(layers.Dense(6, **BIASED), nn.Dense(6, **BIASED), (X[0, 0],)),
    "no bias": Case(layers.Dense(6, use_bias=False), nn.Dense(6, use_bias=False), (X,)),
    "several features": Case(
        layers.DenseGeneral((2, 3), **BIASED), nn.DenseGeneral((2, 3), **BIASED), (X,)
    ),
    "several axes": Case(
        layers.DenseGeneral(6, axis=(-2, -1), **BIASED),
        nn.DenseGeneral(6, axis=(-2, -1), **BIASED),
        (normal(3, 5, 4, 8),),
    ),
    "another initialiser": Case(
        layers.Dense(6, kernel_init=nn.initializers.xavier_uniform()),
        nn.Dense(6, kernel_init=nn.initializers.xavier_uniform()),
        (X,),
    ),
    "self-attention": Case(
        layers.MultiHeadDotProductAttention(num_heads=2, **BIASED),
        nn.MultiHeadDotProductAttention(num_heads=2, **BIASED),
        (X,),
    ),
    "cross-attention": Case(
        layers.MultiHeadDotProductAttention(2, qkv_features=24, out_features=4, **BIASED),
        nn.MultiHeadDotProductAttention(2, qkv_features=24, out_features=4, **BIASED),
        (X, normal(3, 7, 24, seed=1), normal(3, 7, 24, seed=2)),
    ),
}


# Variants of the first, exhaustive.
VARIANTS = ("dense of rank 1", "no bias", "another initialiser")
NAMES = [
    pytest.param(name, marks=pytest.mark.exhaustive if name in VARIANTS else ()) for name in CASES
]


def init(module, inputs):
    return jax.jit(module.init)(jax.random.key(3), *inputs)["params"]


@pytest.fixture(scope="module")
def results():
    """Output, gradients and mutable collection of ours; output and gradients of the stock layer."""

    @functools.cache
    def run(name):
        ours, stock, inputs = CASES[name]

        @jax.jit
        def both(params, inputs):
            def mine(params, inputs):
                rngs = {"selection": jax.random.key(7)}
                return ours.apply({"params": params}, *inputs, rngs=rngs, mutable=["selection"])

            def theirs(params, inputs):
                return stock.apply({"params": params}, *inputs)

            y, pullback, drawn = jax.vjp(mine, params, inputs, has_aux=True)
            y_stock, pullback_stock = jax.vjp(theirs, params, inputs)
            dy = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            return (y, pullback(dy), drawn["selection"]), (y_stock, pullback_stock(dy))

        return both(init(stock, inputs), inputs)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_parameters_start_as_those_of_flax(name):
    ours, stock, inputs = CASES[name]
    mine, theirs = init(ours, inputs), init(stock, inputs)
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_flax(name, results):
    (y, _, _), (y_stock, _) = results(name)
    assert_close(y, y_stock, 1e-6)


def kernels(tree, path=()):
    """`(path, kernel, bias or None)` of every linear layer in a parameter tree."""
    if "kernel" in tree:
        yield path, tree["kernel"], tree.get("bias")
    else:
        for name, inner in tree.items():
            yield from kernels(inner, (*path, name))


def at(tree, path):
    return functools.reduce(lambda node, name: node[name], path, tree)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_exact_where_selected_and_zero_elsewhere(name, results):
    (_, (grads, dx), drawn), (_, (stock_grads, stock_dx)) = results(name)
    jax.tree.map(functools.partial(assert_close, tolerance=2e-5), dx, stock_dx)
    for path, kernel, bias in kernels(grads):
        stock = at(stock_grads, path)
        selected = np.asarray(at(drawn, path)["selected"])
        columns = np.asarray(at(drawn, path)["columns"])
        assert selected.shape == kernel.shape[: selected.ndim]
        np.testing.assert_array_equal(np.flatnonzero(selected), columns)
        assert len(columns) == 8 < selected.size  # a tenth, rounded up to a multiple of 8
        assert_close(kernel[selected], stock["kernel"][selected], 2e-5)
        assert not np.any(kernel[~selected])
        if bias is not None:
            # That of `key` is zero but for rounding: softmax does not see what all scores share.
            scale = np.abs(stock["kernel"]).max()
            np.testing.assert_allclose(bias, stock["bias"], rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize("name", ["dense", "several axes", "cross-attention"])
def test_keeping_all_columns_is_the_stock_layer(name, results):
    ours, stock, inputs = CASES[name]
    ours = ours.clone(keep=1.0)

    @jax.jit
    def gradients(params, inputs):
        y, pullback = jax.vjp(lambda p, x: ours.apply({"params": p}, *x), params, inputs)
        dy = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return pullback(dy)

    grads, _ = gradients(init(stock, inputs), inputs)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5)
    jax.tree.map(close, grads, results(name)[1][1][0])


def test_self_attention_shares_its_columns(results):
    drawn = results("self-attention")[0][2]
    np.testing.assert_array_equal(drawn["query"]["columns"], drawn["key"]["columns"])
    np.testing.assert_array_equal(drawn["query"]["columns"], drawn["value"]["columns"])
    assert not np.array_equal(drawn["query"]["columns"], drawn["out"]["columns"])


def test_inputs_of_cross_attention_have_columns_of_their_own():
    module = layers.MultiHeadDotProductAttention(num_heads=2)
    memory = normal(3, 7, WIDTH, seed=1)

    def columns(*inputs):
        params = init(module, inputs)
        rngs = {"selection": jax.random.key(0)}
        drawn = module.apply({"params": params}, *inputs, rngs=rngs, mutable=["selection"])[1]
        return {name: layer["columns"].tolist() for name, layer in drawn["selection"].items()}

    two = columns(X, memory)
    assert two["key"] == two["value"] != two["query"]
    three = columns(X, memory, normal(3, 7, WIDTH, seed=2))
    assert three["key"] != three["value"]


def test_attention_takes_a_mask():
    stock, inputs = nn.MultiHeadDotProductAttention(num_heads=2), (X, X, X)
    ours = layers.MultiHeadDotProductAttention(num_heads=2)
    params = init(stock, inputs)
    mask = nn.make_causal_mask(jnp.ones((3, 5)), dtype=jnp.bool_)
    expected = jax.jit(stock.apply)({"params": params}, *inputs, mask=mask)
    assert_close(jax.jit(ours.apply)({"params": params}, X, mask=mask), expected, 1e-6)
    without = jax.jit(ours.apply)({"params": params}, X)
    assert np.abs(without - expected).max() > 0.01


def test_attention_drops_weights_from_the_stream_dropout():
    module = layers.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.5)
    params = init(module.copy(deterministic=True), (X,))
    apply = jax.jit(
        lambda seed, off: module.apply(
            {"params": params}, X, rngs={"dropout": jax.random.key(seed)}, deterministic=off
        ),
        static_argnums=1,
    )
    first, again, other = apply(0, False), apply(0, False), apply(1, False)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    without = layers.MultiHeadDotProductAttention(num_heads=2).apply({"params": params}, X)
    assert_close(apply(0, True), without, 1e-6)
    with pytest.raises(ValueError, match="deterministic"):
        module.apply({"params": params}, X)


def test_heads_must_divide_the_width():
    module = layers.MultiHeadDotProductAttention(num_heads=3)
    with pytest.raises(ValueError, match="num_heads = 3: must divide qkv_features = 16"):
        jax.eval_shape(module.init, jax.random.key(0), X)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("input_dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes_are_those_of_flax(dtype, input_dtype):
    x = X.astype(input_dtype)
    for ours, stock in (
        (layers.Dense(6, dtype=dtype), nn.Dense(6, dtype=dtype)),
        (layers.LayerNorm(dtype=dtype), nn.LayerNorm(dtype=dtype)),
    ):
        with jax.numpy_dtype_promotion("standard"):  # or Flax refuses to mix input and weights
            theirs = jax.eval_shape(stock.init_with_output, jax.random.key(0), x)
            mine = jax.eval_shape(ours.init_with_output, jax.random.key(0), x)
        assert mine == theirs


def test_bfloat16_gradients_are_close_and_of_the_dtype_of_the_parameters():
    module, stock = layers.Dense(6, dtype=jnp.bfloat16), nn.Dense(6)
    params = init(stock, (X,))
    chosen = jnp.arange(0, 16, 2, dtype=jnp.int32)

    @jax.jit
    def gradients(params):
        variables = {"selection": {"columns": chosen}}
        mine = jax.grad(lambda p: module.apply({"params": p} | variables, X).sum())(params)
        return mine, jax.grad(lambda p: stock.apply({"params": p}, X).sum())(params)

    mine, theirs = gradients(params)
    assert mine["kernel"].dtype == jnp.float32
    assert_close(mine["kernel"][::2], theirs["kernel"][::2], 0.02)
    assert not np.any(mine["kernel"][1::2])


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_layer_norm_is_that_of_flax(use_scale, use_bias):
    options = {"use_scale": use_scale, "use_bias": use_bias, "epsilon": 1e-3}
    ours, stock = layers.LayerNorm(**options), nn.LayerNorm(**options)
    params = jax.jit(stock.init)(jax.random.key(0), X).get("params", {})
    mine = jax.jit(ours.init)(jax.random.key(0), X).get("params", {})
    jax.tree.map(np.testing.assert_array_equal, mine, params)
    params = jax.tree.map(lambda leaf: leaf + normal(*leaf.shape, seed=4), params)

    @functools.partial(jax.jit, static_argnums=0)
    def run(module, params):
        y, pullback = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, X)
        return y, pullback(jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    (y, (grads, dx)), (y_stock, (stock_grads, stock_dx)) = run(ours, params), run(stock, params)
    assert_close(y, y_stock, 1e-5)
    assert_close(dx, stock_dx, 5e-5)
    assert_close(grads, stock_grads, 5e-5)


class Mlp(nn.Module):
    """The MLP of Google's ViT, from stock layers."""

    @nn.compact
    def __call__(self, x):
        init = {
            "kernel_init": nn.initializers.xavier_uniform(),
            "bias_init": nn.initializers.normal(1e-6),
        }
        hidden = jax.nn.gelu(nn.Dense(32, **init)(x), approximate=False)
        return nn.Dense(x.shape[-1], **init)(hidden)


def test_mlp_block_is_two_dense_layers():
    params = init(Mlp(), (X,))
    jax.tree.map(np.testing.assert_array_equal, init(layers.MlpBlock(32), (X,)), params)
    expected = jax.jit(Mlp().apply)({"params": params}, X)
    assert_close(jax.jit(layers.MlpBlock(32).apply)({"params": params}, X), expected, 1e-6)


# --- which columns ---


def test_columns_from_the_collection_go_before_a_draw():
    module, chosen = layers.Dense(6), jnp.asarray([0, 1, 2, 3, 10, 11, 12, 16], jnp.int32)
    variables = {"params": init(module, (X,)), "selection": {"columns": chosen}}
    rngs = {"selection": jax.random.key(0)}
    _, drawn = module.apply(variables, X, rngs=rngs, mutable=["selection"])
    np.testing.assert_array_equal(drawn["selection"]["columns"], chosen)
    kept = np.flatnonzero(drawn["selection"]["selected"])
    np.testing.assert_array_equal(kept, chosen[:-1])  # 16 marks an unused slot


def test_every_key_draws_other_columns_and_all_columns_have_their_turn():
    module = layers.Dense(6, keep=0.25)
    params = init(module, (X,))

    @jax.jit
    @jax.vmap
    def draw(seed):
        rngs = {"selection": jax.random.key(seed)}
        return module.apply({"params": params}, X, rngs=rngs, mutable=["selection"])[1]

    drawn = np.asarray(draw(jnp.arange(400))["selection"]["columns"])
    assert drawn.shape == (400, 8)
    assert np.all(np.diff(drawn, axis=1) > 0)
    share = np.bincount(drawn.ravel(), minlength=WIDTH) / 400
    np.testing.assert_allclose(share, 0.5, atol=0.12)  # 5 standard deviations


def test_nothing_is_recorded_unless_asked_for():
    module = layers.Dense(6)
    variables = jax.jit(module.init)(
        {"params": jax.random.key(0), "selection": jax.random.key(1)}, X
    )
    assert set(variables) == {"params"}


def test_without_columns_a_gradient_raises_and_an_output_does_not():
    module = layers.MlpBlock(32)
    params = init(module, (X,))
    jax.eval_shape(module.apply, {"params": params}, X)
    with pytest.raises(ValueError, match=r"Dense_\d: keep = 0.1 but no columns were given.*keep=1"):
        jax.eval_shape(jax.grad(lambda p: module.apply({"params": p}, X).sum()), params)


@pytest.mark.parametrize("axis", [0, (0, 1), (-3, -1)])
def test_only_trailing_axes_are_contracted(axis):
    with pytest.raises(ValueError, match="must be the last axes of an input with 3"):
        jax.eval_shape(layers.DenseGeneral(6, axis=axis).init, jax.random.key(0), X)


# --- what is saved ---


def test_a_dense_layer_saves_the_chosen_columns_only():
    x = normal(4, 10, 64)
    module = layers.Dense(6, keep=0.25)
    params = init(module, (x,))
    chosen = {"columns": jnp.arange(16, dtype=jnp.int32)}
    apply = functools.partial(module.apply, {"params": params, "selection": chosen})
    assert saved_bytes(apply, x) == 4 * 10 * 16 * 4


def test_self_attention_saves_one_choice_of_columns_of_its_input():
    x = normal(4, 10, 64)
    module = layers.MultiHeadDotProductAttention(num_heads=2, keep=0.25)
    params = init(module, (x,))

    def apply(x):
        rngs = {"selection": jax.random.key(0)}
        return module.apply({"params": params}, x, rngs=rngs, mutable=["selection"])[0]

    # A token: q, k, v and output, a log-sum-exp per head, and 16 columns of input and output.
    token = 4 * 64 + 2 + 2 * 16
    indices = 2 * 16
    assert saved_bytes(apply, x) == 4 * (4 * 10 * token + indices)


# --- inside transformations ---


class Residual(nn.Module):
    """A layer whose output can be its next input."""

    inner: type = layers.Dense

    @nn.compact
    def __call__(self, x, _=None):
        return x + self.inner(WIDTH, name="dense")(x), None


def test_layers_can_be_scanned():
    """Columns are drawn for each of three stacked layers, and belong to its rows."""
    axes = {"params": 0, "selection": 0}
    rngs = {"params": True, "selection": True}
    scanned = nn.scan(Residual, variable_axes=axes, split_rngs=rngs, length=3)
    params = init(scanned(), (X,))

    @jax.jit
    def gradients(params):
        def loss(p, module, **kwargs):
            out, drawn = module.apply({"params": p}, X, mutable=["selection"], **kwargs)
            return jnp.sum(jnp.square(out[0])), drawn

        key = {"selection": jax.random.key(0)}
        grad = jax.grad(loss, has_aux=True)
        mine, drawn = grad(params, scanned(), rngs=key)
        return mine, grad(params, scanned(nn.Dense))[0], drawn["selection"]["dense"]

    mine, stock, drawn = gradients(params)
    assert drawn["columns"].shape == (3, 8)
    assert len({tuple(row) for row in drawn["columns"].tolist()}) == 3
    selected = np.asarray(drawn["selected"])
    kernel, expected = mine["dense"]["kernel"], stock["dense"]["kernel"]
    assert_close(kernel[selected], expected[selected], 2e-5)
    assert not np.any(kernel[~selected])


def test_rematerialised_layers_draw_the_same_columns_again():
    params = init(Residual(), (X,))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(module, params):
        def loss(p):
            rngs = {"selection": jax.random.key(0)}
            (y, _), drawn = module.apply({"params": p}, X, rngs=rngs, mutable=["selection"])
            return jnp.sum(jnp.square(y)), drawn

        return jax.grad(loss, has_aux=True)(params)

    plain, drawn = gradients(Residual(), params)
    again, drawn_again = gradients(nn.remat(Residual)(), params)
    jax.tree.map(np.testing.assert_array_equal, drawn, drawn_again)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), plain, again)


def test_gradients_per_example_by_vmap():
    module, chosen = layers.Dense(6), jnp.arange(0, 16, 2, dtype=jnp.int32)
    params = init(module, (X,))

    @jax.jit
    def gradients(params):
        def loss(p, x):
            return module.apply({"params": p, "selection": {"columns": chosen}}, x).sum()

        return jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, X), jax.grad(loss)(params, X)

    each, total = gradients(params)
    assert each["kernel"].shape == (3, 16, 6)
    assert_close(each["kernel"].sum(0), total["kernel"], 1e-5)
