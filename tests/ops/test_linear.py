"""The linear layer: every residual against the NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import (
    as_float64,
    as_jax,
    assert_close,
    equations,
    normal,
    relative_error,
    saved_bytes,
    unchecked,
    value_and_pullback,
)

from pbr_jax.ops import pair
from pbr_jax.ops.linear import Settings, linear, linear_pair

B, N, D, F = 4, 6, 32, 12
COLUMNS = np.array([1, 2, 5, 11, 12, 20, 30, 31], np.int32)
KEEP = len(COLUMNS) / D
ROUNDING = 3e-6  # of float32 sums of a few hundred terms

ARRAYS = {"x": normal(0, B, N, D), "kernel": normal(1, D, F), "bias": normal(2, F)}
DY = normal(3, B, N, F)
KINDS = ["dense", "columns", "packed rows", "magnitude", "elements"]


def run(
    kind,
    implementation="xla",
    *,
    keep=KEEP,
    columns=COLUMNS,
    dtype=jnp.float32,
    x=ARRAYS["x"],
    dy=DY,
):
    """Output and gradients of x, kernel and bias; packed rows are returned where they belong."""
    x, dy = as_jax(x, dtype), as_jax(dy, dtype)
    kernel, bias, selected = as_jax(ARRAYS["kernel"]), as_jax(ARRAYS["bias"]), jnp.asarray(columns)
    if kind == "packed rows":
        rows = jnp.zeros((len(columns), F))
        y, (dx, packed, db) = value_and_pullback(
            lambda x, rows, bias: linear(
                x, kernel, bias, columns=selected, rows=rows, implementation=implementation
            ),
            dy,
            x,
            rows,
            bias,
        )
        dw = np.zeros((D + 1, F), np.float32)
        dw[columns] = packed
        assert not packed[columns == D].any()
        return y, {"x": dx, "kernel": dw[:D], "bias": db}
    options = ({"columns": selected} if kind == "columns" else {"kind": kind, "keep": keep}) | {
        "implementation": implementation
    }
    y, (dx, dw, db) = value_and_pullback(lambda *a: linear(*a, **options), dy, x, kernel, bias)
    return y, {"x": dx, "kernel": dw, "bias": db}


def seen_by_the_weights(kind):
    """The oracle's input of the weight gradient."""
    x = ARRAYS["x"]
    return {
        "dense": lambda: x,
        "columns": lambda: oracles.only_columns(x, COLUMNS),
        "packed rows": lambda: oracles.only_columns(x, COLUMNS),
        "magnitude": lambda: oracles.only_columns(
            x, oracles.columns_of_largest_norm(x, len(COLUMNS))
        ),
        "elements": lambda: oracles.largest_elements(x, KEEP, np.float16),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
class TestLinear:
    def test_equals_the_oracle(self, kind, implementation):
        y, grads = run(kind, implementation)
        assert_close(y, ARRAYS["x"] @ ARRAYS["kernel"] + ARRAYS["bias"], ROUNDING, "y")
        expected = oracles.linear_gradients(seen_by_the_weights(kind), ARRAYS["kernel"], DY)
        assert_close(grads, expected, ROUNDING)

    def test_keeping_everything_equals_the_dense_layer(self, kind, implementation):
        _, grads = run(kind, implementation, keep=1.0, columns=np.arange(D, dtype=np.int32))
        expected = oracles.linear_gradients(ARRAYS["x"], ARRAYS["kernel"], DY)
        tolerance = dict.fromkeys(expected, ROUNDING)
        if kind == "elements":
            tolerance["kernel"] = 2**-11  # its values are float16
        for name, value in expected.items():
            assert_close(grads[name], value, tolerance[name], name)

    def test_bfloat16_error_is_that_of_plain_code(self, kind, implementation):
        low = {k: as_jax(v, jnp.bfloat16) for k, v in ARRAYS.items()}
        plain_y, plain = value_and_pullback(
            lambda x, kernel, bias: jnp.matmul(x, kernel) + bias[None, None],
            as_jax(DY, jnp.bfloat16),
            *low.values(),
        )
        # Rounded to bfloat16 entries tie at the threshold of "elements": it keeps everything here.
        keep = 1.0 if kind == "elements" else KEEP
        y, grads = run(kind, implementation, keep=keep, dtype=jnp.bfloat16)
        assert y.dtype == grads["x"].dtype == jnp.bfloat16
        assert grads["kernel"].dtype == jnp.float32  # that of the master weights
        exact_y = ARRAYS["x"] @ ARRAYS["kernel"] + ARRAYS["bias"]
        assert relative_error(y, exact_y) <= 2 * relative_error(plain_y, exact_y)
        dense = oracles.linear_gradients(ARRAYS["x"], ARRAYS["kernel"], DY)
        seen = ARRAYS["x"] if kind == "elements" else seen_by_the_weights(kind)
        pruned = oracles.linear_gradients(seen, ARRAYS["kernel"], DY)
        for name, plain_gradient in zip(ARRAYS, plain, strict=True):
            allowed = 3 * relative_error(plain_gradient, dense[name])
            assert relative_error(grads[name], pruned[name]) <= allowed, name


@pytest.mark.parametrize("kind", ["columns", "packed rows", "magnitude"])
def test_kept_rows_are_the_dense_rows_and_the_others_zero(kind):
    dense, pruned = (run(r)[1]["kernel"] for r in ("dense", kind))
    kept = (
        COLUMNS
        if kind != "magnitude"
        else oracles.columns_of_largest_norm(ARRAYS["x"], len(COLUMNS))
    )
    others = np.setdiff1d(np.arange(D), kept)
    assert_close(np.asarray(pruned)[kept], np.asarray(dense)[kept], ROUNDING)
    np.testing.assert_array_equal(np.asarray(pruned)[others], 0)


@pytest.mark.parametrize("kind", ["columns", "packed rows"])
def test_unused_slots_contribute_nothing(kind, implementation):
    padded = np.array([1, 2, 5, D, D], np.int32)
    y, grads = run(kind, implementation, columns=padded)
    expected = oracles.linear_gradients(
        oracles.only_columns(ARRAYS["x"], padded[:3]), ARRAYS["kernel"], DY
    )
    assert_close(grads, expected, ROUNDING)
    assert np.isfinite(np.asarray(y)).all()


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_any_number_of_leading_axes(shape, implementation):
    x, dy = normal(5, *shape, D), normal(6, *shape, F)
    _, grads = run("columns", implementation, x=x, dy=dy)
    expected = oracles.linear_gradients(oracles.only_columns(x, COLUMNS), ARRAYS["kernel"], dy)
    assert_close(grads, expected, ROUNDING)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_bytes(kind, dtype):
    x, kernel, columns = as_jax(ARRAYS["x"], dtype), as_jax(ARRAYS["kernel"]), jnp.asarray(COLUMNS)
    options = {
        "dense": {"kind": "dense"},
        "columns": {"columns": columns},
        "packed rows": {"columns": columns, "rows": jnp.zeros((len(COLUMNS), F))},
        "magnitude": {"kind": "magnitude", "keep": KEEP},
        "elements": {"kind": "elements", "keep": KEEP},
    }[kind]
    itemsize, packed = x.dtype.itemsize, B * N * len(COLUMNS)
    expected = {
        "dense": B * N * D * itemsize,
        "columns": packed * itemsize,
        "packed rows": packed * itemsize,
        "magnitude": packed * itemsize + 4 * len(COLUMNS),
        "elements": B * (round(KEEP * N * D) * 2 + N * D // 8),
    }[kind]
    assert saved_bytes(lambda x: linear(x, kernel, **options), x) == expected


class TestActiveFlags:
    """JointSPAR: a tensor that is not trained in this interval."""

    @staticmethod
    def gradients(kernel_active, bias_active, packed, implementation="xla"):
        params = as_jax({"kernel": ARRAYS["kernel"], "bias": ARRAYS["bias"]})
        selection = {"columns": jnp.asarray(COLUMNS)}
        if packed:
            selection["rows"] = jnp.zeros((len(COLUMNS), F))
        op = pair.bind(linear_pair(Settings("columns", implementation=implementation)))

        def loss(trained, kernel_active, bias_active):
            flags = {"kernel": kernel_active, "bias": bias_active}
            frozen = {k: v for k, v in (params | selection).items() if k not in trained}
            return jnp.vdot(
                op(frozen | trained | {"active": flags}, as_jax(ARRAYS["x"]), None), as_jax(DY)
            )

        trained = {"bias": params["bias"]}
        trained |= {"rows": selection["rows"]} if packed else {"kernel": params["kernel"]}
        return jax.grad(loss), (trained, jnp.asarray(kernel_active), jnp.asarray(bias_active))

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("kernel_active", [False, True])
    @pytest.mark.parametrize("bias_active", [False, True])
    def test_inactive_gradients_are_zero_and_active_ones_unchanged(
        self, kernel_active, bias_active, packed, implementation
    ):
        function, args = self.gradients(kernel_active, bias_active, packed, implementation)
        grads = jax.jit(function)(*args)
        expected = oracles.linear_gradients(
            oracles.only_columns(ARRAYS["x"], COLUMNS), ARRAYS["kernel"], DY
        )
        weights = grads["rows"] if packed else grads["kernel"]
        rows = COLUMNS if packed else slice(None)
        assert_close(weights, expected["kernel"][rows] * kernel_active, ROUNDING)
        assert_close(grads["bias"], expected["bias"] * bias_active, ROUNDING)

    def test_the_weight_product_is_inside_the_condition(self):
        function, args = self.gradients(True, True, packed=True)
        jaxpr = jax.make_jaxpr(function)(*args).jaxpr
        all_equations = list(equations(jaxpr))
        conditions = [e for e in all_equations if e.primitive.name == "cond"]
        shapes = [
            [i.outvars[0].aval.shape for i in all_equations if i.primitive.name == "dot_general"],
            [
                i.outvars[0].aval.shape
                for c in conditions
                for branch in c.params["branches"]
                for i in equations(branch.jaxpr)
                if i.primitive.name == "dot_general"
            ],
        ]
        product = (len(COLUMNS), F)
        assert shapes[0].count(product) == shapes[1].count(product) == 1


def test_selection_may_be_traced_or_constant():
    x, kernel = as_jax(ARRAYS["x"]), as_jax(ARRAYS["kernel"])
    constant = jnp.asarray(COLUMNS)
    traced = jax.jit(lambda x, columns: linear(x, kernel, columns=columns))(x, constant)
    closed_over = jax.jit(lambda x: linear(x, kernel, columns=constant))(x)
    np.testing.assert_array_equal(traced, closed_over)


def test_without_bias():
    x, kernel = as_jax(ARRAYS["x"]), as_jax(ARRAYS["kernel"])
    y, (dw,) = value_and_pullback(
        lambda w: linear(x, w, columns=jnp.asarray(COLUMNS)), as_jax(DY), kernel
    )
    expected = oracles.linear_gradients(
        oracles.only_columns(ARRAYS["x"], COLUMNS), ARRAYS["kernel"], DY
    )
    assert_close(y, ARRAYS["x"] @ ARRAYS["kernel"], ROUNDING)
    assert_close(dw, expected["kernel"], ROUNDING)


class TestErrors:
    X, W = jnp.zeros((2, 10)), jnp.zeros((10, 3))
    SELECTED = jnp.arange(4, dtype=jnp.int32)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"columns": jnp.array([0, 12], jnp.int32)}, r"columns contains 12: must be in 0\.\.9"),
            ({"columns": jnp.array([-2], jnp.int32)}, r"columns contains -2"),
            (
                {"columns": jnp.zeros(11, jnp.int32)},
                r"columns has K = 11 entries: must be at most D = 10",
            ),
            ({"columns": jnp.zeros(2, jnp.int16)}, r"columns has dtype int16: must be int32"),
            (
                {"columns": jnp.zeros((1, 2), jnp.int32)},
                r"columns has shape \(1, 2\): must be \[K\]",
            ),
            (
                {"kernel": jnp.zeros((9, 3))},
                r"kernel has shape \(9, 3\): must be \[D, F\] with D = \(10,\)",
            ),
            ({"kernel": jnp.zeros((10,))}, r"kernel has shape \(10,\): must be \[D, F\]"),
            ({"bias": jnp.zeros(4)}, r"bias has shape \(4,\): must be \[F\] = \(3,\)"),
            ({"x": jnp.zeros((2, 10), jnp.int32)}, r"x has dtype int32: must be a floating dtype"),
            ({"kind": "columns"}, r"kind = 'columns' with columns None"),
            ({"kind": "dense", "columns": SELECTED}, r"kind = 'dense' with columns given"),
            (
                {"kind": "element"},
                r"linear = 'element': must be .*dense.*columns.*magnitude.*elements",
            ),
            ({"kind": "elements", "keep": 0.0}, r"keep = 0\.0: must be in \(0, 1\]"),
            ({"kind": "magnitude", "keep": 1.5}, r"keep = 1\.5: must be in \(0, 1\]"),
            ({"rows": jnp.zeros((4, 3))}, r"rows given without columns"),
            (
                {"rows": jnp.zeros((5, 3)), "columns": SELECTED},
                r"rows has shape \(5, 3\): must be \[K, F\] = \(4, 3\)",
            ),
            (
                {"rows": jnp.zeros((4, 3), jnp.bfloat16), "columns": SELECTED},
                r"rows has dtype bfloat16: must be float32",
            ),
        ],
    )
    def test_names_argument_value_and_rule(self, arguments, message):
        given = {"x": self.X, "kernel": self.W} | arguments
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda: unchecked(linear)(given.pop("x"), given.pop("kernel"), **given))


def test_rounding_of_a_float64_reference_is_seen():
    """The tolerance is tight enough to notice an error of one part in 10^5."""
    y, _ = run("dense")
    with pytest.raises(AssertionError):
        assert_close(
            as_float64(y) * (1 + 1e-5), ARRAYS["x"] @ ARRAYS["kernel"] + ARRAYS["bias"], ROUNDING
        )
