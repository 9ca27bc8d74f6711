"""The checks pass what is right, kernels interpreted, and fail what is wrong."""

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measures import implemented

from pbr_jax import cli
from pbr_jax.bench import checks, exact, kernels
from pbr_jax.bench.cases.case import BenchCase
from pbr_jax.compare import steps
from pbr_jax.families import Architecture, Site
from pbr_jax.gpu import CARDS
from pbr_jax.models import exact as plain
from pbr_jax.training import from_config


def check(case):
    with implemented():
        return checks.check_case(case, kernels.random_arrays(case))


def small(op, *shapes, **changes):
    """The first case of `op`, on arrays of these shapes."""
    case = next(case for case in kernels.all_cases() if op in f"{case.op}, {case.shape}")
    args = tuple(a.update(shape=shape) for a, shape in zip(case.args, shapes, strict=True))
    return case._replace(args=args, **changes)


WEIGHT_GRADIENT = small("weight gradient, qkv", (40, 8), (40, 16))
HEADS = (1, 12, 9, 64)


@pytest.mark.parametrize(
    ("case", "results"),
    [
        (WEIGHT_GRADIENT, 2),
        (small("attention, forward, ", *[HEADS] * 3), 1),
        (small("attention, forward and backward, qkv", *[HEADS] * 4), 4),
    ],
    ids=["packed", "forward", "both"],
)
def test_kernels_pass_against_float64(case, results):
    found = check(case)
    assert found["reference"] == "float64"
    assert len(found["errors"]) == len(found["xla_errors"]) == results
    assert found["passed"] and found["refused"] is None
    assert all(error < 0.02 for error in found["errors"])


def wrong(kind):
    """An op whose kernel is off by one in a hundred, or in one of twenty codes."""

    def run(x, *, implementation):
        if kind == "values":
            return x * (1.01 if implementation == "triton" else 1.0)
        codes = jnp.arange(400) % 7
        return codes + jnp.where(jnp.arange(400) % 20 == 0, int(implementation == "triton"), 0)

    spec = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    return BenchCase("wrong", kind, run, (spec,), flops=0, num_bytes=8)


@pytest.mark.parametrize(("kind", "error"), [("values", 0.01), ("codes", 0.05)])
def test_a_wrong_kernel_fails(kind, error):
    found = check(wrong(kind))
    assert found["passed"] is False and found["reference"] == "float32"
    assert found["errors"] == pytest.approx([error], rel=1e-4)


def test_without_a_gpu_a_kernel_is_refused_and_nothing_failed():
    arrays = kernels.random_arrays(WEIGHT_GRADIENT)
    found = checks.check_case(WEIGHT_GRADIENT, arrays)
    assert found["passed"] is None and "needs a GPU" in found["refused"]


def test_float64_results_have_the_shapes_of_the_op():
    known = [case for case in kernels.all_cases() if exact.is_known(case)]
    assert {case.op for case in known} == set(exact.OPS)
    for case in known:
        run = functools.partial(case.run, implementation="xla")
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            expected = jax.eval_shape(exact.OPS[case.op], *case.args)
            found = jax.tree.leaves(jax.eval_shape(run, *case.args))
        assert [leaf.shape for leaf in expected] == [
            leaf.shape for leaf in found[: len(expected)]
        ], case.op


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_step_of_a_padded_bert_has_the_gradient_of_a_plain_one_in_float64():
    (found,) = checks.check_steps(fakes.bert_config("full"), ["prebackrazor"])
    assert found["passed"] and 0 < found["to_float64"] < 1e-5
    assert found["rows"] == pytest.approx(32 / 80)  # 8 of 16, 16, 16 and 32 columns


def test_the_plain_vit_computes_what_ours_does():
    config = fakes.config("full")
    parts = from_config.build(config)
    params, batch = steps.random_params(config, parts), steps.random_batch(config)
    ours = jax.jit(parts.model.module.apply)({"params": params}, batch["image"])
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(lambda params: plain.vit_logits(config, params, batch))(params)
    assert checks.relative_error(ours, expected) < 1e-5


def test_a_gradient_that_is_wrong_in_a_moved_row_is_seen():
    sizes = Architecture(4, 1, 1, {"fc1": Site(4, 2, ("blocks", "fc1"))})
    right = {"blocks": {"fc1": {"kernel": np.ones((1, 4, 2))}}, "head": np.ones(3)}
    moves = {"blocks": {"fc1": {"kernel": np.ones((1, 4, 2))}}, "head": np.ones(3)}
    kernel = moves["blocks"]["fc1"]["kernel"]
    kernel[0, 2] = 0  # a row that was not selected
    assert checks.error_where_moved(moves, right, sizes) == 0
    kernel[0, 1, 0] = 1.5
    assert checks.error_where_moved(moves, right, sizes) == pytest.approx(0.5 / 3)


def test_a_card_is_compared_field_by_field():
    card = dataclasses.replace(CARDS["h200"], name="here", l2_bytes=1)
    differing = {"l2_bytes": [CARDS["h200"].l2_bytes, 1]}
    assert checks.compare_cards(card) == {"name": "h200", "differing": differing}
    unknown = checks.compare_cards(dataclasses.replace(card, description="another"))
    assert unknown["name"] is None and unknown["differing"]["cores"] == [None, 132]


def test_the_command_says_what_passed_and_fails_if_something_did_not(monkeypatch, capsys):
    monkeypatch.setattr("pbr_jax.bench.kernels.all_cases", lambda: [wrong("values")])
    with implemented():
        assert cli.main(["bench", "check", "--what", "kernels,card"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "There is no GPU here, so no card to compare" in out
    assert cli.main(["bench", "check", "--what", "kernels", "--only", "softmax"]) == 2
    assert "--only softmax: no case has this in its name" in capsys.readouterr().err
    assert cli.main(["bench", "check", "--what", "kernels,gpu"]) == 2
    assert "--what gpu: must be of kernels, steps, card" in capsys.readouterr().err
