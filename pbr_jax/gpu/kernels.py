"""Registers, spills and shared memory of the hand-written kernels in a compiled function.

Registers and spills are what `ptxas -v` says, shared memory and the launch what XLA plans. Needs no
GPU.
"""

import pathlib
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pbr_jax.gpu.cards import Card
from pbr_jax.gpu.compile import compile_for, require_compiler

# Passes everything on to the real one and keeps a copy of what it says, one file a call.
_WRAPPER = """#!/bin/sh
said="{log}/$$"
"{ptxas}" -v "$@" 2>"$said"
code=$?
cat "$said" >&2
exit $code
"""
_PTXAS = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<smem>\d+) bytes smem)?",
    re.DOTALL,
)
_LAUNCH = re.compile(
    r"kCustomKernel .*?(?P<name>\w+) grid: \[(?P<grid>[\d, ]+)\] threads: \[(?P<threads>\d+),"
    r".*?shared_memory: (?P<bytes>\d+) bytes"
)
_PALLAS_CALL = re.compile(r'__gpu\$xla\.gpu\.triton.*?name = "(?P<name>\w+)"')
_COUNTER = re.compile(r"_+\d+$")  # which XLA puts behind a name that is taken


class KernelUse(NamedTuple):
    """Resources of one launch of a kernel."""

    name: str  # of the kernel
    registers: int  # of a thread; 255 at most
    spill_bytes: int  # stored to and loaded from local memory by a thread for want of registers
    shared_bytes: int  # shared memory of a block
    threads: int  # of a block
    blocks: int  # in the grid


def kernel_use(
    function: Callable[..., Any], args: Sequence[Any], card: Card, **options: Any
) -> list[KernelUse]:
    """Compiles `function(*args)` for `card` and reads its Pallas kernels, in the order of launch.

    Args:
      function, args, card, **options: as for `compile_for`.

    Raises:
      GpuCompilerMissing: as `compile_for`.
    """
    tools = require_compiler()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for new in ("bin", "log", "dump"):
            (folder / new).mkdir()
        for part in tools.iterdir():
            if part.name != "bin":
                (folder / part.name).symlink_to(part)
        wrapper = folder / "bin/ptxas"
        wrapper.write_text(_WRAPPER.format(log=folder / "log", ptxas=tools / "bin/ptxas"))
        wrapper.chmod(0o755)
        # The dump says how kernels are launched, the wrapper what ptxas found.
        places = {"xla_gpu_cuda_data_dir": str(folder), "xla_dump_to": str(folder / "dump")}
        given = options.pop("compiler_options", None) or {}
        options["compiler_options"] = {**given, **places}
        text = compile_for(function, args, card, **options).as_text() or ""
        said = "\n".join(file.read_text() for file in (folder / "log").iterdir())
        plans = "\n".join(p.read_text() for p in (folder / "dump").glob("*thunk_sequence.txt"))
    compiled = {match["name"]: match for match in _PTXAS.finditer(said)}
    names = {match["name"] for match in _PALLAS_CALL.finditer(text)}
    found = []
    for launch in _LAUNCH.finditer(plans):
        if not {launch["name"], _COUNTER.sub("", launch["name"])} & names:
            continue  # one of XLA's own
        # Shared memory of a block is what Triton asks for at launch and what PTX declares.
        kernel = compiled[launch["name"]]
        x, y, z = (int(n) for n in launch["grid"].split(","))
        found.append(
            KernelUse(
                name=launch["name"],
                registers=int(kernel["registers"]),
                spill_bytes=int(kernel["stores"]) + int(kernel["loads"]),
                shared_bytes=int(launch["bytes"]) + int(kernel["smem"] or 0),
                threads=int(launch["threads"]),
                blocks=x * y * z,
            )
        )
    return found
