"""What stands behind a product y = x w: an identity on y that carries the gradient of w's rows.

The product itself stays as it was, with w held constant. Its output, the derivative by x and what
a checkpoint policy sees of it are those of the model. `attach` adds the other half: the cotangent
of `rows`, zeros in the place of K rows of w, is x[..., columns]^T dy (Algorithm 1's weight gradient
of the selected columns). Nothing but these columns of x is kept for it.

Rows of a parameter have the layout `[*stack, K, *rest]`: the axes that scans walk along, the
selected columns, and the other axes in the parameter's order.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops.shardings import placed, spec_of
from pbr_jax.transform.provenance import in_order
from pbr_jax.transform.sites import Site


class Layout(NamedTuple):
    """Where the rows of a parameter lie.

    Attributes:
      shape: of the parameter.
      stack: axes along which scans walk, the outermost first.
      rows: contracted axes, increasing.
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def rest(self) -> tuple[int, ...]:
        """The other axes, increasing."""
        return tuple(a for a in range(len(self.shape)) if a not in (*self.stack, *self.rows))

    @property
    def num_columns(self) -> int:
        """D."""
        return math.prod(self.shape[a] for a in self.rows)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """Lengths of the scans."""
        return tuple(self.shape[a] for a in self.stack)

    @property
    def rest_shape(self) -> tuple[int, ...]:
        """Sizes of the other axes."""
        return tuple(self.shape[a] for a in self.rest)

    def packed_shape(self, num_kept: int) -> tuple[int, ...]:
        """`[*stack, K, *rest]`."""
        return (*self.stack_shape, num_kept, *self.rest_shape)

    def flat(self, leaf: jax.Array) -> jax.Array:
        """The parameter as `[S, D, *rest]`, S the product of the scans' lengths."""
        moved = jnp.transpose(leaf, (*self.stack, *self.rows, *self.rest))
        return moved.reshape(math.prod(self.stack_shape), self.num_columns, *self.rest_shape)

    def unflat(self, flat: jax.Array) -> jax.Array:
        """The inverse of `flat`; axes of size 1 may stand for the rest."""
        rest = flat.shape[2:]
        order = (*self.stack, *self.rows, *self.rest)
        moved = flat.reshape(*self.stack_shape, *(self.shape[a] for a in self.rows), *rest)
        return jnp.transpose(moved, [order.index(axis) for axis in range(len(order))])

    def packed_spec(self, leaf: jax.Array) -> tuple | None:
        """How rows lie on a mesh with explicit axes: as the parameter, columns on every device."""
        spec = spec_of(leaf)
        if spec is None:
            return None
        return (*(spec[a] for a in self.stack), None, *(spec[a] for a in self.rest))

    def zeros(self, leaf: jax.Array, num_kept: int) -> jax.Array:
        """Zeros `[*stack, K, *rest]` in the parameter's dtype, to be differentiated by."""
        make = functools.partial(jnp.zeros_like, shape=self.packed_shape(num_kept))
        return placed(make, self.packed_spec(leaf), leaf)

    def gather(self, leaf: jax.Array, columns: jax.Array) -> jax.Array:
        """Rows of the parameter, `[*stack, K, *rest]`, at `columns` `[*stack, K]`."""

        def rows(leaf, columns):
            flat, each = self.flat(leaf), columns.reshape(-1, columns.shape[-1])
            take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
            return jax.vmap(take)(flat, each).reshape(self.packed_shape(columns.shape[-1]))

        return placed(rows, self.packed_spec(leaf), leaf, columns)

    def scatter(self, leaf: jax.Array, packed: jax.Array, columns: jax.Array) -> jax.Array:
        """The parameter `leaf` with these rows replaced; unused slots (index D) are dropped."""

        def put(leaf, packed, columns):
            flat, each = self.flat(leaf), columns.reshape(-1, columns.shape[-1])
            values = packed.reshape(*each.shape, *self.rest_shape)
            put = jax.vmap(lambda rows, at, new: rows.at[at].set(new, mode="drop"))
            return self.unflat(put(flat, each, values))

        return placed(put, spec_of(leaf), leaf, packed, columns)

    def spread(self, packed: jax.Array, columns: jax.Array) -> jax.Array:
        """Rows in the shape of the parameter, zero elsewhere."""

        def put(packed, columns):
            return self.scatter(jnp.zeros(self.shape, packed.dtype), packed, columns)

        spec = spec_of(packed)
        if spec is not None:  # the rows' own axes lie on every device
            depth = len(self.stack)
            own = dict(zip(self.stack, spec[:depth], strict=True))
            own |= dict(zip(self.rest, spec[depth + 1 :], strict=True))
            spec = tuple(own.get(axis) for axis in range(len(self.shape)))
        return placed(put, spec, packed, columns)

    def mask(self, columns: jax.Array) -> jax.Array:
        """Which rows are selected, bool with the axes of the parameter; the rest have size 1."""

        def chosen(columns):
            each = columns.reshape(-1, columns.shape[-1])
            nothing = jnp.zeros((each.shape[0], self.num_columns), bool)
            found = jax.vmap(lambda rows, at: rows.at[at].set(True, mode="drop"))(nothing, each)
            return self.unflat(found.reshape(*found.shape, *(1 for _ in self.rest)))

        explicit = spec_of(columns) is not None
        return placed(chosen, (None,) * len(self.shape) if explicit else None, columns)


