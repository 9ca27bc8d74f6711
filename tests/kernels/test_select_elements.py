"""BackRazor's selection in Triton: run in Triton's interpreter, compiled for its targets."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measures import ptx_use

from pbr_jax.gpu import CARDS, compile_for, memory
from pbr_jax.gpu.launches import launches
from pbr_jax.ops import dispatch, residuals

try:
    import jax_triton
    import triton
except ImportError:  # of the extra `cuda`, Linux only
    jax_triton = None
WITH_TRITON = pytest.mark.skipif(jax_triton is None, reason="needs the extra `cuda`")

TESTS = pathlib.Path(__file__).parents[1]
INTERPRETED = """
import jax.numpy as jnp, ml_dtypes, numpy as np, triton_interpreter
from pbr_jax.kernels import select_elements
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.ops import residuals

blocks = Blocks(rows=2, columns=16)
generator = np.random.default_rng(0)

def check(x, keep):
    k = max(1, round(keep * x.shape[1]))
    dtype = residuals.half_precision(x.dtype)
    largest = min(float(jnp.finfo(t).max) for t in (x.dtype, dtype))
    expected = residuals.pack_elements(x, keep, dtype)
    bits, values = select_elements.pack(
        x, k, dtype, largest, capability=(9, 0), blocks=blocks, call=triton_interpreter.call
    )
    np.testing.assert_array_equal(bits, expected.bits)
    np.testing.assert_array_equal(values, expected.values)
    assert values.dtype == dtype

for dtype in (jnp.float32, jnp.bfloat16):
    check(jnp.asarray(generator.standard_normal((2, 69)), dtype), 0.1)
ties = generator.integers(-2, 3, (2, 69))  # most elements tie with the threshold
check(jnp.asarray(ties, jnp.bfloat16), 0.3)
check(jnp.asarray([[1e6, -1e6, 1.0, np.inf, -0.0, np.nan]], jnp.float32), 0.8)
check(jnp.ones((1, 1), jnp.float16), 1.0)
print("equal")
"""


@WITH_TRITON
def test_the_kernels_run_in_the_interpreter_and_equal_xla():
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"}
        | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


@pytest.mark.parametrize(
    ("card", "chosen"), [("h200", "jax_triton"), ("rtx4090", "jax_triton"), ("rtx2080ti", "xla")]
)
def test_the_device_decides(card, chosen, monkeypatch):
    where = dispatch.Target("gpu", CARDS[card].description, CARDS[card].capability)
    monkeypatch.setattr(dispatch, "target", lambda *args: where)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    x = jax.ShapeDtypeStruct((2, 8), jnp.bfloat16)
    assert residuals.KERNEL.choose(None, x) == chosen
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert residuals.KERNEL.choose(None, x) == "xla"


def test_what_the_kernel_cannot_take_is_refused(monkeypatch):
    where = dispatch.Target("gpu", CARDS["h200"].description, CARDS["h200"].capability)
    monkeypatch.setattr(dispatch, "target", lambda *args: where)
    for shape, dtype, message in [
        ((2, 0), jnp.float32, r"x has shape \(2, 0\): must hold 1 to 2\^30 elements"),
        ((2, 8), jnp.float64, "x has dtype float64: must be bfloat16, float16 or float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            residuals.KERNEL.choose("jax_triton", jax.ShapeDtypeStruct(shape, np.dtype(dtype)))


@WITH_TRITON
@pytest.mark.gpu_compile
@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize(("dtype", "passes"), [(jnp.bfloat16, 3), (jnp.float32, 5)])
def test_compiles_without_spills_and_moves_a_fraction_of_what_xla_does(dtype, passes, card):
    x = jax.ShapeDtypeStruct((128, 197 * 768), dtype)
    half = residuals.half_precision(dtype)
    pack = functools.partial(residuals.pack_elements, keep=0.1, dtype=half)
    programs = {
        name: compile_for(functools.partial(pack, implementation=name), [x], CARDS[card])
        for name in ("jax_triton", "xla")
    }
    found = {name: launches(program.as_text()) for name, program in programs.items()}
    moved = {n: sum(one.times * one.bytes for one in listed) for n, listed in found.items()}
    kernels = [one for one in found["jax_triton"] if one.kind == "kernel"]
    assert len(kernels) == passes
    assert moved["jax_triton"] < 0.25 * moved["xla"]
    assert memory(programs["jax_triton"]).temp_bytes < 0.01 * memory(programs["xla"]).temp_bytes


@WITH_TRITON
@pytest.mark.gpu_compile
@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_registers_and_spills(dtype, card, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # jax-triton unsets it
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pbr_jax.kernels import select_elements as kernel

    major, minor = CARDS[card].capability
    blocks = kernel.BLOCKS
    size = 197 * 768
    common = {
        "SIZE": size,
        "SHARE": blocks.rows * blocks.columns,
        "BLOCK": blocks.columns,
        "WIDE": dtype == "fp32",
    }
    of_kernel = {
        kernel.count_digits: common | {"SHIFT": 8, "ABOVE": 16, "BINS": 256},
        kernel.write_kept: common | {"KEPT": size // 10, "LARGEST": 65504.0},
    }
    types = {"x_ptr": f"*{dtype}", "bits_ptr": "*u8", "values_ptr": "*fp16"}
    for function, constants in of_kernel.items():
        names = [name for name in function.arg_names if name not in constants]
        signature = {name: types.get(name, "*i32") for name in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(names))}
        source = ASTSource(
            function, signature | dict.fromkeys(constants, "constexpr"), constants, aligned
        )
        built = triton.compile(
            source,
            target=GPUTarget("cuda", 10 * major + minor, 32),
            options={"num_warps": blocks.num_warps, "enable_fp_fusion": True},
        )
        registers, spills = ptx_use(built.asm["ptx"], CARDS[card])
        assert spills == 0
        assert registers <= 128
        assert built.metadata.shared <= CARDS[card].shared_per_block
