"""PreBackRazor in JAX: fine-tuning that saves only the columns of an activation that it will use.

Import submodules by name (`from pbr_jax import layers`); the package itself imports nothing.
"""

__version__ = "0.1.0"
