"""Differentiable operations as pairs of pure functions; what each keeps is an argument."""
