"""Linen layers that keep a few columns of their input for the backward pass.

Drop-in for `nn.Dense`, `nn.DenseGeneral`, `nn.LayerNorm` and `nn.MultiHeadDotProductAttention`,
with the stock parameter tree: a checkpoint of one loads into the other. Forward pass and dx are
exact; of a kernel's gradient the selected rows are exact and the others zero.

Which columns: those in the collection `selection`, where `columns`, int32 `[K]`, sits beside the
`kernel` it belongs to; or else a uniform draw from the PRNG stream `selection`. Made mutable, the
collection returns the columns used and, for `pbr_jax.freeze_unselected`, the mask `selected` over
the kernel's input axes:

    logits, drawn = model.apply(
        {"params": params}, x, rngs={"selection": key}, mutable=["selection"]
    )

Under differentiation with neither, a layer raises: it never falls back to saving everything.
Optimizers move parameters whose gradient is zero (momentum, weight decay);
`pbr_jax.freeze_unselected` stops that.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.ops import attention, gelu, layer_norm, linear, pair
from pbr_jax.ops.arrays import sample_keys
from pbr_jax.ops.visibility import Visibility, dropout_seeds
from pbr_jax.plans import Implementation, budget_for

Initializer = Callable[..., jax.Array]


class DenseGeneral(nn.Module):
    """Linear layer over trailing axes, `[..., *in] -> [..., *features]`: `nn.DenseGeneral`.

    A fraction `keep` of the input columns, in (0, 1], is kept for the weight gradient; 1 is the
    stock layer.
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

    @nn.compact
    def __call__(self, x: jax.Array, columns: jax.Array | None = None) -> jax.Array:
        """Applies the layer; `columns` goes before what `selection` holds, to share them."""
        contracted = _trailing(self.axis, x.ndim)
        inputs = x.shape[x.ndim - contracted :]
        outputs = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        num_inputs, num_outputs = math.prod(inputs), math.prod(outputs)

        def init_flat(key, shape, dtype):  # fan-in and fan-out are those of the matrix, as in Flax
            return self.kernel_init(key, (num_inputs, num_outputs), dtype).reshape(shape)

        shape = (*inputs, *outputs)
        params = {"kernel": self.param("kernel", init_flat, shape, self.param_dtype)}
        if self.use_bias:
            params["bias"] = self.param("bias", self.bias_init, outputs, self.param_dtype)
        # To the op both are matrices: leading axes of the input stay, its trailing ones are one.
        batch = x.shape[: x.ndim - contracted]
        x = _cast(x, self.dtype, self.param_dtype).reshape(*batch, num_inputs)
        columns = selected_columns(self, num_inputs, self.keep) if columns is None else columns
        if columns is not None:
            _record(self, columns, inputs)
            params["columns"] = columns
        check = functools.partial(_require_columns, self.path, self.keep, num_inputs)
        apply = pair.bind(_flat_linear(num_inputs, num_outputs, self.implementation), check)
        return apply(params, x, None).reshape(*batch, *outputs)


class Dense(DenseGeneral):
    """Linear layer over the last axis, `[..., D] -> [..., F]`; drop-in for `nn.Dense`."""


class LayerNorm(nn.Module):
    """Layer normalisation that saves one array; drop-in for `nn.LayerNorm` over the last axis."""

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Ones and zeros stand in for what the layer does not learn.
        shape = x.shape[-1:]
        scale, bias = jnp.ones(shape, self.param_dtype), jnp.zeros(shape, self.param_dtype)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        x = _cast(x, self.dtype, self.param_dtype)
        return layer_norm.layer_norm(x, scale, bias, epsilon=self.epsilon)


