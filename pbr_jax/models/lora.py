"""LoRA (Hu et al., 2022) of a Flax Linen module, by qwix: `y = x W + alpha / rank (x A) B`.

qwix finds the linear layers as the module runs, whatever it is: scanned, rematerialised, or with
kernels of several axes. A and B stand beside the kernel in the tree of parameters:

    kernel [D, F]    kernel_lora_a [D, R]    kernel_lora_b [R, F]    each stacked as the kernel is

They are float32; B begins with zeros, so that the model begins as it was.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.configs.common import Lora
from pbr_jax.families import KERNEL

PyTree = Any
_A, _B = "_lora_a", "_lora_b"  # qwix's names of both, behind that of the parameter


def with_lora(module: nn.Module, lora: Lora) -> nn.Module:
    """The module with A and B at the layers that the settings name; called as it was."""
    import qwix

    rule = {"module_path": lora.modules or ".*", "rank": lora.rank, "alpha": lora.alpha}
    return qwix.apply_lora_to_model(module, qwix.LoraProvider(**rule))


def is_adapter(path: tuple[Any, ...]) -> bool:
    """Whether the leaf at `path`, keys of JAX or names, is an A or a B."""
    return str(getattr(path[-1], "key", path[-1])).endswith((_A, _B))


def map_leaves(
    adapter: Callable[..., Any], base: Callable[..., Any], tree: PyTree, *others: PyTree
) -> PyTree:
    """The tree with `adapter` of every A and B and `base` of every other leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: (adapter if is_adapter(path) else base)(*leaves), tree, *others
    )


def cast(params: PyTree, dtype: Any) -> PyTree:
    """The parameters with A and B in another dtype; of arrays, or of shapes."""

    def adapter(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=dtype)
        return leaf.astype(dtype)

    return map_leaves(adapter, lambda leaf: leaf, params)


def base_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without A and B: those of the module as it was."""
    return {
        name: base_of(leaf) if isinstance(leaf, Mapping) else leaf
        for name, leaf in params.items()
        if not is_adapter((name,))
    }


def with_base(params: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the A and B that they have and, of all others, those of `base`."""
    return {
        name: with_base(leaf, base[name])
        if isinstance(leaf, Mapping)
        else (leaf if is_adapter((name,)) else base[name])
        for name, leaf in params.items()
    }


def merged(params: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
    """The parameters of the module as it was that do the same: `W + alpha / rank A B`.

    A sum is float32, and rounded once to the dtype of the kernel.
    """
    found: dict[str, Any] = {}
    for name, leaf in params.items():
        if isinstance(leaf, Mapping):
            found[name] = merged(leaf, lora)
        elif f"{name}{_A}" in params:
            a, b = params[f"{name}{_A}"], params[f"{name}{_B}"]
            found[name] = _merged_kernel(leaf, a, b, lora.alpha / lora.rank)
        elif not is_adapter((name,)):
            found[name] = leaf
    return found


def _merged_kernel(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    # Of a kernel of several axes, or of a convolution, A and B are matrices of the same numbers.
    stack = _stacked(kernel.shape, a.shape, b.shape)
    lead = kernel.shape[:stack]
    a = a.reshape(*lead, -1, a.shape[-1]).astype(jnp.float32)
    b = b.reshape(*lead, b.shape[stack], -1).astype(jnp.float32)
    product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).reshape(kernel.shape)
    return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)


def _stacked(kernel: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Leading axes of scans, which kernel, A and B share."""
    for stack in range(len(b) - 1):
        inputs, outputs = math.prod(a[stack:-1]), math.prod(b[stack + 1 :])
        same = a[:stack] == b[:stack] == kernel[:stack] and b[stack] == a[-1]
        if same and inputs * outputs == math.prod(kernel[stack:]):
            return stack
    raise ValueError(f"kernel of shape {kernel}: A {a} and B {b} are not of it")


def check(place: str, params: PyTree, lora: Lora) -> None:
    """Raises ValueError where no layer has A and B, or one has whose product cannot be merged."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = ["/".join(key.key for key in path) for path, _ in leaves]
    adapted = [name.removesuffix(_A) for name in names if name.endswith(_A)]
    kernels = sorted(name.rpartition("/")[0] for name in names if name.endswith(f"/{KERNEL}"))
    if not adapted:
        raise ValueError(
            f"lora.modules = {lora.modules or 'none'}: none of the layers of {place} is one that"
            " qwix finds by it; it knows those that multiply by a parameter themselves, as nn.Dense"
            f" does. Kernels there are in {', '.join(kernels[:6]) or 'no layer'}"
        )
    if others := [name for name in adapted if not name.endswith(KERNEL)]:
        raise ValueError(
            f"lora.modules = {lora.modules or 'none'}: {others[0]} of {place} is no kernel"
            " [inputs, outputs], into which A and B could be merged; set lora.modules to an"
            " expression that leaves it out"
        )
