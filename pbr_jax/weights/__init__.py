"""Public weights and our parameter tree: reading, checking, loading and exporting.

found = weights.read("ViT-B_16.npz")  # what it is: found.family, found.sizes
params, notes = weights.load(found, "vit", sizes, initial_params)
"""

from pbr_jax.weights.export import save, save_npz, save_orbax
from pbr_jax.weights.formats import Format, published
from pbr_jax.weights.load import Loaded, WeightsError, check, load
from pbr_jax.weights.read import Weights, own_faults, read

__all__ = [
    "Format",
    "Loaded",
    "Weights",
    "WeightsError",
    "check",
    "load",
    "own_faults",
    "published",
    "read",
    "save",
    "save_npz",
    "save_orbax",
]
