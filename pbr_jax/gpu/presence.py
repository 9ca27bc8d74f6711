"""Whether an NVIDIA GPU is there, before JAX looks for one."""

import importlib.metadata
import logging
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

    Raises:
      ValueError: JAX_PLATFORMS asks for an NVIDIA GPU, and JAX finds none.
    """
    import jax

    platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    if gpu_is_present():
        return
    if {"cuda", "gpu"} & {*platforms.split(",")}:
        _refuse(platforms)
    if platforms:
        return
    try:
        importlib.metadata.version("jax-cuda13-plugin")
    except importlib.metadata.PackageNotFoundError:
        return
    jax.config.update("jax_platforms", "cpu")


def _refuse(platforms: str) -> None:
    """Refuses `platforms` unless JAX does find a GPU, of a kind without our device files."""
    import jax

    logger = logging.getLogger("jax._src.xla_bridge")  # it prints the traceback of the plugin
    logger.addFilter(_nothing)
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        advice = "unset it, or set JAX_PLATFORMS=cpu"
        raise ValueError(f"JAX_PLATFORMS={platforms}: no NVIDIA GPU is here; {advice}") from error
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
