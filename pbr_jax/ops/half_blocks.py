"""The two halves of a pre-norm transformer block as single differentiable functions.

    x + proj(attention(qkv(norm1(x))))          x + fc2(gelu(fc1(norm2(x))))

Written as pairs (see `pbr_jax.ops.pair`), so that one residual serves several consumers: the
LayerNorm residual also gives the input of the linear layer behind it, and attention's output that
of `proj`.

`params` holds one dict per layer: `norm1`, `norm2` with `scale, bias`; `qkv`, `proj`, `fc1`, `fc2`
with `kernel, bias` and, where pruned, `columns`, `rows`, `active` (see `pbr_jax.ops.linear`). `aux`
may hold `keys`, one PRNG key per sample, for dropout and stochastic codes, and `mask` for
attention.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax import residuals
from pbr_jax.ops import attention, gelu, layer_norm, linear
from pbr_jax.ops.arrays import uniform_like
from pbr_jax.ops.pair import Pair, in_chunks, recompute, sequence
from pbr_jax.plans import SITES, ResidualPlan


class BlockShape(NamedTuple):
    """Static description of a block."""

    num_heads: int
    epsilon: float = 1e-6
    dropout: float = 0.0
    approximate_gelu: bool = False


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


def transformer_block(plan: ResidualPlan, shape: BlockShape) -> Pair:
    """A whole pre-norm block, `[B, N, D] -> [B, N, D]`, that keeps what `plan` says."""
    block = sequence(attention_half(plan, shape), mlp_half(plan, shape))
    if plan.recompute:
        block = recompute(block)
    return in_chunks(block, plan.batch_chunks)


def attention_half(plan: ResidualPlan, shape: BlockShape) -> Pair:
    """`x + dropout(proj(attention(qkv(norm1(x)))))` as a pair."""
    norm = _layer_norm(plan, shape)
    again = plan.attention == "recompute"
    kind = "qkv" if again else plan.attention
    keep = plan.attention_keep if plan.attention == "channels" else plan.keep.largest

    def q_k_v(h, params):
        return _heads(linear.project(h, params["kernel"], params["bias"]), 3, shape)

    def forward(params, x, aux):
        h, norm_saved = norm.forward(params["norm1"], x, None)
        heads = q_k_v(h, params["qkv"])
        out, attention_saved = attention.forward(heads, aux.get("mask"), kind, keep)
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
        return x + _dropout(y, aux, 0, shape.dropout), saved

    def backward(params, saved, aux, dy):
        d_branch = _dropout(dy, aux, 0, shape.dropout)
        proj_input = saved.proj_input
        if proj_input is None:
            proj_input = linear.save_input(
                _merge_heads(saved.attention.out), params["proj"], plan.linear
            )
        d_proj = linear.parameter_gradients(params["proj"], proj_input, d_branch)
        d_merged = linear.input_gradient(d_branch, params["proj"]["kernel"])
        d_out = _heads(d_merged, 1, shape)[0]
        attention_saved = saved.attention
        if again:
            h = _rebuild(saved.norm, params["norm1"], dy)
            attention_saved = q_k_v(h, params["qkv"])
        d_heads = attention.backward(attention_saved, aux.get("mask"), d_out, dy.shape[1])
        d_qkv = _merge_heads(*d_heads)
        qkv_input = _input_behind_norm(
            saved.norm, saved.qkv_input, params["norm1"], params["qkv"], dy
        )
        d_qkv_params = linear.parameter_gradients(params["qkv"], qkv_input, d_qkv)
        dh = linear.input_gradient(d_qkv, params["qkv"]["kernel"])
        d_norm, dx = norm.backward(params["norm1"], saved.norm, None, dh)
        return {"norm1": d_norm, "qkv": d_qkv_params, "proj": d_proj}, dx + dy

    return Pair(forward, backward)


def mlp_half(plan: ResidualPlan, shape: BlockShape) -> Pair:
    """`x + dropout(fc2(dropout(gelu(fc1(norm2(x))))))` as a pair."""
    norm = _layer_norm(plan, shape)

    approximate = shape.approximate_gelu

    def code_keys(aux):
        return _keys(aux, 3) if plan.stochastic_codes else None

    def forward(params, x, aux):
        h, norm_saved = norm.forward(params["norm2"], x, None)
        u = linear.project(h, params["fc1"]["kernel"], params["fc1"]["bias"])
        a = _dropout(gelu.value(u, approximate=approximate), aux, 1, shape.dropout)
        y = linear.project(a, params["fc2"]["kernel"], params["fc2"]["bias"])
        saved = MlpResidual(
            norm=norm_saved,
            fc1_input=_save_behind_norm(h, params["fc1"], norm_saved, plan, plan.keep.fc1),
            gelu=gelu.save(u, plan.gelu, approximate=approximate, keys=code_keys(aux)),
            fc2_input=linear.save_input(a, params["fc2"], plan.linear, plan.keep.fc2),
        )
        return x + _dropout(y, aux, 2, shape.dropout), saved

    def backward(params, saved, aux, dy):
        d_branch = _dropout(dy, aux, 2, shape.dropout)
        d_fc2 = linear.parameter_gradients(params["fc2"], saved.fc2_input, d_branch)
        da = _dropout(
            linear.input_gradient(d_branch, params["fc2"]["kernel"]), aux, 1, shape.dropout
        )
        du = da * gelu.saved_derivative(
            saved.gelu, da, approximate=approximate, stochastic=plan.stochastic_codes
        )
        fc1_input = _input_behind_norm(
            saved.norm, saved.fc1_input, params["norm2"], params["fc1"], dy
        )
        d_fc1 = linear.parameter_gradients(params["fc1"], fc1_input, du)
        dh = linear.input_gradient(du, params["fc1"]["kernel"])
        d_norm, dx = norm.backward(params["norm2"], saved.norm, None, dh)
        return {"norm2": d_norm, "fc1": d_fc1, "fc2": d_fc2}, dx + dy

    return Pair(forward, backward)


def _layer_norm(plan: ResidualPlan, shape: BlockShape) -> Pair:
    return layer_norm.layer_norm_pair(plan.layer_norm, plan.keep.largest, shape.epsilon)


def _save_behind_norm(h, params, norm_saved, plan, keep) -> Any:
    """None where the LayerNorm's residual is enough to rebuild its output."""
    if plan.linear in ("dense", "columns") and not isinstance(norm_saved, layer_norm.PrunedInput):
        return None
    return linear.save_input(h, params, plan.linear, keep)


def _input_behind_norm(norm_saved, saved, norm_params, params, dy) -> Any:
    """What was saved of a LayerNorm's output, or the LayerNorm's residual as (columns of) it."""
    if saved is not None:
        return saved
    return _rebuild(norm_saved, norm_params, dy, params.get("columns"))


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


def _keys(aux: dict, index: int) -> jax.Array:
    """Keys of one use of randomness in a block, one per sample."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(aux["keys"], index)


def _dropout(x: jax.Array, aux: dict, index: int, rate: float) -> jax.Array:
    """Dropout, or its transpose: the same mask is drawn again from the keys, none is stored."""
    if "keys" not in aux or rate == 0:
        return x
    kept = uniform_like(_keys(aux, index), x) >= rate
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


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
