"""Compiled memory of whole train steps per plan, and their kernels, for GPUs that are not there.

ViT-B/16: batch 128, 224 px, SGD with momentum. BERT-base: batch 32, length 512, AdamW, dropout 0.1.
Both with bfloat16 activations, float32 master weights and clipping. Temp bytes are the compiler's
plan for one step, arguments not included: deterministic for a version of JAX.
"""

import dataclasses

import jax
import pytest

from pbr_jax.configs.common import Config, Data, Model, Optimizer
from pbr_jax.gpu import CARDS, compile_for, memory
from pbr_jax.gpu.launches import launches
from pbr_jax.memory.use import memory_use
from pbr_jax.methods import OF_HALF_BLOCKS, resolve
from pbr_jax.training import from_config
from pbr_jax.training.from_config import state_shapes

pytestmark = [pytest.mark.gpu_compile, pytest.mark.slow]
# Steps that are compiled in any case; those of all other methods are exhaustive.
ALWAYS = ("full", "remat", "lean")


def each(methods, *others, always=ALWAYS):
    """Parameters by method, exhaustive but for those that are compiled always."""
    marks = {method: () if method in always else pytest.mark.exhaustive for method in methods}
    return [pytest.param(method, *others, marks=marks[method]) for method in methods]


VIT_B16 = Config(
    batch_size=128,
    model=Model(size="B", patch=16, image_size=224, num_classes=100, dtype="bfloat16"),
    optimizer=Optimizer(name="sgd", momentum=0.9, clip_norm=1.0, warmup_steps=100),
)

BERT_BASE = Config(
    batch_size=32,
    model=Model(
        family="bert", size="B", max_length=512, num_classes=2, dropout=0.1, dtype="bfloat16"
    ),
    data=Data(name="glue/rte"),
    optimizer=Optimizer(name="adamw", learning_rate=5e-5, clip_norm=1.0, schedule="linear"),
)

CEILINGS = {  # GB of temp
    "full": 7.8,
    "remat": 1.35,
    "prebackrazor": 5.6,
    "fast": 2.80,
    "lean": 1.35,
    "tiny": 0.90,
    "remat+offload": 0.80,
    "tiny+offload": 0.30,
}
# Which run every kernel between them, so that steps for another card need no more methods.
ON_AN_OLDER_CARD = ("full", "prebackrazor++", "fast")
BERT_CEILINGS = {"full": 5.3, "prebackrazor": 3.9, "lean": 1.10, "tiny": 0.70}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Method, card and implementation -> its compiled step's memory and kernels, each once.

    XLA keeps the machine code of kernels in a file and compiles what no other step had. LLVM does
    not optimise the rest: that changes neither the plan of memory nor which kernels there are.
    """
    found = {}
    folder = tmp_path_factory.mktemp("kernels")

    def compile_step(method, base=VIT_B16, card="h200", implementation=None):
        plan = dataclasses.replace(base.plan, implementation=implementation)
        config = dataclasses.replace(base, method=method, plan=plan)
        if (config, card) not in found:
            parts = from_config.build(config)
            args = (state_shapes(config, parts), from_config.batch_specs(config))
            options = {"xla_gpu_kernel_cache_file": str(folder / card)}
            options["xla_backend_optimization_level"] = 0
            step = compile_for(
                parts.train_step, args, CARDS[card], donate_argnums=0, compiler_options=options
            )
            kernels = {one.name for one in launches(step.as_text()) if one.kind == "kernel"}
            found[config, card] = memory(step), kernels
        return found[config, card]

    return compile_step


@pytest.fixture(scope="module")
def report(compiled):
    """Method, and the configuration that takes it -> memory of its step on an H200."""
    return lambda method, base=VIT_B16: compiled(method, base)[0]


@pytest.mark.parametrize("method", each(CEILINGS))
def test_temp_memory_of_the_step_stays_under_its_ceiling(report, method):
    assert report(method).temp_bytes <= CEILINGS[method] * 1e9


@pytest.mark.exhaustive
@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize("method", ["remat", "tiny"])
def test_block_inputs_leave_the_card(compiled, method, card):
    """`L B N D` in bfloat16 is on the host, and all but two of its parts are no longer in temp."""
    inputs = 12 * 128 * 197 * 768 * 2
    here, away = (compiled(name, card=card)[0] for name in (method, f"{method}+offload"))
    assert (here.host_bytes, away.host_bytes) == (0, pytest.approx(inputs, rel=0.01))
    assert 0.9 * inputs < here.temp_bytes - away.temp_bytes < 1.1 * inputs


@pytest.fixture
def standard_promotion():
    """Optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", BERT_CEILINGS)
