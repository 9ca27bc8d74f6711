"""PreBackRazor in JAX: fine-tuning that saves only the columns of an activation that it will use.

Submodules are imported by name (`from pbr_jax import layers`); importing the package itself is light.
"""

__version__ = "0.1.0"