class MultiHeadDotProductAttention(nn.Module):
    """Multi-head attention that stores no N x N array; drop-in for Flax's of the same name.

    In self-attention query, key and value share their input, and so their columns. Dropout of the
    attention weights draws for every sample and head (Flax's `broadcast_dropout=False`).
    Autoregressive decoding is not offered.
    """

    num_heads: int  # H; divides `qkv_features`
    qkv_features: int | None = None  # None takes the width of the input
    out_features: int | None = None  # likewise
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    residual: str = "flash"  # what attention keeps, a kind of `pbr_jax.ops.attention`
    keep: float = 0.1  # fraction of columns kept by the four linear layers
    attention_keep: float = 0.2  # fraction kept by the residuals "channels" and "elements"
    dropout_rate: float = 0.0  # of the attention weights, from the stream `dropout`
    deterministic: bool | None = None  # no dropout; here or in the call, if there is a rate
    implementation: Implementation | None = None  # of attention and the linear layers

    @nn.compact
    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_k: jax.Array | None = None,
        inputs_v: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        deterministic: bool | None = None,
    ) -> jax.Array:
        """`[B, N, D] (, [B, M, D], [B, M, D]) -> [B, N, out]`; `mask` bool, like `[B, H, N, M]`."""
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        width = self.qkv_features or inputs_q.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"num_heads = {self.num_heads}: must divide qkv_features = {width}")
        settings = _linear_settings(self) | {"use_bias": self.use_bias}
        layer: Callable[..., DenseGeneral] = functools.partial(DenseGeneral, **settings)
        heads = (self.num_heads, width // self.num_heads)
        columns: dict[int, jax.Array | None] = {}  # of each input: one selection per activation
        projected = []
        for name, x in (("query", inputs_q), ("key", inputs_k), ("value", inputs_v)):
            projection = layer(heads, name=name)
            if id(x) not in columns:
                columns[id(x)] = selected_columns(projection, x.shape[-1], self.keep)
            projected.append(jnp.swapaxes(projection(x, columns[id(x)]), -3, -2))
        q, k, v = projected
        rate, seeds = self.dropout_rate, None
        if rate > 0 and nn.merge_param("deterministic", self.deterministic, deterministic):
            rate = 0.0
        if rate > 0:
            seeds = dropout_seeds(sample_keys(self.make_rng("dropout"), q.shape[0]))
        out = attention.attention(
            q,
            k,
            v,
            Visibility(mask=mask, seeds=seeds),
            dropout=rate,
            kind=self.residual,
            keep=self.attention_keep,
            implementation=self.implementation,
        )
        features = self.out_features or inputs_q.shape[-1]
        return layer(features, axis=(-2, -1), name="out")(jnp.swapaxes(out, -3, -2))


class MlpBlock(nn.Module):
    """`Dense -> GELU -> Dense`, the MLP of a transformer; parameters `Dense_0`, `Dense_1`."""

    mlp_dim: int  # hidden width
    out_dim: int | None = None  # None takes the width of the input
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.normal(1e-6)
    keep: float = 0.1  # fraction of columns kept by both layers
    approximate: bool = False  # tanh form of GELU
    implementation: Implementation | None = None  # of the weight gradients

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer: Callable[..., Dense] = functools.partial(Dense, **_linear_settings(self))
        u = layer(self.mlp_dim, name="Dense_0")(x)
        g = gelu.gelu(u, approximate=self.approximate)
        return layer(self.out_dim or x.shape[-1], name="Dense_1")(g)


def _linear_settings(module: nn.Module) -> dict[str, Any]:
    """Fields that a module hands on to its linear layers as they are."""
    names = ("dtype", "param_dtype", "kernel_init", "bias_init", "keep", "implementation")
    return {name: getattr(module, name) for name in names}


def selected_columns(module: nn.Module, num_columns: int, keep: float) -> jax.Array | None:
    """The columns handed to `module`, or a uniform draw of `budget_for(keep, D)`, or None."""
    if module.has_variable("selection", "columns"):
        return module.get_variable("selection", "columns")
    budget = budget_for(keep, num_columns)
    if budget == num_columns or not module.has_rng("selection"):
        return None
    # The beginning of a random order is a uniform draw without repetition.
    columns = jnp.arange(num_columns, dtype=jnp.int32)
    return jnp.sort(jax.random.permutation(module.make_rng("selection"), columns)[:budget])


def _record(module: nn.Module, columns: jax.Array, inputs: tuple[int, ...]) -> None:
    if module.is_mutable_collection("selection") and not module.is_initializing():
        selected = jnp.zeros((math.prod(inputs),), bool).at[columns].set(True, mode="drop")
        module.put_variable("selection", "columns", columns)
        module.put_variable("selection", "selected", selected.reshape(inputs))


def _flat_linear(
    num_inputs: int, num_outputs: int, implementation: Implementation | None
) -> pair.Pair:
    """The linear layer for a kernel `[*in, *out]`, seen as a matrix `[D, F]`.

    The parameters are reshaped inside, so that the backward pass holds them and no copies: in a
    scan over layers each copy would be stored.
    """
    shapes = {"kernel": (num_inputs, num_outputs), "bias": (num_outputs,)}
    matrix = linear.linear_pair(linear.Settings("columns", implementation=implementation))

    def flat(params):
        return {name: p.reshape(shapes.get(name, p.shape)) for name, p in params.items()}

    def forward(params, x, aux):
        return matrix.forward(flat(params), x, aux)

    def backward(params, saved, aux, dy):
        grads, dx = matrix.backward(flat(params), saved, aux, dy)
        grads = {n: g if g is None else g.reshape(params[n].shape) for n, g in grads.items()}
        return grads, dx

    return pair.Pair(forward, backward)


def _require_columns(path: tuple[str, ...], keep: float, num_inputs: int, params: dict) -> None:
    if "columns" not in params and budget_for(keep, num_inputs) < num_inputs:
        raise ValueError(
            f"{'/'.join(path) or 'layer'}: keep = {keep} but no columns were given for the backward"
            ' pass; pass rngs={"selection": key} or the collection "selection" to apply,'
            " or set keep=1"
        )


def _trailing(axis: int | Sequence[int], ndim: int) -> int:
    """How many trailing axes `axis` names."""
    axes = sorted(a % ndim for a in ((axis,) if isinstance(axis, int) else axis))
    if axes != list(range(ndim - len(axes), ndim)):
        raise ValueError(f"axis = {axis}: must be the last axes of an input with {ndim}; transpose")
    return len(axes)


def _cast(x: jax.Array, dtype: Any, param_dtype: Any) -> jax.Array:
    """The input in the dtype to compute in: `dtype`, or Flax's promotion of input and weights."""
    return x.astype(dtype or jnp.promote_types(x.dtype, param_dtype))
