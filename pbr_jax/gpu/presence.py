"""Whether an NVIDIA GPU is there, before JAX looks for one."""

import importlib.metadata
import pathlib

# Device files of the driver: on Linux, and on Windows' Linux subsystem.
_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


def gpu_is_present() -> bool:
    """Whether the driver of an NVIDIA GPU is there; asks no library and takes no memory."""
    return any(pathlib.Path(name).exists() for name in _DEVICES)


def use_cpu_without_gpu() -> None:
    """Has JAX use the CPU where its CUDA plugin is installed and no NVIDIA GPU is there.

    The extra `gpu-compiler` makes such a machine, and JAX would print the plugin's traceback there
    and go on. Call it before the first computation. Where JAX_PLATFORMS is set, that decides.
    """
    import jax

    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms or gpu_is_present():
        return
    try:
        importlib.metadata.version("jax-cuda13-plugin")
    except importlib.metadata.PackageNotFoundError:
        return
    jax.config.update("jax_platforms", "cpu")