def pack(x: jax.Array, site: Site, columns: jax.Array) -> jax.Array:
    """X with its contracted axes replaced by the selected columns.

    One contracted axis stays where it is; several become the last one.
    """
    axes = site.x_axes
    others = [a for a in range(x.ndim) if a not in axes]

    def take(x, columns):
        if len(axes) > 1:
            x = jnp.transpose(x, (*others, *axes)).reshape(*(x.shape[a] for a in others), -1)
        axis = axes[0] if len(axes) == 1 else x.ndim - 1
        return jnp.take(x, columns, axis=axis, mode="fill", fill_value=0)

    given, spec = spec_of(x), None
    if given is not None and len(axes) == 1:
        spec = tuple(None if a in axes else own for a, own in enumerate(given))
    elif given is not None:
        spec = (*(given[a] for a in others), None)
    return placed(take, spec, lax.stop_gradient(x), columns)


class Product(NamedTuple):
    """What the gradient of the rows needs to know of a product, all of it hashable."""

    site: Site
    w_shape: tuple[int, ...]
    w_dtype: Any
    rest_shape: tuple[int, ...]  # of the parameter, what follows [K] within a scan
    dtype: Any  # of the parameter
    spec: tuple | None  # of the rows, on a mesh with explicit axes
    params: tuple[tuple[str, Any], ...]  # of `dot_general`, without its axes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attach(product: Product, y: jax.Array, rows: jax.Array, packed: jax.Array) -> jax.Array:
    """y; its cotangent also gives that of `rows`.

    Args:
      product: the product that made y.
      y: its output.
      rows: `[K, *rest]` in the parameter's dtype, only differentiated.
      packed: the selected columns of x, see `pack`.
    """
    return y


def _forward(product, y, rows, packed):
    return y, packed


def _backward(product, packed, dy):
    def gradient(packed, dy):
        return rows_gradient(product, packed, dy).astype(product.dtype)

    return dy, placed(gradient, product.spec, packed, dy), None


attach.defvjp(_forward, _backward)


def rows_gradient(product: Product, packed: jax.Array, dy: jax.Array) -> jax.Array:
    """`packed^T dy`, `[K, *rest]`, as JAX would transpose the product with K columns alone."""
    site = product.site
    rank = len(product.w_shape)
    rest = [a for a in range(rank) if a not in site.w_axes and a not in site.w_batch]
    batch = [product.w_shape[a] for a in site.w_batch]
    # The small kernel: batch axes, K, and the remaining axes in order.
    kept = site.x_axes[0] if len(site.x_axes) == 1 else packed.ndim - 1
    gone = site.x_axes if len(site.x_axes) > 1 else ()
    x_batch = tuple(a - sum(g < a for g in gone) for a in site.x_batch)
    w_batch = tuple(range(len(batch)))
    shape = (*batch, packed.shape[kept], *(product.w_shape[a] for a in rest))
    small = jnp.zeros_like(packed, product.w_dtype, shape)  # its type alone is read
    params = dict(product.params)
    params["out_sharding"] = None  # where it matters, the compiler places what is inside

    def dot(kernel):
        if site.w_first:
            axes = (((len(batch),), (kept,)), (w_batch, x_batch))
            return lax.dot_general(kernel, packed, axes, **params)
        axes = (((kept,), (len(batch),)), (x_batch, w_batch))
        return lax.dot_general(packed, kernel, axes, **params)

    (grad,) = jax.linear_transpose(dot, small)(dy)
    # Every axis falls into its atoms, which are put into the parameter's order.
    atoms = [[], *site.rest]
    grad = jnp.moveaxis(grad, len(batch), 0)
    digits = [atom for own in atoms for atom in own]
    grad = grad.reshape(grad.shape[0], *(atom.size for atom in digits))
    order = [0, *(1 + digits.index(atom) for atom in in_order(digits))]
    return jnp.transpose(grad, order).reshape(grad.shape[0], *product.rest_shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def rows_of(layout: Layout, leaf: jax.Array, columns: jax.Array) -> jax.Array:
    """Zeros `[*stack, K, *rest]`, whose cotangent goes to these rows of the parameter."""
    return layout.zeros(leaf, columns.shape[-1])


def _rows_forward(layout, leaf, columns):
    return layout.zeros(leaf, columns.shape[-1]), columns


def _rows_backward(layout, columns, drows):
    return layout.spread(drows, columns), None


rows_of.defvjp(_rows_forward, _rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def live(layout: Layout, leaf: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The parameter; of its cotangent the selected rows go to `rows`, the others nowhere."""
    return leaf


def _live_forward(layout, leaf, rows, columns):
    return leaf, columns


def _live_backward(layout, columns, dleaf):
    return None, layout.gather(dleaf, columns), None


live.defvjp(_live_forward, _live_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def guard(message: str, leaf: jax.Array) -> jax.Array:
    """The parameter; raises ValueError with `message` where it is about to be differentiated."""
    return leaf


def _guard_forward(message, leaf):
    raise ValueError(message)


def _guard_backward(message, saved, dleaf):
    raise AssertionError("the forward rule raises")


guard.defvjp(_guard_forward, _guard_backward)
