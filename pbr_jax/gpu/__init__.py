"""What a compiled function needs on a named graphics card, found without one."""

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
from pbr_jax.gpu.target import parse_target_config, present_card, sized_card

__all__ = [
    "CARDS",
    "Card",
    "GpuCompilerMissing",
    "MemoryReport",
    "compile_for",
    "compiling_for",
    "find_card",
    "gpu_is_present",
    "memory",
    "parse_target_config",
    "present_card",
    "require_compiler",
    "sized_card",
    "target_config",
    "use_cpu_without_gpu",
]
