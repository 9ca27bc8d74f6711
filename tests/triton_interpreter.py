"""Runs Triton kernels on the CPU, in Triton's own interpreter, on NumPy arrays.

Needs TRITON_INTERPRET=1 before Triton is imported. The interpreter is made for PyTorch's tensors;
`_Host` has as much of one as it asks for.
"""

import jax
import jax.numpy as jnp
import numpy as np

_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32", "uint8": "u8"}


class _Host:
    """An array in memory; it is its own storage, and a copy for the host is itself."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.dtype = _NAMES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "_Host":
        return self

    def cpu(self) -> "_Host":
        return self

    def new_empty(self, *_, **__) -> "_Host":
        return _Host(self.array)

    def set_(self, *_) -> None:
        pass

    def copy_(self, _) -> None:
        pass

    def storage_offset(self) -> int:
        return 0

    size = stride = storage_offset


def call(*args, kernel, out_shape, grid, **options):
    """As `jax_triton.triton_call`, without a GPU and outside of `jit`."""
    constants = {
        name: value
        for name, value in options.items()
        if name not in ("num_warps", "compute_capability")
    }
    outputs = jax.tree.map(lambda s: np.full(s.shape, 77, s.dtype), out_shape)
    arrays = [np.array(array) for array in args] + jax.tree.leaves(outputs)
    kernel[grid](*map(_Host, arrays), **constants)
    return jax.tree.map(jnp.asarray, outputs)
