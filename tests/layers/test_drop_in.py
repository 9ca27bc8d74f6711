"""What stock layers take is taken or refused by name, and what was silent raises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from measures import assert_close

from pbr_jax import freeze_unselected, layers, prune

D = 16
RNGS = {"selection": jax.random.key(7)}


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def params_of(module, *inputs):
    return jax.jit(module.init)(jax.random.key(3), *inputs)["params"]


# --- a selection that nobody would know ---


@pytest.mark.parametrize("axes", [{"params": 0}, {"params": 0, "selection": 0}])
def test_a_scan_that_cannot_return_the_selection_raises(axes):
    """With "selection" in `split_rngs` alone its columns were drawn, and all rows moved."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + layers.Dense(D, name="dense")(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            split = {"params": True, "selection": True}
            scan = nn.scan(Block, variable_axes=axes, split_rngs=split, length=3)
            return layers.Dense(D, name="out")(scan(name="blocks")(x, None)[0])

    net, x = Net(), normal(3, D)
    params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]

    def gradient(params):
        def loss(p):
            y, drawn = net.apply({"params": p}, x, rngs=RNGS, mutable=["selection"])
            return y.sum(), drawn

        return jax.grad(loss, has_aux=True)(params)

    if "selection" in axes:
        drawn = jax.eval_shape(gradient, params)[1]["selection"]
        assert drawn["blocks"]["dense"]["selected"].shape == (3, D)
        return
    with pytest.raises(ValueError, match=r"^blocks/dense: columns are drawn .* variable_axes"):
        jax.eval_shape(gradient, params)


def test_a_draw_that_is_not_asked_for_raises():
    module, x = layers.Dense(6), normal(3, D)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    apply = lambda p: module.apply({"params": p}, x, rngs=RNGS).sum()  # noqa: E731
    jax.eval_shape(apply, params)  # evaluation is free of it
    with pytest.raises(ValueError, match=r'pass mutable=\["selection"\] to apply'):
        jax.eval_shape(jax.grad(apply), params)


def test_columns_without_their_mask_are_refused():
    params = {name: {"kernel": jnp.ones((D, 2))} for name in ("one", "two")}
    columns = jnp.arange(8, dtype=jnp.int32)
    selection = {
        "one": {"selected": jnp.ones(D, bool), "columns": columns},
        "two": {"columns": columns},
    }
    tx = freeze_unselected(optax.sgd(0.1))
    with pytest.raises(ValueError, match="selection of two has columns and no mask"):
        tx.update(params, tx.init(params), params, selection=selection)


# --- what stock layers take ---


@pytest.mark.parametrize("name", ["precision", "dot_general", "dot_general_cls"])
def test_products_of_other_kinds_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} = .*must be None.*pbr_jax.prune"):
        layers.Dense(6, **{name: "highest"}).init(jax.random.key(0), normal(3, D))


def test_broadcast_dropout_is_refused():
    module = layers.MultiHeadDotProductAttention(2, broadcast_dropout=True)
    with pytest.raises(ValueError, match="broadcast_dropout = True: must be False"):
        jax.eval_shape(module.init, jax.random.key(0), normal(3, 5, D))


def test_partitioned_parameters():
    """Boxes of `with_partitioning` keep names of the kernel's own axes, and their rows freeze."""
    partitioned = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "heads", None))
    module = layers.DenseGeneral((2, 3), kernel_init=partitioned)
    stock = nn.DenseGeneral((2, 3), kernel_init=partitioned)
    x = normal(3, D)
    params, theirs = params_of(module, x), params_of(stock, x)
    assert nn.get_partition_spec(params) == nn.get_partition_spec(theirs)
    jax.tree.map(np.testing.assert_array_equal, params, theirs)
    tx = freeze_unselected(optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def step(params):
        def loss(p):
            y, drawn = module.apply({"params": p}, x, rngs=RNGS, mutable=["selection"])
            return y.sum(), drawn["selection"]

        grads, drawn = jax.grad(loss, has_aux=True)(params)
        updates, _ = tx.update(grads, tx.init(params), params, selection=drawn)
        return updates, drawn["selected"]

    updates, selected = step(params)
    moved = np.any(nn.unbox(updates)["kernel"] != 0, axis=(1, 2))
    np.testing.assert_array_equal(moved, selected)


def test_parameters_cast_by_hand_compute_in_their_dtype():
    for ours, stock in (
        (layers.Dense(6), nn.Dense(6)),
        (layers.LayerNorm(), nn.LayerNorm()),
    ):
        x = normal(3, D, dtype=jnp.bfloat16)
        params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params_of(stock, normal(3, D)))
        with jax.numpy_dtype_promotion("standard"):  # the stock norm mixes types inside
            mine, theirs = (jax.eval_shape(m.apply, {"params": params}, x) for m in (ours, stock))
        assert mine.dtype == theirs.dtype == jnp.bfloat16


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_attention_of_other_ranks_with_a_mask_of_floats(lead):
    x = normal(*lead, 5, D)
    mask = nn.make_causal_mask(x[..., 0])
    assert mask.dtype == jnp.float32
    ours, stock = layers.MultiHeadDotProductAttention(2), nn.MultiHeadDotProductAttention(2)
    params = params_of(stock, x, x, x)

    @jax.jit
    def both(params):
        def mine(p):
            y, _ = ours.apply({"params": p}, x, mask=mask, rngs=RNGS, mutable=["selection"])
            return jnp.sum(y**2), y

        grads, y = jax.grad(mine, has_aux=True)(params)
        return y, grads, stock.apply({"params": params}, x, mask=mask)

    y, grads, expected = both(params)
    assert_close(y, expected, 1e-6)
    assert np.any(grads["query"]["kernel"])


def test_an_explicit_mesh():
    """The product over the batch says how its gradient lies; stock autodiff knows by itself."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))

    def gradient(module, params, x):
        def loss(p, x):
            y, _ = module.apply({"params": p}, x, rngs=RNGS, mutable=["selection"])
            return jnp.sum(y * y)

        return jax.grad(loss, argnums=(0, 1))(params, x)

    x = normal(4, 5, D)
    for ours, stock in (
        (layers.Dense(6), nn.Dense(6)),
        (layers.DenseGeneral((2, 3)), nn.DenseGeneral((2, 3))),
    ):
        params = params_of(stock, x)
        alone = jax.jit(gradient, static_argnums=0)(ours, params, x)
        with jax.set_mesh(mesh):
            placed = jax.device_put(x, NamedSharding(mesh, P("data")))
            kernels = jax.device_put(params, NamedSharding(mesh, P()))
            mine = jax.jit(gradient, static_argnums=0)(ours, kernels, placed)
            theirs = jax.eval_shape(lambda p, x, m=stock: gradient(m, p, x), kernels, placed)
        assert jax.tree.map(lambda a: a.sharding.spec, mine) == jax.tree.map(
            lambda a: a.sharding.spec, theirs
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), alone, mine)


def test_layers_that_keep_all_are_pruned_by_prune():
    """The way to the bandit: products by `prune`, attention and norms with our residuals."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + layers.MultiHeadDotProductAttention(2, keep=1.0)(layers.LayerNorm()(x))
            return layers.MlpBlock(32, keep=1.0)(x)

    pruned = prune(Net(), normal(2, 5, D), keep=0.5, min_columns=D)
    assert len(pruned.sites) == 6 and len(pruned.groups) == 4
