"""PreBackRazor in JAX: fine-tuning that saves only the columns of an activation that it will use.

Import submodules by name (`from pbr_jax import layers`); the package itself imports nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_EXPORTS = {
    "freeze_unselected": "pbr_jax.freeze",
    "prune": "pbr_jax.transform.prune",
    "report": "pbr_jax.transform.report",
    "train_step": "pbr_jax.transform.step",
}


def __getattr__(name: str) -> Any:
    """Exports on first use, so that `import pbr_jax` stays instant."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'pbr_jax' has no attribute {name!r}")