@pytest.mark.usefixtures("standard_promotion")
def test_temp_memory_of_bert_stays_under_its_ceiling(report, method):
    assert report(method, BERT_BASE).temp_bytes <= BERT_CEILINGS[method] * 1e9


@pytest.mark.parametrize(
    ("method", "card"),
    [
        *each(OF_HALF_BLOCKS, "h200"),
        *each(ON_AN_OLDER_CARD, "rtx4090", always=()),
    ],
)
def test_every_method_compiles_with_its_kernels(compiled, method, card):
    _, kernels = compiled(method, card=card)
    plan, state = resolve(method).plan, resolve(method).state
    assert ("weight_gradient" in kernels) == (plan.linear in ("columns", "magnitude"))
    # Packed state lies together, and needs no kernel that finds rows.
    assert ("row_update_sgd" in kernels) == (plan.linear == "columns" and state == "whole")
    assert ("attention_forward" in kernels) == (plan.attention != "elements")
    fused = card == "rtx4090" and plan.gelu != "dense"
    assert fused == ("linear_gelu" in kernels) == ("linear_gelu_gradient" in kernels)


@pytest.mark.exhaustive
def test_few_methods_run_every_kernel_of_the_older_card(compiled):
    by_few = set().union(*(compiled(m, card="rtx4090")[1] for m in ON_AN_OLDER_CARD))
    by_all = set().union(*(compiled(m)[1] for m in OF_HALF_BLOCKS))
    assert by_all - by_few == {"gelu"}  # which is fused there, into the products around it


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["full", "prebackrazor++", "fast", "tiny"])  # all kernels
def test_kernels_need_no_more_memory_than_xla_alone(compiled, method):
    alone = compiled(method, implementation="xla")[0].temp_bytes
    assert compiled(method)[0].temp_bytes <= alone


def test_the_state_is_updated_in_place(report):
    """Donated state: the outputs that are not written over arguments are the step's few scalars."""
    use = report("lean")
    assert use.output_bytes - use.alias_bytes < 1e4


@pytest.mark.parametrize(
    ("method", "share"), [("lean", 1.1), pytest.param("tiny", 0.75, marks=pytest.mark.exhaustive)]
)
def test_lean_and_tiny_are_as_small_as_rematerialisation(report, method, share):
    assert report(method).temp_bytes <= share * report("remat").temp_bytes


@pytest.mark.parametrize("method", each(["full", "prebackrazor"]))
def test_saved_activations_explain_the_temp_memory(report, method):
    """What is saved between the passes is most of the temp memory, and never more than it."""
    saved = memory_use(dataclasses.replace(VIT_B16, method=method)).activations
    assert 0.75 * report(method).temp_bytes <= saved <= report(method).temp_bytes


@pytest.mark.exhaustive
def test_chunks_of_the_batch_shrink_transients_only(report):
    chunked = dataclasses.replace(VIT_B16, method="remat")
    whole = dataclasses.replace(chunked, plan=dataclasses.replace(chunked.plan, batch_chunks=1))
    assert report("remat").temp_bytes < 0.8 * report("remat", whole).temp_bytes
    assert memory_use(whole).activations == memory_use(chunked).activations
