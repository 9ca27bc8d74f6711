"""Memory and kernels of a function on a named graphics card, found without one.

Names are imported on first use: the table of cards and the look for a GPU need no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pbr_jax.gpu.cards import CARDS, Card, find_card, target_config
    from pbr_jax.gpu.compile import (
        GpuCompilerMissing,
        MemoryReport,
        compile_for,
        compiling_for,
        memory,
        require_compiler,
    )
    from pbr_jax.gpu.presence import gpu_is_present, use_cpu_without_gpu
    from pbr_jax.gpu.step_memory import StepMemory, fit
    from pbr_jax.gpu.target import parse_target_config, present_card, sized_card

__all__ = [
    "CARDS",
    "Card",
    "GpuCompilerMissing",
    "MemoryReport",
    "StepMemory",
    "compile_for",
    "compiling_for",
    "find_card",
    "fit",
    "gpu_is_present",
    "memory",
    "parse_target_config",
    "present_card",
    "require_compiler",
    "sized_card",
    "target_config",
    "use_cpu_without_gpu",
]


def __getattr__(name: str) -> Any:
    """Looks for an exported name in the modules, the lightest first."""
    if name in __all__:
        for module in ("cards", "presence", "target", "compile", "step_memory"):
            found = importlib.import_module(f"pbr_jax.gpu.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module 'pbr_jax.gpu' has no attribute {name!r}")
