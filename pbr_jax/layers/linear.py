"""Dense layers that keep a few columns of their input for the weight gradient.

A layer declares its parameters and columns as a `Linear`, and `applied` multiplies: several of one
input together, of which one packed copy is kept.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from pbr_jax.layers.columns import Columns, record, require, selected_columns
from pbr_jax.ops import linear, pair
from pbr_jax.ops.shardings import all_placed, spec_of, without_repeats
from pbr_jax.plans import Implementation, budget_for

Initializer = Callable[..., jax.Array]


class Linear(NamedTuple):
    """A linear layer that waits for its input.

    Attributes:
      path: of the module, for errors.
      params: `kernel [*in, *out]` and, if there is one, `bias [*out]`.
      inputs, outputs: these axes.
      columns: of the input, flattened.
      keep: fraction of them.
      dtype: to compute in; None takes that of input and parameters.
      implementation: of the weight gradient.
    """

    path: str
    params: dict[str, jax.Array]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    columns: Columns
    keep: float
    dtype: Any
    implementation: Implementation | None

    @property
    def num_columns(self) -> int:
        """D."""
        return math.prod(self.inputs)


class DenseGeneral(nn.Module):
    """Linear layer over trailing axes, `[..., *in] -> [..., *features]`: `nn.DenseGeneral`.

    A fraction `keep` of the input columns, in (0, 1], is kept for the weight gradient. With 1 it is
    the stock layer, also to `pbr_jax.prune`, which then finds its product.
    """

    features: int | Sequence[int]  # output axes
    axis: int | Sequence[int] = -1  # input axes to contract; they must be the last ones
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    keep: float = 0.1
    implementation: Implementation | None = None  # of the weight gradient
    precision: Any = None  # this and the next are the stock layer's, and refused by name
    dot_general: Any = None
    dot_general_cls: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, columns: jax.Array | None = None) -> jax.Array:
        """Applies the layer; `columns` goes before what `selection` holds, to share them."""
        given = None if columns is None else Columns(columns)
        return applied([self.declared(x, given)], x)[0]

    def declared(self, x: jax.Array, columns: Columns | None) -> Linear:
        """Parameters, and columns where none are given."""
        for name in ("precision", "dot_general", "dot_general_cls"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: must be None, since a layer of"
                    " pbr_jax.layers has a product of its own; pbr_jax.prune takes stock layers"
                )
        inputs = x.shape[x.ndim - _trailing(self.axis, x.ndim) :]
        outputs = (self.features,) if isinstance(self.features, int) else tuple(self.features)

        def init_flat(key, shape, dtype):  # fan-in and fan-out are those of the matrix, as in Flax
            matrix = self.kernel_init(key, (math.prod(inputs), math.prod(outputs)), dtype)
            if isinstance(matrix, nn.meta.AxisMetadata):  # names of the kernel's own axes
                return nn.meta.replace_boxed(matrix, nn.meta.unbox(matrix).reshape(shape))
            return matrix.reshape(shape)

        params = {"kernel": self.param("kernel", init_flat, (*inputs, *outputs), self.param_dtype)}
        if self.use_bias:
            params["bias"] = self.param("bias", self.bias_init, outputs, self.param_dtype)
        columns = columns or selected_columns(self, math.prod(inputs), self.keep)
        record(self, columns, inputs)
        path = "/".join(self.path) or "layer"
        settings = (self.keep, self.dtype, self.implementation)
        return Linear(path, params, inputs, outputs, columns, *settings)


class Dense(DenseGeneral):
    """Linear layer over the last axis, `[..., D] -> [..., F]`; drop-in for `nn.Dense`."""


class Declared(DenseGeneral):
    """A `DenseGeneral` that is applied later, together with others of its input."""

    @nn.compact
    def __call__(self, x: jax.Array, columns: Columns | None = None) -> Linear:  # type: ignore[override]
        """Its parameters and columns."""
        return self.declared(x, columns)


def linear_settings(module: nn.Module) -> dict[str, Any]:
    """Fields that a module hands on to its linear layers as they are."""
    names = ("dtype", "param_dtype", "kernel_init", "bias_init", "keep", "implementation")
    return {name: getattr(module, name) for name in names}


def promoted(x: jax.Array, dtype: Any, params: dict[str, jax.Array]) -> jax.Array:
    """The input in the dtype to compute in: `dtype`, or Flax's promotion of input and weights."""
    own = [leaf.dtype for leaf in params.values()]
    return x.astype(dtype or functools.reduce(jnp.promote_types, own, x.dtype))


