"""Kernels for GPUs, refs in and refs out; imported as `pbr_jax.kernels`, never as `kernels`.

What can be cut in more than one way takes `blocks`, an entry of its module's `TILES`. `interpret`
runs a kernel in Pallas' interpreter.
"""
