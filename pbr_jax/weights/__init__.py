"""Public weights and our parameter tree: reading, checking, loading and exporting.

weights = checkpoints.read("ViT-B_16.npz")  # what it is: weights.family, weights.sizes
params, notes = checkpoints.load(weights, "vit", sizes, initial_params)
"""

from pbr_jax.weights.export import save_huggingface, save_npz, save_orbax
from pbr_jax.weights.formats import Family
from pbr_jax.weights.load import Loaded, WeightsError, check, load
from pbr_jax.weights.read import Weights, own_faults, read

__all__ = [
    "Family",
    "Loaded",
    "Weights",
    "WeightsError",
    "check",
    "load",
    "own_faults",
    "read",
    "save_huggingface",
    "save_npz",
    "save_orbax",
]
