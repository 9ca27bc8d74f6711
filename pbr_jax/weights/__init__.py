"""Public weights and our parameter tree: reading, checking, loading and exporting.

found = weights.read("ViT-B_16.npz")  # what it is: found.family, found.sizes
params, notes = weights.load(found, "vit", sizes, initial_params)
"""

from pbr_jax.weights.delta import is_delta, read, save_delta
from pbr_jax.weights.export import save, save_npz, save_orbax
from pbr_jax.weights.faults import own_faults
from pbr_jax.weights.formats import Format, Published, published
from pbr_jax.weights.load import Loaded, WeightsError, check, load, own_classes, remarks
from pbr_jax.weights.preparation import Normalization, Preparation, preparation_of
from pbr_jax.weights.read import Weights

__all__ = [
    "Format",
    "Loaded",
    "Normalization",
    "Preparation",
    "Published",
    "Weights",
    "WeightsError",
    "check",
    "is_delta",
    "load",
    "own_classes",
    "own_faults",
    "preparation_of",
    "published",
    "read",
    "remarks",
    "save",
    "save_delta",
    "save_npz",
    "save_orbax",
]
