"""The two halves of a transformer block as single differentiable functions.

    pre-norm    x + proj(attention(qkv(h))), h = norm1(x)     x + fc2(gelu(fc1(h))), h = norm2(x)
    post-norm   h + proj(attention(qkv(h))), h = norm1(x)     h + fc2(gelu(fc1(h))), h = norm2(x)

Each half is a pair (see `pbr_jax.ops.pair`), so that one residual serves several consumers. The
LayerNorm's residual also gives the input of the linear layer behind it, and attention's output is
the input of `proj`: where a kind of residual allows it, those inputs are not kept.

Post-norm (BERT) is commonly written `LayerNorm(x + f(x))`. Here a half begins with the LayerNorm
that ends the half before it, and a block hands on the sum that is not normalised yet. One residual
then serves that LayerNorm and the linear layer behind it, as in pre-norm, and nothing else is kept
of a block's input. `norm1` of the first block is the LayerNorm of the embeddings, and that of the
last `fc2` comes after all blocks.

`params` holds one dict per layer: `norm1`, `norm2` with `scale, bias`; `qkv`, `proj`, `fc1`, `fc2`
with `kernel, bias` and, where pruned, `columns`, `rows`, `active` (see `pbr_jax.ops.linear`).

`aux` may hold

* `keys`, one PRNG key per sample, for dropout and stochastic codes;
* `visibility`, a `pbr_jax.ops.visibility.Visibility`, whose seeds are drawn from `keys` here;
* `embedded`, bool `[B]`, True in the block whose input are the embeddings.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops import attention, gelu, layer_norm, linear, linear_gelu, residuals
from pbr_jax.ops.block_dropout import (
    Use,
    attention_visibility,
    dropout,
    embedding_dropout,
    keys_for,
)
from pbr_jax.ops.pair import Pair, recompute, sequence
from pbr_jax.plans import SITES, ResidualPlan


class BlockShape(NamedTuple):
    """Static description of a block."""

    num_heads: int  # H
    epsilon: float = 1e-6  # of both LayerNorms
    # rate on both branches; pre-norm also behind GELU (ViT), post-norm also on the normalised
    # embeddings (BERT)
    dropout: float = 0.0
    approximate_gelu: bool = False  # tanh form instead of erf
    post_norm: bool = False  # the skip connection starts behind the LayerNorm
    causal: bool = False  # a token sees no token behind it
    attention_dropout: float = 0.0  # rate at which attention drops probabilities


class AttentionResidual(NamedTuple):
    """Residual of an attention half; None where another one holds the same information."""

    norm: Any
    qkv_input: Any
    attention: Any
    proj_input: Any


class MlpResidual(NamedTuple):
    """Residual of an MLP half; None where another one holds the same information."""

    norm: Any
    fc1_input: Any
    gelu: Any
    fc2_input: Any


def transformer_block(plan: ResidualPlan, shape: BlockShape) -> tuple[Pair, ...]:
    """A whole block, `[B, N, D] -> [B, N, D]`, that keeps what `plan` says, for `ops.stack`."""
    halves = attention_half(plan, shape), mlp_half(plan, shape)
    return (recompute(sequence(*halves)),) if plan.recompute else halves


def attention_half(plan: ResidualPlan, shape: BlockShape) -> Pair:
    """`x or h + dropout(proj(attention(qkv(h))))`, `h = norm1(x)`, as a pair."""
    norm = _norm_settings(plan, shape)
    qkv, proj = _linear_settings(plan, "qkv"), _linear_settings(plan, "proj")
    kind, input_dropout = plan.kind("attention"), shape.dropout if shape.post_norm else 0.0
    settings = attention.Settings(
        kind=plan.attention,
        keep=plan.attention_keep if kind.has_own_keep else _largest_keep(plan),
        causal=shape.causal,
        dropout=shape.attention_dropout,
        implementation=plan.implementation,
    )
    # The input of `qkv` comes out of LayerNorm's residual, that of `proj` out of attention's.
    keep_qkv_input = not _rebuilt_from_norm(plan)
    keep_proj_input = not (plan.kind("linear").rebuildable and kind.keeps_output)

    def q_k_v(h, params):
        return _heads(linear.project(h, params["kernel"], params["bias"]), 3, shape)

    def rebuild(params, residual, aux, dy, columns=None):
        h = _rebuild(plan, residual.norm, params["norm1"], dy, columns)
        return embedding_dropout(h, aux, input_dropout, dy, columns)

    def forward(params, x, aux):
        h, norm_residual = layer_norm.forward(params["norm1"], x, norm)
        h = embedding_dropout(h, aux, input_dropout, x)
        heads = q_k_v(h, params["qkv"])
        visibility = attention_visibility(aux, shape.attention_dropout)
        out, attention_residual = attention.forward(heads, visibility, settings)
        merged = _merge_heads(out)
        y = linear.project(merged, params["proj"]["kernel"], params["proj"]["bias"])
        residual = AttentionResidual(
            norm=norm_residual,
            qkv_input=linear.save_input(h, params["qkv"], qkv) if keep_qkv_input else None,
            attention=attention_residual,
            proj_input=linear.save_input(merged, params["proj"], proj) if keep_proj_input else None,
        )
        skip = h if shape.post_norm else x
        return skip + dropout(y, aux, Use.PROJ, shape.dropout), residual

    def backward(params, residual, aux, dy):
        # proj
        d_branch = dropout(dy, aux, Use.PROJ, shape.dropout)
        proj_input = residual.proj_input
        if not keep_proj_input:
            merged = _merge_heads(residual.attention.out)
            proj_input = linear.save_input(merged, params["proj"], proj)
        d_proj = linear.parameter_gradients(params["proj"], proj_input, d_branch, proj)
        d_merged = linear.input_gradient(d_branch, params["proj"]["kernel"])

        # attention
        d_out = _heads(d_merged, 1, shape)[0]
        attention_residual = residual.attention
        if kind.recomputes_heads:
            h = rebuild(params, residual, aux, dy)
            attention_residual = q_k_v(h, params["qkv"])
        visibility = attention_visibility(aux, shape.attention_dropout)
        d_heads = attention.backward(attention_residual, visibility, d_out, dy.shape[1], settings)

        # Barrier: otherwise XLA rebuilds the input of qkv before attention's backward pass, and
        # holds it meanwhile.
        d_qkv, norm1 = lax.optimization_barrier((_merge_heads(*d_heads), params["norm1"]))
        params = params | {"norm1": norm1}

        # qkv
        qkv_input = residual.qkv_input
        if not keep_qkv_input:
            qkv_input = rebuild(params, residual, aux, dy, params["qkv"].get("columns"))
        d_qkv_params = linear.parameter_gradients(params["qkv"], qkv_input, d_qkv, qkv)
        dh = linear.input_gradient(d_qkv, params["qkv"]["kernel"])

        # LayerNorm; the skip connection joins before it in post-norm and behind it in pre-norm.
        if shape.post_norm:
            dh = embedding_dropout(dh + dy, aux, input_dropout, dy)
        skip = None if shape.post_norm else dy
        d_norm, dx = layer_norm.backward(params["norm1"], residual.norm, dh, norm, skip)
        return {"norm1": d_norm, "qkv": d_qkv_params, "proj": d_proj}, dx

    return Pair(forward, backward)


def mlp_half(plan: ResidualPlan, shape: BlockShape) -> Pair:
    """`x or h + dropout(fc2(dropout(gelu(fc1(h)))))`, `h = norm2(x)`, as a pair."""
    norm = _norm_settings(plan, shape)
    fc1, fc2 = _linear_settings(plan, "fc1"), _linear_settings(plan, "fc2")
    activation = gelu.Settings(plan.gelu, shape.approximate_gelu, plan.implementation)
    hidden_dropout = 0.0 if shape.post_norm else shape.dropout
    keep_fc1_input = not _rebuilt_from_norm(plan)

    def forward(params, x, aux):
        h, norm_residual = layer_norm.forward(params["norm2"], x, norm)
        # The op packs the columns that fc2 keeps in passing, unless dropout changes them after it.
        dropped = "keys" in aux and hidden_dropout > 0
        packs = plan.kind("linear").selects and not dropped
        a, gelu_residual, packed = linear_gelu.forward(
            h,
            params["fc1"]["kernel"],
            params["fc1"]["bias"],
            activation,
            keys=keys_for(aux, Use.CODES) if plan.stochastic_codes else None,
            columns=params["fc2"].get("columns") if packs else None,
        )
        a = dropout(a, aux, Use.HIDDEN, hidden_dropout)
        y = linear.project(a, params["fc2"]["kernel"], params["fc2"]["bias"])
        residual = MlpResidual(
            norm=norm_residual,
            fc1_input=linear.save_input(h, params["fc1"], fc1) if keep_fc1_input else None,
            gelu=gelu_residual,
            fc2_input=linear.save_input(a, params["fc2"], fc2) if packed is None else packed,
        )
        skip = h if shape.post_norm else x
        return skip + dropout(y, aux, Use.FC2, shape.dropout), residual

    def backward(params, residual, aux, dy):
        # fc2
        d_branch = dropout(dy, aux, Use.FC2, shape.dropout)
        d_fc2 = linear.parameter_gradients(params["fc2"], residual.fc2_input, d_branch, fc2)

        # The input gradient of fc2, times the derivative of GELU.
        du = linear_gelu.input_gradient(
            d_branch,
            params["fc2"]["kernel"],
            residual.gelu,
            activation,
            stochastic=plan.stochastic_codes,
        )
        # Dropout lies between the two, and all three multiply: their order does not matter.
        du = dropout(du, aux, Use.HIDDEN, hidden_dropout)

        # fc1
        fc1_input = residual.fc1_input
        if not keep_fc1_input:
            columns = params["fc1"].get("columns")
            fc1_input = _rebuild(plan, residual.norm, params["norm2"], dy, columns)
        d_fc1 = linear.parameter_gradients(params["fc1"], fc1_input, du, fc1)
        dh = linear.input_gradient(du, params["fc1"]["kernel"])

        # LayerNorm; the skip connection joins before it in post-norm and behind it in pre-norm.
        if shape.post_norm:
            dh = dh + dy
        skip = None if shape.post_norm else dy
        d_norm, dx = layer_norm.backward(params["norm2"], residual.norm, dh, norm, skip)
        return {"norm2": d_norm, "fc1": d_fc1, "fc2": d_fc2}, dx

    return Pair(forward, backward)


def _largest_keep(plan: ResidualPlan) -> float:
    return max(plan.keep_at(site) for site in SITES)


def _linear_settings(plan: ResidualPlan, site: str) -> linear.Settings:
    return linear.Settings(plan.linear, plan.keep_at(site), plan.implementation)


def _norm_settings(plan: ResidualPlan, shape: BlockShape) -> layer_norm.Settings:
    implementation = plan.implementation
    dense_beside_columns = plan.kind("linear").selects and not plan.kind("layer_norm").eight_bits
    if implementation is None and dense_beside_columns and not plan.recompute:
        implementation = "xla"  # compiled, a ViT-B/16 step needs 39 MB more with the kernel
    return layer_norm.Settings(plan.layer_norm, _largest_keep(plan), shape.epsilon, implementation)


def _rebuilt_from_norm(plan: ResidualPlan) -> bool:
    """Whether a LayerNorm's residual is enough for the linear layer behind it."""
    return plan.kind("linear").rebuildable and plan.kind("layer_norm").rebuilds


