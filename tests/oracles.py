"""What the paper and BackRazor's definition say, in NumPy float64. Shares no code with the package.

Each `..._gradients` writes out the chain rule by hand. What a method saves in place of the true
activation is passed in as a function, so the methods differ in that argument only.

Sources: PreBackRazor (CVPR 2024), Algorithm 1; BackRazor (Jiang et al., NeurIPS 2022) and its code.
"""

import math

import numpy as np
from scipy import special

# --- what is saved


def largest_elements(x: np.ndarray, keep: float, stored: type | None = None) -> np.ndarray:
    """BackRazor: per sample, all but the k largest `|x|` over all other axes become zero.

    Of entries that tie with the k-th the first are kept. `stored` is the dtype that the kept values
    pass through: float16 for linear layers and attention.
    """
    flat = x.reshape(len(x), -1)
    k = max(1, round(keep * flat.shape[1]))
    kept = np.argsort(-np.abs(flat), axis=1, kind="stable")[:, :k]
    pruned = np.zeros_like(flat)
    np.put_along_axis(pruned, kept, np.take_along_axis(flat, kept, axis=1), axis=1)
    pruned = pruned.reshape(x.shape)
    return pruned if stored is None else pruned.astype(stored).astype(np.float64)


def only_columns(x: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """PreBackRazor: columns that were not selected become zero. Index D selects nothing."""
    kept = np.isin(np.arange(x.shape[-1]), columns)
    return np.where(kept, x, 0.0)


def columns_of_largest_norm(x: np.ndarray, num_kept: int) -> np.ndarray:
    """PreBackRazor-: the columns of largest Euclidean norm over batch and tokens, sorted."""
    norms = np.linalg.norm(x.reshape(-1, x.shape[-1]), axis=0)
    return np.sort(np.argsort(-norms)[:num_kept])


# --- ops


def linear_gradients(
    saved: np.ndarray, kernel: np.ndarray, dy: np.ndarray
) -> dict[str, np.ndarray]:
    """Of `y = x W + b`: dW from what was saved of `x`; dx and db never need it."""
    flat = dy.reshape(-1, dy.shape[-1])
    return {
        "kernel": saved.reshape(-1, saved.shape[-1]).T @ flat,
        "bias": flat.sum(axis=0),
        "x": dy @ kernel.T,
    }


def layer_norm(x, scale, bias, epsilon):
    mean = x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon)
    return (x - mean) * rstd * scale + bias, mean, rstd


def layer_norm_gradients(saved, mean, rstd, scale, dy) -> dict[str, np.ndarray]:
    """`saved` stands for the input. Mean and rstd are true: a dropped entry is `-mean * rstd`."""
    x_hat = (saved - mean) * rstd
    rows = tuple(range(dy.ndim - 1))
    g = dy * scale
    dx = rstd * (g - g.mean(-1, keepdims=True) - x_hat * (g * x_hat).mean(-1, keepdims=True))
    return {"scale": (dy * x_hat).sum(axis=rows), "bias": dy.sum(axis=rows), "x": dx}


def gelu(u, approximate=False):
    if approximate:
        return 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return u * special.ndtr(u)


def gelu_derivative(u, approximate=False):
    """Central difference of order 4, good to 1e-11: independent of any formula for it."""
    h = 1e-3
    near, far = (gelu(u + s * h, approximate) - gelu(u - s * h, approximate) for s in (1, 2))
    return (8 * near - far) / (12 * h)


def probabilities(q, k, mask=None):
    """Softmax of `q k^T / sqrt(head)`; a query that sees no key attends to all alike."""
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        mask = np.broadcast_to(mask, scores.shape)
        scores = np.where(mask, scores, np.where(mask.any(-1, keepdims=True), -np.inf, 0.0))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def dropout_factor(seeds, heads, queries, keys, rate):
    """`[B, H, N, M]`: 0 where a probability is dropped, else `1 / (1 - rate)`.

    A hash of the two 32-bit seeds of a sample and of the three positions, modulo 2^32.
    """

    def mixed(x):  # lowbias32, nullprogram.com/blog/2018/07/31
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> shift)) * factor % 2**32
        return x ^ (x >> 16)

    first, second = np.asarray(seeds, np.uint64).T.reshape(2, -1, 1, 1, 1)
    h, n, m = (np.arange(size, dtype=np.uint64) for size in (heads, queries, keys))
    row = mixed((first + h[:, None, None] * 0x9E3779B9) % 2**32)
    row = mixed((row + n[:, None] * 0x85EBCA6B) % 2**32)
    column = mixed((second + m * 0xC2B2AE35) % 2**32)
    return (mixed(row ^ column) >= rate * 2**32) / (1 - rate)


def attention(q, k, v, mask=None, dropout=1.0):
    """`dropout` is the factor of `dropout_factor`."""
    return (probabilities(q, k, mask) * dropout) @ v


