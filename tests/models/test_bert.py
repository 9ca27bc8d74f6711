"""BERT against a plain float32 BERT, written as published, that autodiff differentiates."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import bert, columns, param_shapes, random_params
from measures import assert_close, value_and_pullback

from pbr_jax.configs.common import MODEL_SIZES
from pbr_jax.methods import OF_HALF_BLOCKS, resolve
from pbr_jax.plans import SITES, Keep, ResidualPlan

COLUMNS = ResidualPlan(linear="columns", keep=Keep(0.1))
LENGTHS = np.array([6, 3, 1, 5], np.int32)


def inputs(batch: int = 4, length: int = 6) -> dict[str, jax.Array]:
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 20, (batch, length))
    types = generator.integers(0, 2, (batch, length))
    arrays = {"tokens": tokens, "token_types": types, "lengths": LENGTHS[:batch]}
    return {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}


def reference(params, batch, *, heads=2):
    """Devlin et al. (2019): post-norm blocks, as one would write them."""
    rows, length = batch["tokens"].shape

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    def attend(x, p):
        def split(part):
            return part.reshape(rows, length, heads, -1).swapaxes(1, 2)

        q, k, v = (split(part) for part in jnp.split(linear(x, p["qkv"]), 3, axis=-1))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        hidden = jnp.arange(length) >= batch["lengths"][:, None, None, None]
        scores = jnp.where(hidden, -jnp.inf, scores)
        return linear((jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape), p["proj"])

    with jax.numpy_rank_promotion("allow"):
        p = params["embedding"]
        x = p["word"][batch["tokens"]] + p["position"][:length] + p["type"][batch["token_types"]]
        blocks = params["blocks"]
        depth = len(blocks["norm1"]["scale"])
        x = norm(x, jax.tree.map(lambda leaf: leaf[0], blocks["norm1"]))
        for i in range(depth):
            p = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
            after = params["norm"]
            if i < depth - 1:
                after = {name: leaf[i + 1] for name, leaf in blocks["norm1"].items()}
            x = norm(x + attend(x, p), p["norm2"])
            hidden = jax.nn.gelu(linear(x, p["fc1"]), approximate=False)
            x = norm(x + linear(hidden, p["fc2"]), after)
        return linear(jnp.tanh(linear(x[:, 0], params["pooler"])), params["head"])


@jax.jit(static_argnums=0)
def evaluate(model, params, batch):
    return model.apply({"params": params}, batch)


def with_columns(chosen):
    return {"blocks": {site: {"columns": value} for site, value in chosen.items()}}


def test_forward_is_that_of_a_plain_bert():
    params = random_params(bert())
    actual = evaluate(bert(), params, inputs())
    assert actual.dtype == jnp.float32
    assert_close(actual, jax.jit(reference)(params, inputs()), 1e-5)


def test_padding_changes_nothing():
    """Neither what padding holds, nor how long it is."""
    params = random_params(bert())
    expected = evaluate(bert(), params, inputs())
    batch = inputs()
    padding = np.arange(6) >= LENGTHS[:, None]
    other = {
        "tokens": jnp.where(padding, 7, batch["tokens"]),
        "token_types": jnp.where(padding, 1, batch["token_types"]),
        "lengths": batch["lengths"],
    }
    assert not np.array_equal(other["tokens"], batch["tokens"])
    np.testing.assert_allclose(evaluate(bert(), params, other), expected, atol=1e-5)
    longer = {
        name: array if name == "lengths" else jnp.pad(array, ((0, 0), (0, 2)))
        for name, array in batch.items()
    }
    np.testing.assert_allclose(evaluate(bert(), params, longer), expected, atol=1e-5)


@pytest.fixture(scope="module")
def expected():
    """Parameters, a cotangent, and what autodiff of the reference gives."""
    params = random_params(bert())
    cotangent = jnp.asarray(np.random.default_rng(2).standard_normal((4, 5)), jnp.float32)
    _, (grads,) = value_and_pullback(lambda p: reference(p, inputs()), cotangent, params)
    return params, cotangent, grads


def gradients(expected, plan, selection):
    params, cotangent, _ = expected

    def train(params):
        variables = {"params": params, "selection": selection}
        return bert(plan=plan).apply(variables, inputs(), train=True)

    return value_and_pullback(train, cotangent, params)[1][0]


@pytest.mark.parametrize("name", ["full", "remat"])
def test_exact_gradients_are_those_of_autodiff(expected, name):
    assert_close(gradients(expected, resolve(name).plan, {}), expected[2], 2e-5)


@pytest.mark.parametrize("name", ["prebackrazor", "tiny"])
def test_pruned_gradients_are_the_dense_ones_at_the_chosen_rows(expected, name):
    grads, chosen = expected[2], columns(2, 16, 32)
    plan = resolve(name, batch_chunks=2).plan
    pruned = gradients(expected, plan, with_columns(chosen))
    for site in SITES:
        for block in range(2):
            dense = grads["blocks"][site]["kernel"][block]
            kept = np.isin(np.arange(len(dense)), chosen[site][block])
            actual = pruned["blocks"][site]["kernel"][block]
            assert_close(actual[kept], dense[kept], 2e-5)
            assert not np.any(actual[~kept])
        assert_close(pruned["blocks"][site]["bias"], grads["blocks"][site]["bias"], 2e-5)
    for name in ("embedding", "norm", "pooler", "head"):
        assert_close(pruned[name], grads[name], 2e-5)


def test_names_and_shapes_of_the_parameters():
    norm = {"scale": (2, 16), "bias": (2, 16)}

    def layer(fan_in, fan_out, *stack):
        return {"kernel": (*stack, fan_in, fan_out), "bias": (*stack, fan_out)}

    assert jax.tree.map(lambda s: s.shape, param_shapes(bert())) == {
        "embedding": {"word": (20, 16), "position": (8, 16), "type": (2, 16)},
        "blocks": {
            "norm1": norm,
            "norm2": norm,
            "qkv": layer(16, 48, 2),
            "proj": layer(16, 16, 2),
            "fc1": layer(16, 32, 2),
            "fc2": layer(32, 16, 2),
        },
        "norm": {"scale": (16,), "bias": (16,)},
        "pooler": layer(16, 16),
        "head": layer(16, 5),
    }


def test_base_has_as_many_parameters_as_the_published_model():
    width, depth, heads, mlp_dim = MODEL_SIZES["B"]
    model = bert(
        width=width,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim,
        vocab_size=30522,
        max_length=512,
        num_classes=2,
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model)))
    assert count == 109_482_240 + 2 * 768 + 2  # bert-base-uncased with pooler, and the classifier


@pytest.mark.parametrize(
    ("name", "shape", "fault"),
    [
        ("tokens", (4, 9), r"tokens have shape \(4, 9\): .* max_length = 8"),
        ("token_types", (4, 5), r"token_types and lengths have shapes \(4, 5\), \(4,\)"),
        ("lengths", (3,), r"must be \(4, 6\) and \(4,\), those of tokens"),
    ],
)
def test_inputs_of_another_shape_are_refused(name, shape, fault):
    batch = inputs() | {name: jnp.zeros(shape, jnp.int32)}
    with pytest.raises(ValueError, match=fault):
        jax.eval_shape(lambda p: evaluate(bert(), p, batch), param_shapes(bert()))


@pytest.mark.parametrize("name", OF_HALF_BLOCKS)
def test_evaluation_is_the_same_by_every_method(name):
    def program(model):
        apply = functools.partial(model.apply, mutable=False)
        return str(jax.make_jaxpr(apply)({"params": param_shapes(model)}, inputs()))

    assert program(bert(plan=resolve(name).plan, dropout=0.5)) == program(bert())
