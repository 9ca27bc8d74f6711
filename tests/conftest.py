"""Settings of the whole suite: CPU, strict arrays, checked shapes, and the GPU compiler's tests."""

import collections
import gc
import importlib.metadata
import os
import pathlib

# Before JAX is imported, and for processes that a test starts. Compiling is most of the suite's
# time. Without LLVM's optimisation and XLA's fusion emitters it takes a quarter on the CPU. jaxlib
# 0.11 has no switch for the emitters: it ends the process at a flag that it does not know.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(os.environ["JAX_PLATFORMS"] == "cpu"))
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
    )

# Equal programs are compiled once: by all processes of a run, and for the next run too.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache/d/jax")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import jaxtyping
import pytest

# Annotated shapes and dtypes are checked at every call in these packages. Only in tests: it costs
# microseconds a call. The hook acts on modules that are imported after it.
jaxtyping.install_import_hook(["pbr_jax.ops", "pbr_jax.pruning"], "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# What JAX keeps of traces and programs is no garbage, and is not worth searching often.
gc.set_threshold(100_000, 50, 100)

# The first call of a jitted function compiles, so no deadline; the same examples in every run.
hypothesis.settings.register_profile("pbr_jax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("pbr_jax")


@pytest.fixture(params=["xla", "triton"])
def implementation(request):
    """Every implementation that an op has; without a GPU its kernels run interpreted."""
    from measures import implemented

    with implemented():
        yield request.param


# Where another version of JAX can compute, compile or store differently.
WITH_JAX = {"gpu", "kernels", "memory", "models", "ops", "training", "transform"}
# Where an installed package can lack a file that a checkout has.
WITH_FILES = {"commands", "settings"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `.ci/extra` runs a second time, by folder, and begins with files of slow tests."""
    for item in items:
        folder = item.path.parent.name
        if folder in WITH_JAX or item.path.stem in ("test_layers", "test_freeze", "test_resume"):
            item.add_marker(pytest.mark.jax_version)
        if folder in WITH_FILES or folder == "tests":
            item.add_marker(pytest.mark.installed)
    # A file goes to one process as a whole: a long one that comes last would leave the other idle.
    slow = collections.Counter(i.path for i in items if i.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(tryfirst=True)  # before fixtures, which may compile
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Optimises what is compiled for a GPU, and skips or fails it without the GPU compiler."""
    for_gpu = item.get_closest_marker("gpu_compile") is not None
    quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and not for_gpu
    jax.config.update("jax_disable_most_optimizations", quick)
    if not for_gpu:
        return
    from pbr_jax.gpu import GpuCompilerMissing, require_compiler

    try:
        require_compiler()
    except GpuCompilerMissing as missing:
        if os.environ.get("PBR_REQUIRE_GPU_COMPILER") == "1":
            pytest.fail(f"PBR_REQUIRE_GPU_COMPILER=1, but {missing}", pytrace=False)
        pytest.skip(str(missing))