def attention_gradients(q, k, v, p, mask, do, head, dropout=1.0):
    """dq, dk, dv of attention from what was saved of q, k, v and of the probabilities."""
    dp = do @ v.swapaxes(-1, -2) * dropout
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / math.sqrt(head)
    if mask is not None:
        ds = np.where(mask, ds, 0.0)
    return ds @ k, ds.swapaxes(-1, -2) @ q, (p * dropout).swapaxes(-1, -2) @ do


def dense_attention_gradients(q, k, v, mask, do, dropout=1.0):
    p = probabilities(q, k, mask)
    return attention_gradients(q, k, v, p, mask, do, q.shape[-1], dropout)


def pruned_attention_gradients(q, k, v, mask, do, keep, stored=np.float16, dropout=1.0):
    """BackRazor: q, k, v and the true probabilities before dropout, each pruned per sample."""
    p = probabilities(q, k, mask)
    saved = (largest_elements(a, keep, stored) for a in (q, k, v, p))
    return attention_gradients(*saved, mask, do, q.shape[-1], dropout)


def sparse_attention_gradients(q, k, v, mask, do, num_kept, dropout=1.0):
    """PreBackRazor++: whole channels per head; the probabilities are those of the pruned q and k.

    Channels of q and k are shared and go by the sample mean of |q_c|^2 |k_c|^2, those of v by that
    of |v_c|^2.
    """
    head = q.shape[-1]

    def prune(x, energy):  # energy [H, head]
        kept = np.zeros(energy.shape, bool)
        np.put_along_axis(kept, np.argsort(-energy, axis=-1)[:, :num_kept], True, axis=-1)
        return np.where(kept[None, :, None, :], x, 0.0)

    shared = ((q**2).sum(2) * (k**2).sum(2)).mean(0)
    q, k, v = prune(q, shared), prune(k, shared), prune(v, (v**2).sum(2).mean(0))
    # Zeroed channels drop out of q k^T; the scale stays that of the full head.
    p = probabilities(q, k, mask)
    return attention_gradients(q, k, v, p, mask, do, head, dropout)


# --- a transformer block


def as_given(site, x):
    return x


def block(
    params,
    x,
    dy,
    *,
    heads,
    mask=None,
    epsilon=1e-6,
    post_norm=False,
    save_linear=as_given,
    save_norm=lambda x: x,
    attention_forward=attention,
    attention_backward=dense_attention_gradients,
):
    """Output and gradients of a block.

    `x1 = x + proj(attention(qkv(norm1 x)))`, `y = x1 + fc2(gelu(fc1(norm2 x1)))`.

    Args:
      post_norm: `norm1 x` and `norm2 x1` in place of the summands `x` and `x1`.
      save_linear: `(site, input) -> ` what its weight gradient sees.
      save_norm: input of a LayerNorm `->` what its backward pass sees.
      attention_forward: `(q, k, v, mask) -> out`.
      attention_backward: `(q, k, v, mask, do) -> (dq, dk, dv)`.
    """
    batch, tokens, _ = x.shape
    p = params

    def linear(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def split(x):  # [B, N, H * head] -> [B, H, N, head]
        return x.reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3)

    def merge(x):
        return x.transpose(0, 2, 1, 3).reshape(batch, tokens, -1)

    h1, mean1, rstd1 = layer_norm(x, p["norm1"]["scale"], p["norm1"]["bias"], epsilon)
    q, k, v = (split(part) for part in np.split(linear("qkv", h1), 3, axis=-1))
    context = merge(attention_forward(q, k, v, mask))
    x1 = (h1 if post_norm else x) + linear("proj", context)
    h2, mean2, rstd2 = layer_norm(x1, p["norm2"]["scale"], p["norm2"]["bias"], epsilon)
    u = linear("fc1", h2)
    a = gelu(u)
    y = (h2 if post_norm else x1) + linear("fc2", a)

    grads = {}

    def linear_backward(name, x, dy):
        grads[name] = linear_gradients(save_linear(name, x), p[name]["kernel"], dy)
        return grads[name].pop("x")

    def norm_backward(name, x, mean, rstd, dy):
        grads[name] = layer_norm_gradients(save_norm(x), mean, rstd, p[name]["scale"], dy)
        return grads[name].pop("x")

    def half_backward(name, x, mean, rstd, dy, d_branch):
        if post_norm:
            return norm_backward(name, x, mean, rstd, dy + d_branch)
        return dy + norm_backward(name, x, mean, rstd, d_branch)

    du = linear_backward("fc2", a, dy) * gelu_derivative(u)
    dx1 = half_backward("norm2", x1, mean2, rstd2, dy, linear_backward("fc1", h2, du))
    d_context = split(linear_backward("proj", context, dx1))
    d_qkv = np.concatenate(
        [merge(g) for g in attention_backward(q, k, v, mask, d_context)], axis=-1
    )
    dx = half_backward("norm1", x, mean1, rstd1, dx1, linear_backward("qkv", h1, d_qkv))
    return y, grads, dx
