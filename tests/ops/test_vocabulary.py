"""The vocabulary: loss and gradients against plain code and float64, memory and arithmetic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_devices import answer
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from measures import as_jax, assert_close, normal, relative_error, value_and_pullback

from pbr_jax.gpu import CARDS, card_devices, compile_for, memory
from pbr_jax.memory.flops import matrix_flops
from pbr_jax.ops import vocabulary

T, D, V = 22, 12, 50
COLUMNS = np.array([7, 0, 11, D, 3], np.int32)  # one of the slots is not used
Z = 0.01
HIDDEN, TABLE = normal(0, T, D), 0.5 * normal(1, V, D)
TARGETS = np.random.default_rng(2).integers(0, V, T).astype(np.int32)
WEIGHTS = np.abs(normal(3, T)) / T
# Not scored: with a target of the usual kinds, or with one that is a word.
TARGETS[[2, 5]], TARGETS[9] = -100, V + 7
WEIGHTS[[2, 5, 9, 20]] = 0
ROUNDING = 2e-6


def exact(hidden=HIDDEN, table=TABLE, targets=TARGETS, weights=WEIGHTS, z=Z):
    """Loss, nll and gradients in float64, as they are written in a book."""
    logits = hidden @ table.T
    lse = np.log(np.sum(np.exp(logits), axis=1))
    onehot = targets[:, None] == np.arange(len(table))
    nll = np.where(weights != 0, lse - np.sum(onehot * logits, axis=1), 0)
    share = np.exp(logits - lse[:, None])
    dlogits = weights[:, None] * (share * (1 + 2 * z * lse[:, None]) - onehot)
    right = (weights != 0) & (np.argmax(logits, axis=1) == targets)
    value = np.sum(weights * (nll + z * lse**2))
    return value, nll, right, {"hidden": dlogits @ table, "table": dlogits.T @ hidden}


def plain(hidden, table):
    """All logits at once, and autodiff."""
    logits = jnp.einsum("td,vd->tv", hidden, table, preferred_element_type=jnp.float32)
    lse = jax.nn.logsumexp(logits, axis=1)
    own = jnp.take_along_axis(logits, jnp.clip(TARGETS, 0, V - 1)[:, None], axis=1)[:, 0]
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    return jnp.sum(weights * (lse - own + Z * lse**2))


def run(hidden=HIDDEN, table=TABLE, dtype=jnp.float32, chunk=4, dy=1.0):
    op = functools.partial(vocabulary.loss, z_loss=Z, chunk=chunk)
    constant = (jnp.asarray(TARGETS), jnp.asarray(WEIGHTS, jnp.float32))
    (value, (nll, right)), grads = value_and_pullback(
        lambda hidden, table: op(hidden, table, *constant),
        (jnp.float32(dy), (jnp.zeros(T), np.zeros(T, jax.dtypes.float0))),
        as_jax(hidden, dtype),
        as_jax(table, dtype),
    )
    return value, nll, right, dict(zip(("hidden", "table"), grads, strict=True))


@pytest.mark.parametrize("chunk", [4, 11, 100])
def test_equals_float64_whatever_the_chunk(chunk):
    value, nll, right, grads = run(chunk=chunk)
    expected = exact()
    assert_close(value, expected[0], ROUNDING)
    assert_close(nll, expected[1], ROUNDING)
    np.testing.assert_array_equal(right, expected[2])
    assert_close(grads, expected[3], ROUNDING)


def test_backward_pass_scales_by_the_cotangent():
    _, _, _, grads = run(dy=-3.0)
    assert_close(grads, {name: -3 * grad for name, grad in exact()[3].items()}, ROUNDING)


def test_error_is_at_most_that_of_plain_code():
    """In bfloat16: logits that are large, and a gradient that many chunks add up."""
    hidden, table = (as_jax(a, jnp.bfloat16) for a in (3 * HIDDEN, TABLE))
    value, _, _, grads = run(hidden, table, jnp.bfloat16)
    plain_value, plain_grads = value_and_pullback(plain, jnp.float32(1), hidden, table)
    # What bfloat16 makes of the inputs is no error of either.
    expected = exact(*(np.asarray(a, np.float64) for a in (hidden, table)))
    assert abs(value - expected[0]) <= 2 * abs(plain_value - expected[0]) + ROUNDING
    for name, theirs in zip(("hidden", "table"), plain_grads, strict=True):
        error = relative_error(grads[name], expected[3][name])
        assert grads[name].dtype == jnp.bfloat16
        assert error <= 3 * relative_error(theirs, expected[3][name]), name


@functools.cache
def packed(tied: bool):
    """Cotangents of the rows, of a head alone or of a table that also embeds the tokens."""
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, V, T), jnp.int32)
    targets, weights = jnp.asarray(TARGETS), as_jax(WEIGHTS)
    mixing = as_jax(normal(6, D, D))

    def value(table, rows, columns):
        own = {} if rows is None else {"columns": columns, "rows": rows}
        hidden = as_jax(HIDDEN)
        if tied:
            hidden = jnp.tanh(vocabulary.embed(table, tokens, **own) @ mixing)
        return vocabulary.loss(hidden, table, targets, weights, chunk=4, **own)[0]

    table, rows = as_jax(TABLE), jnp.zeros((len(COLUMNS), V))
    dense = jax.jit(jax.grad(lambda table: value(table, None, None)))(table)
    both = jax.jit(jax.grad(value, (0, 1)))(table, rows, jnp.asarray(COLUMNS))
    return dense, *both


@pytest.mark.parametrize("tied", [False, True])
def test_packed_rows_are_the_columns_of_the_dense_gradient(tied):
    dense, table, rows = packed(tied)
    assert_close(rows[COLUMNS < D], dense.T[COLUMNS[COLUMNS < D]], ROUNDING)
    assert not np.any(rows[COLUMNS == D])  # the slot that is not used
    assert not np.any(table)  # held constant


def test_what_is_not_scored_is_not_read():
    """A position that is filled up may hold anything, and a word that is none is an error."""
    hidden = HIDDEN.copy()
    hidden[WEIGHTS == 0] = np.nan
    value, nll, right, grads = run(hidden)
    assert_close(value, exact()[0], ROUNDING)
    assert not np.any(nll[WEIGHTS == 0]) and not np.any(right[WEIGHTS == 0])
    assert_close(grads, exact()[3], ROUNDING)
    wrong = jnp.full((T,), V, jnp.int32)
    assert np.isnan(vocabulary.loss(as_jax(HIDDEN), as_jax(TABLE), wrong, as_jax(WEIGHTS))[0])


def test_scores_are_those_of_the_loss():
    nll, right = vocabulary.scores(
        as_jax(HIDDEN), as_jax(TABLE), jnp.asarray(TARGETS), as_jax(WEIGHTS), chunk=8
    )
    assert_close(nll, exact()[1], ROUNDING)
    np.testing.assert_array_equal(right, exact()[2])
    every, _ = vocabulary.scores(as_jax(HIDDEN), as_jax(TABLE), jnp.zeros(T, jnp.int32))
    assert np.all(every > 0)


def specs(tokens, width, words, kept, dtype=jnp.bfloat16):
    shape = jax.ShapeDtypeStruct
    return {
        "hidden": shape((tokens, width), dtype),
        "table": shape((words, width), dtype),
        "targets": shape((tokens,), jnp.int32),
        "weights": shape((tokens,), jnp.float32),
        "columns": shape((kept,), jnp.int32),
        "rows": shape((kept, words), dtype),
    }


def gradient(case, **options):
    """`(hidden, table, ...) -> loss and gradients`, and what it is not given."""
    names = {"dense": ("hidden", "table"), "packed": ("hidden", "rows"), "frozen": ("hidden",)}
    without = () if case == "packed" else ("columns", "rows")

    def value(trained, others):
        given = others | trained
        loss, scores = vocabulary.loss(**given, **options)
        return loss, scores

    def step(**given):
        trained = {name: given.pop(name) for name in names[case]}
        return jax.value_and_grad(value, has_aux=True)(trained, given)

    return step, without


CASES = ["dense", "packed", "frozen"]


@pytest.mark.parametrize(("case", "products"), [("dense", 3), ("packed", 2 + 1 / 4), ("frozen", 2)])
def test_arithmetic_is_that_of_what_is_asked_for(case, products):
    step, without = gradient(case, chunk=16)
    given = {n: s for n, s in specs(64, 32, 100, 8).items() if n not in without}
    assert matrix_flops(lambda given: step(**given), given) == products * 2 * 64 * 32 * 100


@pytest.mark.parametrize("case", CASES)
def test_finished_gradients_are_all_that_is_saved(case):
    tokens, words = 64, 100
    known = specs(tokens, 32, words, 8)
    trained = {"dense": ["table"], "packed": ["rows"], "frozen": []}[case]

    def saved(hidden, own, others):
        given = {n: others[n] for n in ("targets", "weights")} | {"table": others["table"]}
        if case == "packed":
            given["columns"] = others["columns"]
        loss = lambda hidden, own: vocabulary.loss(hidden, **(given | own), chunk=16)[0]  # noqa: E731
        return jax.tree.leaves(jax.vjp(loss, hidden, own)[1])

    own = {name: known[name] for name in trained}
    kept = jax.eval_shape(saved, known["hidden"], own, known)
    assert sorted(leaf.shape for leaf in kept if leaf.size > 1) == sorted(
        known[name].shape for name in ["hidden", *trained]
    )


@pytest.mark.gpu_compile
@pytest.mark.parametrize(
    ("case", "most"),
    [
        # The float32 sum of the gradient is 1484 MiB, or 148 of packed rows.
        pytest.param("dense", 1600, marks=pytest.mark.exhaustive),
        ("packed", 320),
        pytest.param("frozen", 240, marks=pytest.mark.exhaustive),
    ],
)
def test_memory_of_a_large_vocabulary(case, most):
    """8192 tokens of Qwen3-4B, whose float32 logits would be 4748 MiB."""
    step, without = gradient(case)
    given = {n: s for n, s in specs(8192, 2560, 151936, 256).items() if n not in without}
    compiled = compile_for(lambda given: step(**given), (given,), CARDS["rtx4090"])
    assert memory(compiled).temp_bytes <= most * 2**20


@pytest.mark.gpu_compile
def test_devices_exchange_the_sum_of_the_gradient_once():
    """Four that share the tokens of a program that JAX partitions, in eight chunks."""
    devices, known = 4, specs(1024, 64, 4096, 16)
    kind = AxisType.Auto
    cards = card_devices(CARDS["rtx4090"], devices)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(kind,), devices=cards)
    step, _ = gradient("packed", chunk=128)
    where = {n: P("data") if n in ("hidden", "targets", "weights") else P() for n in known}
    placed = {
        name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, where[name]))
        for name, s in known.items()
    }
    own = jax.jit(lambda given: step(**given))
    compiled = compile_for(own, (placed,), CARDS["rtx4090"], mesh=mesh)
    assert memory(compiled).wire_bytes <= 1.05 * 4 * 16 * 4096


AXES = [pytest.param(case, id=case) for case in ("Auto", "Manual")]


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", AXES)
def test_four_devices_give_what_one_gives(case):
    assert answer("vocabulary_meshes.py", case, AXES) <= 5e-6


@pytest.mark.parametrize(
    ("tokens", "words", "devices", "expected"),
    [
        (8192, 151936, 1, 256),
        (8192, 151936, 4, 1024),
        (8192, 49152, 1, 512),
        (6000, 151936, 1, 240),
        (6001, 151936, 1, 256),  # no divisor: the last chunk is filled up
        (100, 151936, 1, 100),
    ],
)
def test_chunks_read_the_table_seldom_enough(tokens, words, devices, expected):
    assert vocabulary.chunk_of(tokens, words, devices) == expected


def test_refusals_name_the_argument():
    given = (as_jax(HIDDEN), as_jax(TABLE), jnp.asarray(TARGETS), as_jax(WEIGHTS))
    columns = jnp.asarray(COLUMNS)
    with pytest.raises(ValueError, match=r"z_loss = -1\.0: must be 0 or more"):
        vocabulary.loss(*given, z_loss=-1.0)
    with pytest.raises(ValueError, match="chunk = 0: must be 1 or more tokens"):
        vocabulary.loss(*given, chunk=0)
    with pytest.raises(ValueError, match="one is given without the other"):
        vocabulary.loss(*given, columns=columns)
    with pytest.raises(ValueError, match="one is given without the other"):
        vocabulary.embed(given[1], given[2], columns=columns)
