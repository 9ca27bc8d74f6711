"""Kernels beside their rivals: the cases of `pbr bench kernels` and `pbr bench check`."""
