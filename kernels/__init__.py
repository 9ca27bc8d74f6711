"""Kernels for GPUs, refs in and refs out; imported as `pbr_jax.kernels`, never as `kernels`."""
