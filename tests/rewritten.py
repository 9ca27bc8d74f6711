"""What every test of a rewritten model asks: equal to dense autodiff in the rows that are kept."""

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax import prune


def numbers(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def weights(seed, **shapes):
    """Parameters whose products keep the size of their input, by name."""
    generator = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            generator.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]) or 1), jnp.float32
        )
        for name, shape in shapes.items()
    }


def loss_of(function):
    """A scalar whose derivative differs from output to output."""

    def loss(params, *args):
        total = jnp.zeros((), jnp.float32)
        for i, out in enumerate(jax.tree.leaves(function(params, *args))):
            out = out.astype(jnp.float32)
            weigh = jnp.cos(jnp.arange(out.size, dtype=jnp.float32) + i).reshape(out.shape)
            total = total + jnp.sum(weigh * out + 0.1 * out * out)
        return total

    return loss


def selection_of(pruned, seed=0):
    """Columns of every group, drawn by NumPy: nothing is compiled for them."""
    generator = np.random.default_rng(seed)

    def draw(group):
        order = generator.random((*group.stack_shape, group.num_columns)).argsort(axis=-1)
        return jnp.asarray(np.sort(order[..., : group.num_kept]), jnp.int32)

    return {name: draw(group) for name, group in pruned.groups.items()}


def drawn_like(shapes, seed=0):
    """Arrays for the shapes of a module's variables, without compiling what initialises them."""
    leaves, tree = jax.tree.flatten(shapes)
    draw = lambda i, leaf: 0.2 * numbers(seed + i, *leaf.shape, dtype=leaf.dtype)  # noqa: E731
    return jax.tree.unflatten(
        tree,
        [
            jnp.abs(draw(i, leaf)) + 0.01 * draw(i, leaf) if leaf.ndim == 1 else draw(i, leaf)
            for i, leaf in enumerate(leaves)
        ],
    )


def variables_of(model, *args, **kwargs):
    """Variables of a Linen module."""
    keys = {"params": jax.random.key(0)}
    return drawn_like(jax.eval_shape(lambda: model.init(keys, *args, **kwargs)))


def check_against_dense(pruned, loss, params, *args, tolerance=2e-6, seed=0):
    """Loss bit-equal, kept rows within `tolerance`, others exactly 0; returns packed gradients."""

    @jax.jit
    def run(params, selection, *args):
        value, grads = pruned.value_and_grad(loss)(params, selection, *args)
        return value, grads, pruned.dense(grads, selection), pruned.masks(selection)

    value, grads, unpacked, masks = run(params, selection_of(pruned, seed), *args)
    expected, dense = jax.jit(jax.value_and_grad(loss))(params, *args)
    np.testing.assert_array_equal(value, expected)
    compare(unpacked, masks, dense, tolerance)
    return grads


def compare(unpacked, masks, dense, tolerance=2e-6):
    """Gradients of a pruned model in the shape of its parameters, beside those of autodiff."""
    assert jax.tree.structure(unpacked) == jax.tree.structure(dense)
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(dense)]
    scale = max(float(np.abs(leaf).max()) for leaf in leaves)
    mine = jax.tree_util.tree_leaves_with_path(unpacked)
    for (keys, own), full in zip(mine, leaves, strict=True):
        path = jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value")
        own = np.asarray(own, np.float32)
        if path in masks:
            mask = np.broadcast_to(masks[path], full.shape)
            assert not own[~mask].any() and full[~mask].any(), path
            full = np.where(mask, full, 0.0)
        assert own.any() or not full.any(), path
        size = max(float(np.abs(full).max()), 1e-2 * scale)
        assert np.abs(own - full).max() <= tolerance * size, path
    assert [a.dtype for _, a in mine] == [a.dtype for a in jax.tree.leaves(dense)]


def check(function, params, *args, keep=0.25, tolerance=2e-6, **kwargs):
    """Prunes a function and checks it; returns the pruned model."""
    pruned = prune(function, params, *args, keep=keep, **kwargs)
    check_against_dense(pruned, loss_of(function), params, *args, tolerance=tolerance)
    return pruned