def _rebuild(plan: ResidualPlan, norm_residual, norm_params, dy, columns=None) -> jax.Array:
    """A LayerNorm's output, or the selected columns of it, from its residual."""
    x_hat, _ = plan.kind("layer_norm").restore(norm_residual, dy.shape, dy.dtype)
    if columns is not None:
        x_hat = residuals.take_columns(x_hat, columns)
        norm_params = {name: residuals.take_columns(v, columns) for name, v in norm_params.items()}
    return layer_norm.affine(x_hat, norm_params, dy.dtype)


def _heads(x: jax.Array, parts: int, shape: BlockShape) -> jax.Array:
    """`[B, N, parts * H * head] -> [parts, B, H, N, head]`."""
    batch, tokens, width = x.shape
    split = x.reshape(batch, tokens, parts, shape.num_heads, width // (parts * shape.num_heads))
    return jnp.transpose(split, (2, 0, 3, 1, 4))


def _merge_heads(*parts: jax.Array) -> jax.Array:
    """Arrays `[B, H, N, head]` side by side as `[B, N, parts * H * head]`."""
    merged = [jnp.swapaxes(p, 1, 2).reshape(p.shape[0], p.shape[2], -1) for p in parts]
    return merged[0] if len(merged) == 1 else jnp.concatenate(merged, axis=-1)


def check_selection(plan: ResidualPlan, params: dict) -> None:
    """Raises ValueError if `plan` prunes a site by columns and `params` brings none for it."""
    if not plan.kind("linear").selects:
        return
    missing = [site for site in SITES if plan.keep_at(site) < 1 and "columns" not in params[site]]
    if missing:
        raise ValueError(
            f"selection is missing for {', '.join(missing)}: the plan keeps columns of these sites,"
            " so the backward pass needs them; pass variables['selection'], or use keep = 1 to"
            " train them dense"
        )
