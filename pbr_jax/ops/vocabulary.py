"""The vocabulary of a language model: loss and lookup, whose large arrays never exist whole.

Float32 logits of V = 152k words are 608 kB for each token. `loss` makes those of a chunk of tokens
at a time, and while they are there their gradients too: three products of `T x V x D` in all, and
what waits for the backward pass are finished gradients that only have to be scaled by the
cotangent of a scalar. With `columns` the gradient of the table is packed, and the third product
has K of D columns.

A table that also embeds the tokens (tied) has the sum of two gradients: give `embed` and `loss` the
same `columns` and `rows`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from pbr_jax.ops.residuals import check_columns, take_columns
from pbr_jax.ops.shardings import alike

Scores = tuple[Float32[Array, " T"], Bool[Array, " T"]]

# A product with a chunk reads the whole table. Of 256 tokens it has 256 operations for each byte
# of bfloat16, which no card here does in less time than it reads the byte; where words are few,
# more tokens are as small.
_ENOUGH_TOKENS = 256
_CHUNK_BYTES = 128 * 2**20  # of float32 logits
_TILE = 16  # tokens; what tensor cores multiply at a time


class _Settings(NamedTuple):
    z_loss: float
    chunk: int


def loss(
    hidden: Float[Array, "T D"],
    table: Float[Array, "V D"],
    targets: Int32[Array, " T"],
    weights: Float32[Array, " T"],
    *,
    columns: Int32[Array, " K"] | None = None,
    rows: Float[Array, "K V"] | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> tuple[Float32[Array, ""], Scores]:
    """Weighted cross-entropy of `hidden table^T`, without the logits of all tokens at once.

        loss = sum_t w_t (nll_t + z lse_t^2),   nll_t = lse_t - logit_t[target_t]

    Only gradients that are asked for are computed: with respect to `hidden` alone (LoRA) there are
    two products instead of three.

    Args:
      hidden: final hidden states; products run in its dtype and are accumulated in float32.
      table: a row for each word; it may have a wider dtype than `hidden` (master weights).
      targets: the right word of each token. One outside `0..V-1` makes the loss NaN, unless its
        weight is 0.
      weights: of each token, constant under differentiation; what has weight 0 is not read at all.
      columns: distinct, each in 0..D-1, or D for an unused slot. Together with `rows`.
      rows: zeros. If given, the table is held constant, and the cotangent of `rows`, in their
        dtype, is the packed gradient of `table[:, columns]`, transposed.
      z_loss: z, keeps the logarithm of the normaliser near zero (PaLM, arXiv 2204.02311, uses
        1e-4).
      chunk: tokens whose logits are there at a time; None is `chunk_of` one device. Devices that
        share the tokens of a program that JAX partitions share each chunk.

    Returns:
      The loss, and of each token nll and whether its target has the largest logit; both are for
      reports: they have no gradient, and are 0 and False where the weight is 0.

    Raises:
      ValueError: shapes, columns or settings do not fit.
    """
    settings = _checked(hidden, table, z_loss, chunk)
    if (columns is None) != (rows is None):
        raise ValueError("columns and rows: one is given without the other; give both, or neither")
    if columns is not None and rows is not None:
        check_columns(columns, table.shape[1])
        table = lax.stop_gradient(table)
    weights = lax.stop_gradient(weights)
    given = alike(hidden, table, targets, weights, columns, rows)
    value, nll, right = _loss(settings, *given)
    return value, (lax.stop_gradient(nll), right)


def scores(
    hidden: Float[Array, "T D"],
    table: Float[Array, "V D"],
    targets: Int32[Array, " T"],
    weights: Float32[Array, " T"] | None = None,
    *,
    chunk: int | None = None,
) -> Scores:
    """What `loss` says of each token, for evaluation: nll, and whether the target is the first.

    Without `weights` every token counts.
    """
    if weights is None:
        weights = jnp.ones(targets.shape, jnp.float32)
    _, (nll, right) = loss(hidden, table, targets, weights, chunk=chunk)
    return nll, right


def chunk_of(tokens: int, words: int, devices: int = 1) -> int:
    """Tokens of a chunk: 256 on each device, or as many more as have 128 MiB of logits."""
    own = math.ceil(tokens / devices)
    most = max(_ENOUGH_TOKENS, _CHUNK_BYTES // (4 * words) // _TILE * _TILE)
    if own <= most:
        return tokens
    # A divisor fills up nothing; another size needs a copy of all hidden states.
    whole = [size for size in range(most, most // 2, -_TILE) if own % size == 0]
    even = math.ceil(own / math.ceil(own / most) / _TILE) * _TILE
    return (whole[0] if whole else even) * devices


def _checked(hidden, table, z_loss, chunk) -> _Settings:
    tokens, words = hidden.shape[0], table.shape[0]
    if z_loss < 0:
        raise ValueError(f"z_loss = {z_loss}: must be 0 or more; 1e-4 is usual")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk = {chunk}: must be 1 or more tokens, or None")
    return _Settings(float(z_loss), max(1, min(chunk or chunk_of(tokens, words), tokens)))


class _Asked(NamedTuple):
    """Which gradients are asked for."""

    hidden: bool = False
    table: bool = False
    rows: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(settings: _Settings, hidden, table, targets, weights, columns, rows):
    return _run(settings, _Asked(), hidden, table, targets, weights, columns, rows)[0]


def _forward(settings: _Settings, hidden, table, targets, weights, columns, rows):
    asked = _Asked(hidden.perturbed, table.perturbed, rows is not None and rows.perturbed)
    given = (hidden, table, targets, weights, columns, rows)
    values = [None if one is None else one.value for one in given]
    return _run(settings, asked, *values)


def _backward(settings: _Settings, gradients, cotangents):
    scale = cotangents[0]
    if isinstance(scale, jax.custom_derivatives.SymbolicZero):
        return (None,) * 6
    dh, dtable, drows = (
        None if one is None else (scale * one.astype(jnp.float32)).astype(one.dtype)
        for one in gradients
    )
    return dh, dtable, None, None, None, drows


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(settings: _Settings, asked: _Asked, hidden, table, targets, weights, columns, rows):
    """`(loss, nll, right), (dhidden, dtable, drows)`, None for a gradient that nobody asked for."""
    kernel, tokens = table.astype(hidden.dtype), hidden.shape[0]
    # A chunk has every `turns`-th token, so that devices which share the tokens share each chunk.
    turns = math.ceil(tokens / settings.chunk)
    x, t, w = (_cut(a, settings.chunk, turns) for a in (hidden, targets, weights))
    sums = {
        "hidden": jnp.zeros_like(x) if asked.hidden else None,
        "table": jnp.zeros(table.shape, jnp.float32) if asked.table else None,
        "rows": jnp.zeros(rows.shape, jnp.float32) if asked.rows else None,
    }
    sums, _ = alike(sums, hidden)

    def turn(sums: dict[str, Any], index: jax.Array):
        part = [lax.dynamic_index_in_dim(a, index, 1, keepdims=False) for a in (x, t, w)]
        found, read, dlogits = _chunk(settings, kernel, *part)
        sums = dict(sums)
        if asked.hidden:
            dh = _product("cv,vd->cd", dlogits, kernel).astype(hidden.dtype)
            sums["hidden"] = lax.dynamic_update_index_in_dim(sums["hidden"], dh, index, 1)
        if asked.table:
            sums["table"] += _product("cv,cd->vd", dlogits, read)
        if asked.rows:
            sums["rows"] += _product("ck,cv->kv", take_columns(read, columns), dlogits)
        return sums, found

    sums, (value, nll, right) = lax.scan(turn, sums, jnp.arange(turns))
    dh, dtable, drows = sums["hidden"], sums["table"], sums["rows"]
    gradients = (
        None if dh is None else _joined(dh, tokens),
        None if dtable is None else dtable.astype(table.dtype),
        None if drows is None else drows.astype(rows.dtype),
    )
    return (jnp.sum(value), _joined(nll.T, tokens), _joined(right.T, tokens)), gradients


def _chunk(settings: _Settings, kernel, x, targets, weights):
    """Of C tokens `(loss, nll, right)`, what was read of x, and `dloss/dlogits` in its dtype.

    x is not read where the weight is 0: what is filled up may hold anything.
    """
    scored = weights != 0
    x = jnp.where(scored[:, None], x, jnp.zeros((), x.dtype))
    logits = _product("cd,vd->cv", x, kernel)
    # One pass over the logits finds the largest and where it is.
    first = jnp.argmax(logits, axis=-1)
    largest = jnp.take_along_axis(logits, first[:, None], axis=-1)
    lse = largest + jnp.log(jnp.sum(jnp.exp(logits - largest), axis=-1, keepdims=True))
    is_word = (targets >= 0) & (targets < kernel.shape[0])
    own = jnp.where(is_word, targets, 0)[:, None]
    nll = jnp.where(is_word, (lse - jnp.take_along_axis(logits, own, axis=-1))[:, 0], jnp.nan)
    nll = jnp.where(scored, nll, 0.0)
    value = weights * (nll + settings.z_loss * jnp.square(lse[:, 0]))
    share = jnp.exp(logits - lse) * (1 + 2 * settings.z_loss * lse)
    words = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    dlogits = weights[:, None] * jnp.where(words == own, share - 1, share)
    return (value, nll, scored & (first == targets)), x, dlogits.astype(x.dtype)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _cut(a: jax.Array, chunk: int, turns: int) -> jax.Array:
    """`[T, ...] -> [C, turns, ...]`, filled up with zeros."""
    missing = chunk * turns - a.shape[0]
    if missing:
        a = jnp.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1))
    return a.reshape(chunk, turns, *a.shape[1:])


def _joined(a: jax.Array, tokens: int) -> jax.Array:
    """`[C, turns, ...] -> [T, ...]`, without what `_cut` filled up."""
    return a.reshape(-1, *a.shape[2:])[:tokens]


def embed(
    table: Float[Array, "V D"],
    tokens: Int32[Array, "..."],
    *,
    columns: Int32[Array, " K"] | None = None,
    rows: Float[Array, "K V"] | None = None,
) -> Float[Array, "... D"]:
    """`table[tokens]`, in the dtype of the table; NaN where a token is no word.

    `columns` and `rows` are as for `loss`: the cotangent of `rows` is the packed gradient, and no
    `[V, D]` of zeros with a few rows in it is ever made.

    Raises:
      ValueError: one of `columns` and `rows` without the other, or columns that do not fit.
    """
    if (columns is None) != (rows is None):
        raise ValueError("columns and rows: one is given without the other; give both, or neither")
    if columns is None or rows is None:
        return jnp.take(table, tokens, axis=0)
    check_columns(columns, table.shape[1])
    return _packed_lookup(*alike(lax.stop_gradient(table), tokens, columns, rows))


@jax.custom_vjp
def _packed_lookup(table, tokens, columns, rows):
    return jnp.take(table, tokens, axis=0)


def _lookup_forward(table, tokens, columns, rows):
    return _packed_lookup(table, tokens, columns, rows), (tokens, columns, rows)


def _lookup_backward(saved, dy):
    tokens, columns, rows = saved
    kept = take_columns(dy, columns).reshape(-1, columns.shape[0]).astype(jnp.float32)
    total = jnp.zeros(rows.shape, jnp.float32).at[:, tokens.reshape(-1)].add(kept.T, mode="drop")
    return None, None, None, total.astype(rows.dtype)


_packed_lookup.defvjp(_lookup_forward, _lookup_backward)