def applied(layers: Sequence[Linear], x: jax.Array) -> list[jax.Array]:
    """Outputs `[..., *out]` of layers that read one input, `[..., *in]`, by the same columns."""
    first = layers[0]
    x = promoted(x, first.dtype, first.params)
    whole = budget_for(first.keep, first.num_columns) == first.num_columns
    if whole and first.columns.indices is None:
        return [_stock(layer, x) for layer in layers]

    def check(params):
        for layer in layers:
            require(layer.path, layer.columns, layer.keep, layer.num_columns)

    chosen = {} if first.columns.indices is None else {"columns": first.columns.indices}
    params = [layer.params | chosen for layer in layers]
    ys: Any = pair.bind(_together(layers, x), check)(params, x, None)  # one for each layer
    return ys


def _together(layers: Sequence[Linear], x: jax.Array) -> pair.Pair:
    """The layers as one pair over a list of `{kernel, bias, columns}`, of which x is saved once.

    The parameters are reshaped inside, so that the backward pass holds them and no copies: in a
    scan over layers each copy would be stored.
    """
    first, depth = layers[0], len(layers[0].inputs)
    settings = linear.Settings("columns", implementation=first.implementation)
    one = linear.linear_pair(settings)

    def matrices(params):
        shapes = {"kernel": (first.num_columns, -1), "bias": (-1,), "columns": (-1,)}
        return [{name: leaf.reshape(shapes[name]) for name, leaf in p.items()} for p in params]

    def outputs(params, x):
        """Every output, and the columns that are kept."""
        lead = x.shape[: x.ndim - depth]
        own, x = matrices(params), x.reshape(*lead, first.num_columns)
        y, kept = one.forward(own[0], x, None)
        ys = [y, *(linear.project(x, p["kernel"], p.get("bias")) for p in own[1:])]
        ys = [y.reshape(*lead, *layer.outputs) for y, layer in zip(ys, layers, strict=True)]
        return [*ys, kept]

    def cotangents(params, kept, dys):
        """Those of every parameter by its name, layer after layer, and that of x."""
        lead, found, dx = kept.shape[:-1], [], jnp.zeros((), kept.dtype)
        for own, matrix, dy in zip(params, matrices(params), dys, strict=True):
            dy = dy.reshape(*lead, -1)
            grads = linear.parameter_gradients(matrix, kept, dy, settings)
            found += [grads[n].reshape(own[n].shape) for n in _names(own)]
            dx = dx + linear.input_gradient(dy, matrix["kernel"])
        return [*found, dx.reshape(*lead, *first.inputs)]

    there, back = _specs(layers, x)

    def forward(params, x, aux):
        *ys, kept = all_placed(outputs, there, params, x)
        return ys, kept

    def backward(params, kept, aux, dys):
        *found, dx = all_placed(cotangents, back, params, kept, dys)
        rest = iter(found)
        grads = [{n: next(rest) for n in _names(own)} for own in params]
        # What was selected has no cotangent.
        return [dict.fromkeys(own) | grad for own, grad in zip(params, grads, strict=True)], dx

    return pair.Pair(forward, backward)


def _names(params: Mapping[str, Any]) -> list[str]:
    return sorted(set(params) - {"columns"})


def _specs(layers: Sequence[Linear], x: jax.Array) -> tuple[list[tuple] | None, list[tuple] | None]:
    """How outputs and kept columns, and cotangents lie on a mesh with explicit axes; else None."""
    given = spec_of(x)
    if given is None:
        return None, None
    depth = len(layers[0].inputs)
    lead = given[: x.ndim - depth]
    own = [(spec_of(layer.params[n]), n) for layer in layers for n in _names(layer.params)]
    specs = [(spec or (), name) for spec, name in own]
    there = [without_repeats((*lead, *s[depth:])) for s, name in specs if name == "kernel"]
    return [*there, (*lead, None)], [*(spec for spec, _ in specs), given]


def _stock(layer: Linear, x: jax.Array) -> jax.Array:
    """As Flax computes it."""
    kernel, bias = layer.params["kernel"].astype(x.dtype), layer.params.get("bias")
    axes = tuple(range(len(layer.inputs)))
    first = x.ndim - len(axes)
    y = lax.dot_general(x, kernel, ((tuple(first + a for a in axes), axes), ((), ())))
    return y if bias is None else y + bias.astype(x.dtype).reshape((1,) * first + bias.shape)


def _trailing(axis: int | Sequence[int], ndim: int) -> int:
    """How many trailing axes `axis` names."""
    axes = sorted(a % ndim for a in ((axis,) if isinstance(axis, int) else axis))
    if axes != list(range(ndim - len(axes), ndim)):
        raise ValueError(f"axis = {axis}: must be the last axes of an input with {ndim}; transpose")
    return len(axes)
