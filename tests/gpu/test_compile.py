"""Compiling for a card that is not there: it works, and its memory figures are exact."""

import importlib.metadata
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pbr_jax.gpu import (
    CARDS,
    GpuCompilerMissing,
    MemoryReport,
    compile_for,
    memory,
    require_compiler,
)

WIDTH, BATCH = 1024, 512
KERNEL_BYTES, INPUT_BYTES = 4 * WIDTH * WIDTH, 4 * BATCH * WIDTH
SPECS = (
    jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32),
    jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32),
)


def step(kernel, x):
    """One step of a linear layer: kernel f32[D, D], x f32[B, D] -> kernel f32[D, D], f32[]."""
    y = jnp.tanh(x @ kernel)
    return kernel - 0.1 * (x.T @ y), jnp.sum(y)


@pytest.mark.gpu_compile
@pytest.mark.parametrize("name", ["h200", "rtx4090"])
def test_a_donated_step_has_exact_memory(name):
    report = memory(compile_for(step, SPECS, CARDS[name], donate_argnums=0))
    assert report.argument_bytes == KERNEL_BYTES + INPUT_BYTES
    assert report.output_bytes == KERNEL_BYTES + 4 + 2 * 8  # kernel, scalar, a pointer to each
    assert report.alias_bytes == KERNEL_BYTES
    assert report.temp_bytes >= INPUT_BYTES  # y lives between the two products
    assert report.peak_bytes == KERNEL_BYTES + INPUT_BYTES + 20 + report.temp_bytes


@pytest.mark.gpu_compile
def test_a_jitted_function_keeps_its_own_donation():
    kept = memory(compile_for(jax.jit(step), SPECS, CARDS["rtx4090"]))
    donated = memory(compile_for(jax.jit(step, donate_argnums=0), SPECS, CARDS["rtx4090"]))
    assert kept.alias_bytes == 0
    assert donated.alias_bytes == KERNEL_BYTES
    assert kept.argument_bytes == donated.argument_bytes
    assert kept.output_bytes == donated.output_bytes


@pytest.mark.gpu_compile
def test_arguments_may_be_pytrees_with_keys_and_arrays():
    def dropout(batch, key):
        return batch["x"] * jax.random.bernoulli(key, 0.5, batch["x"].shape).astype(jnp.float32)

    args = ({"x": jnp.ones((8, 16))}, jax.random.key(0))
    report = memory(compile_for(dropout, args, CARDS["h200"]))
    assert report.argument_bytes == 4 * 8 * 16 + 8
    assert report.output_bytes == 4 * 8 * 16


@pytest.mark.gpu_compile
def test_compiler_options_reach_the_compiler():
    options = {"xla_no_such": True}
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_no_such'"):
        compile_for(step, SPECS, CARDS["h200"], compiler_options=options)


@pytest.mark.gpu_compile
def test_donation_of_a_jitted_function_is_refused():
    with pytest.raises(ValueError, match=r"donate_argnums = 0: must be empty.*give it to jax\.jit"):
        compile_for(jax.jit(step), SPECS, CARDS["h200"], donate_argnums=0)


def test_peak_counts_aliased_memory_once():
    report = MemoryReport(argument_bytes=100, output_bytes=80, temp_bytes=30, alias_bytes=70)
    assert report.peak_bytes == 140


def test_without_the_plugin_the_error_names_the_extra(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        GpuCompilerMissing, match=r"jax-cuda13-plugin is not installed.*\[gpu-compiler\]"
    ):
        compile_for(step, SPECS, CARDS["h200"])


def test_a_plugin_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(GpuCompilerMissing, match=rf"is 0\.0\.1 and jax is {jax.__version__}"):
        require_compiler()


def test_without_ptxas_the_error_names_the_folders(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: jax.__version__)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(GpuCompilerMissing, match=r"no ptxas with libdevice in .*/usr/local/cuda"):
        require_compiler()


def run_without_platforms(program):
    # JAX cannot read back from its cache what was compiled for a card that is not there, and warns.
    left_out = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )


WITHOUT_GPU = pytest.mark.skipif(
    os.path.exists("/dev/nvidiactl"), reason="JAX keeps its plugin where a GPU is"
)
COMPILE = """
import jax
from pbr_jax.gpu import CARDS, GpuCompilerMissing, compile_for
{before}
try:
    compile_for(jax.numpy.sin, [jax.ShapeDtypeStruct((8,), "float32")], CARDS["h200"])
    print("compiled")
except GpuCompilerMissing as missing:
    print(missing)
"""


@pytest.mark.gpu_compile
@WITHOUT_GPU
def test_a_machine_without_a_gpu_needs_no_setting():
    done = run_without_platforms(COMPILE.format(before=""))
    assert (done.stdout, done.stderr) == ("compiled\n", "")


@pytest.mark.gpu_compile
@WITHOUT_GPU
def test_a_program_that_let_jax_look_for_a_gpu_is_told_what_to_set():
    done = run_without_platforms(COMPILE.format(before="jax.devices()"))
    assert "set JAX_PLATFORMS=cpu" in done.stdout


def test_a_platform_that_the_user_set_stays():
    program = (
        "import jax, pbr_jax.gpu as g; g.use_cpu_without_gpu(); print(jax.config.jax_platforms)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "cpu,cuda"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "cpu,cuda\n"
