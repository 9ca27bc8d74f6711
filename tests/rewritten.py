"""What every test of a rewritten model asks: equal to dense autodiff in the rows that are kept."""

import contextlib
import io
import re
from unittest import mock

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pbr_jax import prune, report
from pbr_jax.transform import rewrite


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


def turned(x):
    """Rotary positions of `[B, N, H, K]`."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1], dtype=x.dtype)[None, :, None, None] / jnp.arange(1.0, half + 1)
    one, two, sine, cosine = x[..., :half], x[..., half:], jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([one * cosine - two * sine, two * cosine + one * sine], axis=-1)


def groups_of(pruned):
    """Names without the module, by group: those that read one activation."""
    short = lambda path: path.removesuffix("/kernel").rsplit("/", 1)[-1]  # noqa: E731
    return sorted(sorted(map(short, group.paths)) for group in pruned.groups.values())


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


def check_against_dense(pruned, loss, params, *args, tolerance=2e-6, seed=0, jit=jax.jit):
    """Loss bit-equal, kept rows within `tolerance`, others exactly 0; returns packed gradients.

    Two programs are compiled. Where XLA fuses them differently, `jit` is `measures.exact_jit`.
    """

    @jit
    def run(params, selection, *args):
        value, grads = pruned.value_and_grad(loss)(params, selection, *args)
        return value, grads, pruned.dense(grads, selection), pruned.masks(selection)

    value, grads, unpacked, masks = run(params, selection_of(pruned, seed), *args)
    expected, dense = jit(jax.value_and_grad(loss))(params, *args)
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


def check_report(pruned, *example, **kwargs):
    """What `report` says is so: bytes kept, each product pruned once, a reason for all else."""
    found = report(pruned, *example, **kwargs)
    shown, selection = pruned.example(*example, **kwargs), selection_of(pruned)

    def outputs(leaves, arrays):
        arrays = jax.lax.stop_gradient(arrays)
        outs = pruned.evaluate_packed(shown.trace, leaves, arrays, selection)
        return [out for out in outs if jnp.issubdtype(out.dtype, jnp.floating)]

    with mock.patch.object(rewrite, "attach", wraps=rewrite.attach) as attach:
        jax.eval_shape(outputs, shown.leaves, shown.arrays)
    assert attach.call_count == sum(site.products for site in pruned.sites)
    assert kept_bytes(outputs, shown.leaves, shown.arrays) == found.residual_bytes_pruned
    paths = [site.path for site in pruned.sites]
    assert sorted([*paths, *found.unpruned]) == sorted(pruned.plan.paths)
    assert all(found.unpruned.values())
    return found


def kept_bytes(function, *args):
    """Bytes of what JAX itself lists as kept for the backward pass and is no argument."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        jax.ad_checkpoint.print_saved_residuals(function, *args)
    total = 0
    for line in text.getvalue().splitlines():
        # A parameter held constant is that parameter.
        if re.search("from the argument|from a constant|output of stop_gradient", line):
            continue
        kind, sizes = re.match(r"([\w<>]+)\[([\d,]*)\]", line).groups()
        size = {"bool": 1, "key<fry>": 8}.get(kind) or int(re.search(r"\d+", kind)[0]) // 8
        total += size * int(np.prod([int(n) for n in sizes.split(",") if n] or [1]))
    return total


def check(function, params, *args, keep=0.25, tolerance=2e-6, **kwargs):
    """Prunes a function and checks it; returns the pruned model."""
    pruned = prune(function, params, *args, keep=keep, **kwargs)
    check_report(pruned, params, *args)
    check_against_dense(pruned, loss_of(function), params, *args, tolerance=tolerance)
    return pruned


def check_linen(model, *args, tolerance=2e-6, rngs=None, jit=jax.jit, **kwargs):
    """Prunes a Linen module and checks it, the collections that it changes among its outputs."""
    pruned = prune(model, *args, keep=0.25, **kwargs)
    check_report(pruned, *args, **kwargs)
    variables = variables_of(model, *args, **kwargs)
    params = variables.pop("params")
    mutable = list(variables) if rngs is not None else False

    def function(params, *args):
        return model.apply(
            {"params": params, **variables}, *args, rngs=rngs, mutable=mutable, **kwargs
        )

    check_against_dense(pruned, loss_of(function), params, *args, tolerance=tolerance, jit=jit)
    return pruned


def check_nnx(module, *args, tolerance=2e-6):
    """Prunes an NNX module and checks it under `nnx.jit`.

    Returns the pruned model, its gradients, and the state afterwards of the module and of objects
    among its arguments: as it was pruned, and as it is.
    """
    graph, state = nnx.split((module, args))
    (mine, own), (stock, other) = (
        nnx.merge(graph, jax.tree.map(jnp.copy, state)) for _ in range(2)
    )
    pruned = prune(module, *args, keep=0.25)
    check_report(pruned, *args)
    loss = loss_of(lambda module, *args: module(*args))

    @nnx.jit
    def run(module, selection, args):
        value, grads = pruned.value_and_grad(loss)(module, selection, *args)
        return value, grads, pruned.dense(grads, selection), pruned.masks(selection)

    value, grads, unpacked, masks = run(mine, selection_of(pruned), own)
    expected, dense = nnx.jit(lambda m, args: nnx.value_and_grad(loss)(m, *args))(stock, other)
    np.testing.assert_array_equal(value, expected)
    compare(unpacked, masks, dense, tolerance)
    others = [nnx.state(tree, nnx.Not(nnx.Param)) for tree in ((mine, own), (stock, other))]
    for moved, expected in zip(*map(jax.tree.leaves, others), strict=True):
        if jnp.issubdtype(moved.dtype, jax.dtypes.prng_key):
            moved, expected = jax.random.key_data(moved), jax.random.key_data(expected)
        np.testing.assert_array_equal(moved, expected)
    return pruned, grads, mine, own
