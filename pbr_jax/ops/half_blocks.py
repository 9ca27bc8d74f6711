"""The two halves of a transformer block as single differentiable functions.

    pre-norm    x + proj(attention(qkv(h))), h = norm1(x)     x + fc2(gelu(fc1(h))), h = norm2(x)
    post-norm   h + proj(attention(qkv(h))), h = norm1(x)     h + fc2(gelu(fc1(h))), h = norm2(x)

Written as pairs (see `pbr_jax.ops.pair`), so that one residual serves several consumers: the
LayerNorm residual also gives the input of the linear layer behind it, and attention's output that
of `proj`.

Post-norm (BERT) is commonly written `LayerNorm(x + f(x))`. Here a half begins with the LayerNorm
that ends the half before it, and a block hands on the sum that is not normalised yet. So one
residual serves the backward pass of that LayerNorm and the linear layer behind it, as in pre-norm,
also from one block to the next: nothing else is kept of a block's input. `norm1` of the first block
is then the LayerNorm of the embeddings, and that of the last `fc2` comes after all blocks.

`params` holds one dict per layer: `norm1`, `norm2` with `scale, bias`; `qkv`, `proj`, `fc1`, `fc2`
with `kernel, bias` and, where pruned, `columns`, `rows`, `active` (see `pbr_jax.ops.linear`). `aux`
may hold `keys`, one PRNG key per sample, for dropout and stochastic codes, `visibility` for
attention, a `pbr_jax.ops.visibility.Visibility` whose seeds are drawn from `keys` here, and
`embedded`, bool `[B]`, True in the block whose input are the embeddings.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops import attention, layer_norm, linear, linear_gelu, residuals
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
    """Static description of a block.

    Attributes:
      num_heads: H.
      epsilon: of both LayerNorms.
      dropout: rate on both branches; pre-norm also behind GELU (ViT), post-norm also on the
        normalised embeddings (BERT).
      approximate_gelu: tanh form instead of erf.
      post_norm: the skip connection starts behind the LayerNorm.
      causal: a token sees no token behind it.
      attention_dropout: rate at which attention drops probabilities.
    """

    num_heads: int
    epsilon: float = 1e-6
    dropout: float = 0.0
    approximate_gelu: bool = False
    post_norm: bool = False
    causal: bool = False
    attention_dropout: float = 0.0


class AttentionResidual(NamedTuple):
    """None where another residual holds the same information."""

    norm: Any
    qkv_input: Any
    attention: Any
    proj_input: Any


class MlpResidual(NamedTuple):
    """None where another residual holds the same information."""

    norm: Any
    fc1_input: Any
    gelu: Any
    fc2_input: Any


def transformer_block(plan: ResidualPlan, shape: BlockShape) -> tuple[Pair, ...]:
    """A whole block, `[B, N, D] -> [B, N, D]`, that keeps what `plan` says, for `pair.stack`."""
    halves = attention_half(plan, shape), mlp_half(plan, shape)
    return (recompute(sequence(*halves)),) if plan.recompute else halves


def attention_half(plan: ResidualPlan, shape: BlockShape) -> Pair:
    """`x or h + dropout(proj(attention(qkv(h))))`, `h = norm1(x)`, as a pair."""
    norm = _norm_settings(plan, shape)
    input_dropout = shape.dropout if shape.post_norm else 0.0
    again = plan.attention == "recompute"
    settings = attention.Settings(
        kind="qkv" if again else plan.attention,
        keep=plan.attention_keep if plan.attention == "channels" else plan.keep.largest,
        causal=shape.causal,
        dropout=shape.attention_dropout,
        implementation=plan.implementation,
    )

    def q_k_v(h, params):
        return _heads(linear.project(h, params["kernel"], params["bias"]), 3, shape)

    def rebuild(params, saved, aux, dy, columns=None):
        h = _rebuild(saved.norm, params["norm1"], dy, columns)
        return embedding_dropout(h, aux, input_dropout, dy, columns)

    def forward(params, x, aux):
        h, norm_saved = layer_norm.forward(params["norm1"], x, norm)
        h = embedding_dropout(h, aux, input_dropout, x)
        heads = q_k_v(h, params["qkv"])
        out, attention_saved = attention.forward(
            heads, attention_visibility(aux, shape.attention_dropout), settings
        )
        merged = _merge_heads(out)
        y = linear.project(merged, params["proj"]["kernel"], params["proj"]["bias"])
        saved = AttentionResidual(
            norm=norm_saved,
            qkv_input=_save_behind_norm(h, params["qkv"], norm_saved, plan, plan.keep.qkv),
            attention=None if again else attention_saved,
            proj_input=None
            if isinstance(attention_saved, attention.Flash) and plan.linear in ("dense", "columns")
            else linear.save_input(merged, params["proj"], plan.linear, plan.keep.proj),
        )
        return (h if shape.post_norm else x) + dropout(y, aux, Use.PROJ, shape.dropout), saved

    def backward(params, saved, aux, dy):
        d_branch = dropout(dy, aux, Use.PROJ, shape.dropout)
        proj_input = saved.proj_input
        if proj_input is None:
            proj_input = linear.save_input(
                _merge_heads(saved.attention.out), params["proj"], plan.linear
            )
        d_proj = linear.parameter_gradients(
            params["proj"], proj_input, d_branch, plan.implementation
        )
        d_merged = linear.input_gradient(d_branch, params["proj"]["kernel"])
        d_out = _heads(d_merged, 1, shape)[0]
        attention_saved = saved.attention
        if again:
            h = rebuild(params, saved, aux, dy)
            attention_saved = q_k_v(h, params["qkv"])
        d_heads = attention.backward(
            attention_saved,
            attention_visibility(aux, shape.attention_dropout),
            d_out,
            dy.shape[1],
            settings,
        )
        # Behind attention: XLA would rebuild the input of qkv before it, and hold it meanwhile.
        d_qkv, norm1 = lax.optimization_barrier((_merge_heads(*d_heads), params["norm1"]))
        params = params | {"norm1": norm1}
        qkv_input = saved.qkv_input
        if qkv_input is None:
            qkv_input = rebuild(params, saved, aux, dy, params["qkv"].get("columns"))
        d_qkv_params = linear.parameter_gradients(
            params["qkv"], qkv_input, d_qkv, plan.implementation
        )
        dh = linear.input_gradient(d_qkv, params["qkv"]["kernel"])
        if shape.post_norm:
            dh = embedding_dropout(dh + dy, aux, input_dropout, dy)
        skip = None if shape.post_norm else dy
        d_norm, dx = layer_norm.backward(params["norm1"], saved.norm, dh, norm, skip)
        d_params = {"norm1": d_norm, "qkv": d_qkv_params, "proj": d_proj}
        return d_params, dx

    return Pair(forward, backward)


def mlp_half(plan: ResidualPlan, shape: BlockShape) -> Pair:
    """`x or h + dropout(fc2(dropout(gelu(fc1(h)))))`, `h = norm2(x)`, as a pair."""
    norm = _norm_settings(plan, shape)
    approximate = shape.approximate_gelu
    hidden_dropout = 0.0 if shape.post_norm else shape.dropout

    def code_keys(aux):
        return keys_for(aux, Use.CODES) if plan.stochastic_codes else None

    def forward(params, x, aux):
        h, norm_saved = layer_norm.forward(params["norm2"], x, norm)
        dropped = "keys" in aux and hidden_dropout > 0
        columns = params["fc2"].get("columns") if plan.linear == "columns" else None
        a, gelu_saved, packed = linear_gelu.forward(
            h,
            params["fc1"]["kernel"],
            params["fc1"]["bias"],
            plan.gelu,
            approximate=approximate,
            keys=code_keys(aux),
            columns=None if dropped else columns,
            implementation=plan.implementation,
        )
        a = dropout(a, aux, Use.HIDDEN, hidden_dropout)
        y = linear.project(a, params["fc2"]["kernel"], params["fc2"]["bias"])
        saved = MlpResidual(
            norm=norm_saved,
            fc1_input=_save_behind_norm(h, params["fc1"], norm_saved, plan, plan.keep.fc1),
            gelu=gelu_saved,
            fc2_input=linear.save_input(a, params["fc2"], plan.linear, plan.keep.fc2)
            if packed is None
            else packed,
        )
        return (h if shape.post_norm else x) + dropout(y, aux, Use.FC2, shape.dropout), saved

    def backward(params, saved, aux, dy):
        d_branch = dropout(dy, aux, Use.FC2, shape.dropout)
        d_fc2 = linear.parameter_gradients(
            params["fc2"], saved.fc2_input, d_branch, plan.implementation
        )
        du = linear_gelu.input_gradient(
            d_branch,
            params["fc2"]["kernel"],
            saved.gelu,
            approximate=approximate,
            stochastic=plan.stochastic_codes,
            implementation=plan.implementation,
        )
        du = dropout(du, aux, Use.HIDDEN, hidden_dropout)  # of da: scales it, as the derivative
        fc1_input = saved.fc1_input
        if fc1_input is None:
            fc1_input = _rebuild(saved.norm, params["norm2"], dy, params["fc1"].get("columns"))
        d_fc1 = linear.parameter_gradients(params["fc1"], fc1_input, du, plan.implementation)
        dh = linear.input_gradient(du, params["fc1"]["kernel"])
        if shape.post_norm:
            dh = dh + dy
        skip = None if shape.post_norm else dy
        d_norm, dx = layer_norm.backward(params["norm2"], saved.norm, dh, norm, skip)
        d_params = {"norm2": d_norm, "fc1": d_fc1, "fc2": d_fc2}
        return d_params, dx

    return Pair(forward, backward)


def _norm_settings(plan: ResidualPlan, shape: BlockShape) -> layer_norm.Settings:
    implementation = plan.implementation
    dense_beside_columns = plan.linear == "columns" and plan.layer_norm == "dense"
    if implementation is None and dense_beside_columns and not plan.recompute:
        implementation = "xla"  # compiled, a ViT-B/16 step needs 39 MB more with the kernel
    return layer_norm.Settings(plan.layer_norm, plan.keep.largest, shape.epsilon, implementation)


def _save_behind_norm(h, params, norm_saved, plan, keep) -> Any:
    """None where the LayerNorm's residual is enough to rebuild its output."""
    if plan.linear in ("dense", "columns") and not isinstance(norm_saved, layer_norm.PrunedInput):
        return None
    return linear.save_input(h, params, plan.linear, keep)


def _rebuild(norm_saved, norm_params, dy, columns=None) -> jax.Array:
    """A LayerNorm's output, or the selected columns of it, from its residual."""
    x_hat, _ = layer_norm.restore(norm_saved, dy.shape, dy.dtype)
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
    if plan.linear != "columns":
        return
    missing = [
        site for site in SITES if getattr(plan.keep, site) < 1 and "columns" not in params[site]
    ]
    if missing:
        raise ValueError(
            f"selection is missing for {', '.join(missing)}: the plan keeps columns of these sites,"
            " so the backward pass needs them; pass variables['selection'], or use keep = 1 to"
            " train them dense"
        )
