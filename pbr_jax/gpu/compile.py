"""Compiles a function for a graphics card that this machine need not have.

XLA's GPU compiler runs on the CPU. It needs the packages of the extra `gpu-compiler`: JAX's CUDA
plugin in the version of JAX, and `ptxas` with `libdevice` of CUDA 13.
"""

import contextlib
import contextvars
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from pbr_jax.gpu.cards import Card, target_config
from pbr_jax.gpu.presence import use_cpu_without_gpu
from pbr_jax.gpu.wire import exchanged_bytes

# Pallas on JAX 0.11 reads the compute capability of a card that is not there off its name, and
# knows these. Another card of the capability goes by the first of them.
_KNOWN_TO_PALLAS = {
    (8, 0): ("A100", "A30"),
    (8, 6): ("A10",),
    (8, 9): ("L4", "L40", "RTX 4090"),
    (9, 0): ("H100", "H200", "GH200"),
    (10, 0): ("B200", "GB200"),
    (12, 0): ("RTX PRO 4500", "RTX PRO 5000", "RTX PRO 6000"),
}
_card: contextvars.ContextVar[Card | None] = contextvars.ContextVar("card", default=None)

_INSTALL = "install the extra with: pip install 'pbr_jax[gpu-compiler]' (Linux only)"


class GpuCompilerMissing(RuntimeError):
    """A package that compiling for a GPU needs is missing, or does not fit the installed JAX."""


class MemoryReport(NamedTuple):
    """Memory of one call of a compiled function, in bytes, as the compiler planned it."""

    argument_bytes: int  # Arguments, donated ones included
    output_bytes: int  # Outputs, with the pointer table (8 bytes an output) when there are several
    temp_bytes: int  # The one buffer that holds all intermediate values
    alias_bytes: int  # Outputs written over donated arguments, counted in both of the first two
    host_bytes: int = 0  # What the function keeps in the memory of the host, as offloading does
    wire_bytes: int = 0  # What several devices exchange

    @property
    def peak_bytes(self) -> int:
        """Memory that has to be free for the call, its arguments included."""
        return self.argument_bytes + self.output_bytes + self.temp_bytes - self.alias_bytes


def require_compiler() -> pathlib.Path:
    """Returns the folder of the CUDA tools, with `bin/ptxas` and `nvvm/libdevice`.

    The package `nvidia-cuda-nvcc` goes first, since its version is known to fit; then the CUDA of
    `ptxas` on $PATH; then `/usr/local/cuda`.

    Raises:
      GpuCompilerMissing: The message names what is missing, and the command that installs it.
    """
    try:
        plugin = importlib.metadata.version("jax-cuda13-plugin")
    except importlib.metadata.PackageNotFoundError:
        raise GpuCompilerMissing(f"jax-cuda13-plugin is not installed: {_INSTALL}") from None
    if plugin != jax.__version__:
        raise GpuCompilerMissing(
            f"jax-cuda13-plugin is {plugin} and jax is {jax.__version__}: they must be the same "
            f"version; {_INSTALL}"
        )
    folders = []
    nvidia = importlib.util.find_spec("nvidia")
    if nvidia is not None and nvidia.submodule_search_locations is not None:
        folders += [pathlib.Path(place) / "cu13" for place in nvidia.submodule_search_locations]
    on_path = shutil.which("ptxas")
    if on_path is not None:
        folders.append(pathlib.Path(on_path).resolve().parent.parent)
    folders.append(pathlib.Path("/usr/local/cuda"))
    for folder in folders:
        if os.access(folder / "bin/ptxas", os.X_OK) and any(folder.glob("nvvm/libdevice/*.bc")):
            return folder
    looked = ", ".join(map(str, folders))
    raise GpuCompilerMissing(f"no ptxas with libdevice in {looked}: {_INSTALL}")


