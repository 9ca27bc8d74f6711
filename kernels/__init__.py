"""Kernels for GPUs, refs in and refs out; imported as `pbr_jax.kernels`, never as `kernels`.

All take `blocks`, a cut of their module's `TILES`, and `interpret`: run in Pallas' interpreter.
"""
