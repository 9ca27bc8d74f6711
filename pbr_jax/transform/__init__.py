"""Pruning as a function transformation: models whose code stays as it is.

A function of parameters is traced to a jaxpr. `sites` finds the matrix products between
activations and parameters, `rewrite` evaluates the jaxpr with `attach` behind each of them, and
`prune` makes an object of both. `pbr_jax.prune`, `pbr_jax.report` and `pbr_jax.train_step` are
imported from here on first use.
"""