def compile_for(
    function: Callable[..., Any],
    args: Sequence[Any],
    card: Card,
    *,
    donate_argnums: int | Sequence[int] = (),
    compiler_options: Mapping[str, bool | str] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> jax.stages.Compiled:
    """Compiles `function(*args)` for `card`; nothing is run.

    Triton matrix products are off by default: without a GPU to tune on, XLA may choose a tile that
    its own code generator refuses. Everything else is XLA's default for the card.

    Args:
      function: A function, or one that `jax.jit` returned.
      args: Positional arguments: pytrees of arrays or `jax.ShapeDtypeStruct`, of which only shapes
        and dtypes are read, and with `mesh` where a `ShapeDtypeStruct` says that it lies.
      card: One of `CARDS`, or a `Card` of your own.
      donate_argnums: As in `jax.jit`; empty for a jitted function, which carries its own.
      compiler_options: XLA options by name, on top of the defaults.
      mesh: Of `card_devices`, for a program of several cards: a jitted function that says itself
        how its arguments lie on them.

    Raises:
      GpuCompilerMissing: The extra `gpu-compiler` is missing, or JAX left out its plugin.
      ValueError: `donate_argnums` with a function that is already jitted.
    """
    tools = require_compiler()
    use_cpu_without_gpu()
    staged: jax.stages.Wrapped
    if not isinstance(function, jax.stages.Wrapped):
        staged = jax.jit(function, donate_argnums=donate_argnums)
    elif donate_argnums == ():
        staged = function
    else:
        raise ValueError(
            f"donate_argnums = {donate_argnums}: must be empty for a function that is already "
            "jitted; give it to jax.jit"
        )
    placed = None
    if mesh is None:
        mesh = jax.sharding.Mesh(card_devices(card), ("device",))
        placed = NamedSharding(mesh, PartitionSpec())
    specs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=placed or (leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None),
        ),
        tuple(args),
    )
    options: dict[str, bool | str] = {
        "xla_gpu_cuda_data_dir": str(tools),
        "xla_gpu_enable_triton_gemm": False,
        **(compiler_options or {}),
    }
    token = _card.set(card)
    try:
        # Pallas asks the mesh in scope which card it lowers for.
        with jax.set_mesh(mesh), _outside_the_cache():
            return staged.lower(*specs).compile(compiler_options=options)
    finally:
        _card.reset(token)


@contextlib.contextmanager
def _outside_the_cache() -> Iterator[None]:
    """JAX's persistent cache would store the program, and fail to load it at every later call."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)


def compiling_for() -> Card | None:
    """The card that a `compile_for` around the caller compiles for, or None."""
    return _card.get()


def memory(compiled: jax.stages.Compiled) -> MemoryReport:
    """Reads the compiler's memory plan of what `compile_for` returned.

    Raises:
      ValueError: The back end of `compiled` reports none.
    """
    stats = compiled.memory_analysis()
    if stats is None:
        raise ValueError(
            "compiled: its back end reports no memory; use the result of `compile_for`"
        )
    # The text of a program is long, and of one device it has nothing to say.
    many = any(len(s.device_set) > 1 for s in jax.tree.leaves(compiled.input_shardings))
    return MemoryReport(
        argument_bytes=stats.argument_size_in_bytes,
        output_bytes=stats.output_size_in_bytes,
        temp_bytes=stats.temp_size_in_bytes,
        alias_bytes=stats.alias_size_in_bytes,
        host_bytes=stats.host_argument_size_in_bytes
        + stats.host_output_size_in_bytes
        + stats.host_temp_size_in_bytes
        - stats.host_alias_size_in_bytes,
        wire_bytes=exchanged_bytes(compiled.as_text() or "") if many else 0,
    )


def card_devices(card: Card, count: int = 1, hosts: int = 1) -> list[jax.Device]:
    """Returns so many of a card, which can be compiled for, but not run on.

    Args:
      card: What they are.
      count: A multiple of `hosts`.
      hosts: Machines that have as many each.

    Raises:
      GpuCompilerMissing: JAX left out its CUDA plugin.
    """
    names = _KNOWN_TO_PALLAS.get(card.capability, ())
    if names and not any(name in card.description for name in names):
        card = dataclasses.replace(card, description=f"NVIDIA {names[0]}")
    try:
        description = topologies.get_topology_desc(
            platform="cuda",
            target_config=target_config(card),
            topology=f"1x{hosts}x{count // hosts}",
        )
    except NotImplementedError as error:
        raise GpuCompilerMissing(
            "JAX left out its CUDA plugin at start, as it does on a machine without a GPU: "
            "set JAX_PLATFORMS=cpu before the program starts, or call "
            "pbr_jax.gpu.use_cpu_without_gpu() before its first computation"
        ) from error
    return list(description.devices)
