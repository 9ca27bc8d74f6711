"""Padding, segments, windows and dropout of attention, for every residual and implementation."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import as_jax, assert_close, implemented, normal, unchecked, value_and_pullback

from pbr_jax.kernels import attention_blocks
from pbr_jax.kernels.attention_arguments import Rules
from pbr_jax.kernels.attention_launch import Program
from pbr_jax.kernels.attention_tiles import key_blocks, query_blocks
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.ops import attention_xla
from pbr_jax.ops.attention import attention
from pbr_jax.ops.visibility import Visibility, dropout_factor, dropout_seeds

B, H, N, HEAD = 4, 2, 37, 16
KINDS = ["flash", "qkv", "channels", "elements"]
IN_KERNELS = ["flash", "qkv", "channels"]
ROUNDING = 4e-6
RATE = 0.25
WINDOW = 18
KEYS = jax.random.split(jax.random.key(3), B)

LENGTHS = np.array([37, 20, 1, 0], np.int32)
SEGMENTS = np.repeat([[0, 0, 0, 0], [0, 0, 1, 1], [2, 0, 0, 2], [5, 4, 3, 4]], 10, axis=1)
SEGMENTS = np.ascontiguousarray(SEGMENTS[:, :N], np.int32)

SEEN = {
    "lengths": (np.arange(N) < LENGTHS[:, None])[:, None, None, :],
    "segment_ids": (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])[:, None],
    "causal": np.tril(np.ones((1, 1, N, N), bool)),
    "window": np.triu(np.ones((1, 1, N, N), bool), 1 - WINDOW),
}
GIVEN = {
    "lengths": LENGTHS,
    "segment_ids": SEGMENTS,
    "causal": True,
    "window": WINDOW,
    "dropout": RATE,
}
CASES = {
    **{name: (name,) for name in GIVEN if name != "window"},
    "window": ("causal", "window"),
    "padded window": ("causal", "window", "lengths"),
    "window of segments": ("causal", "window", "segment_ids"),
    "padded segments": ("segment_ids", "lengths"),
    "causal padding": ("causal", "lengths", "dropout"),
    "all": tuple(GIVEN),
}


@functools.cache
def inputs():
    return [normal(20 + i, B, H, N, HEAD) for i in range(4)]


def run(kind, names, implementation="xla"):
    given = {name: GIVEN[name] for name in names}
    arrays = {n: jnp.asarray(given.pop(n)) for n in ("lengths", "segment_ids") if n in given}
    if "dropout" in given:
        arrays["seeds"] = dropout_seeds(KEYS)
    op = functools.partial(
        attention,
        visibility=Visibility(**arrays),
        kind=kind,
        keep=0.5,
        implementation=implementation,
        **given,
    )
    *qkv, do = (as_jax(a) for a in inputs())
    with implemented():
        return value_and_pullback(op, do, *qkv)


def oracle(kind, names):
    """Output and gradients, in float64."""
    *qkv, do = inputs()
    masks = [SEEN[name] for name in names if name in SEEN]
    mask = functools.reduce(np.logical_and, masks) if masks else None
    dropout = 1.0
    if "dropout" in names:
        dropout = oracles.dropout_factor(dropout_seeds(KEYS), H, N, N, RATE)
    gradients = {
        "elements": functools.partial(oracles.pruned_attention_gradients, keep=0.5),
        "channels": functools.partial(oracles.sparse_attention_gradients, num_kept=8),
    }.get(kind, oracles.dense_attention_gradients)
    return oracles.attention(*qkv, mask, dropout=dropout), gradients(
        *qkv, mask, do, dropout=dropout
    )


def check(kind, names, implementation="xla"):
    y, grads = run(kind, names, implementation)
    expected_y, expected = oracle(kind, names)
    assert_close(y, expected_y, ROUNDING, "out")
    for name, gradient, exact in zip("qkv", grads, expected, strict=True):
        assert_close(gradient, exact, 1e-4 if kind == "elements" else ROUNDING, f"d{name}")


@pytest.mark.parametrize(
    ("kind", "case"),
    [*[("qkv", case) for case in CASES], *[(r, "all") for r in KINDS if r != "qkv"]],
)
def test_equals_the_oracle(kind, case):
    check(kind, CASES[case])


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        *[(kind, "all") for kind in IN_KERNELS],
        ("flash", "lengths"),
        ("flash", "causal padding"),
        ("flash", "window of segments"),
        *[
            pytest.param("flash", case, marks=pytest.mark.exhaustive)
            for case in CASES
            if case not in ("all", "lengths", "causal padding", "window of segments")
        ],
    ],
)
def test_kernels_equal_the_oracle_tile_by_tile(kind, case, monkeypatch):
    """Several blocks of queries and of keys, the last of each ragged; some are skipped."""
    blocks = {"forward": (16, 16), "queries": (16, 32), "keys": (32, 16)}
    monkeypatch.setattr(
        attention_blocks, "blocks_for", lambda part, *_: Blocks(*blocks[part], num_stages=2)
    )
    rows = Blocks(16, 64, num_stages=2)
    monkeypatch.setattr(attention_blocks, "blocks_for_rows", lambda *_: rows)
    check(kind, CASES[case], "triton")


def test_rows_that_do_not_fit_on_chip_are_attended_to_again(monkeypatch):
    blocks = Blocks(16, 32, num_stages=2)
    monkeypatch.setattr(attention_blocks, "blocks_for", lambda *_: blocks)
    monkeypatch.setattr(attention_blocks, "blocks_for_rows", lambda *_: None)
    check("channels", CASES["all"], "triton")


@pytest.mark.parametrize(
    ("kind", "score_bytes"), [("flash", 4000), ("qkv", 10952), ("channels", 3000)]
)
def test_blocks_of_samples_and_queries_draw_the_same(kind, score_bytes, monkeypatch):
    monkeypatch.setattr(attention_xla, "_SCORE_BYTES", score_bytes)
    check(kind, CASES["all"])


def test_padded_queries_reach_nothing_if_their_cotangent_is_zero():
    *qkv, do = map(as_jax, inputs())
    queries = jnp.asarray(SEEN["lengths"]).swapaxes(2, 3)
    do = jnp.where(queries, do, 0.0)
    changed = [jnp.where(queries, a, 100 * a) for a in qkv]
    op = functools.partial(
        attention, visibility=Visibility(lengths=jnp.asarray(LENGTHS)), kind="qkv"
    )
    (y, grads), (y_changed, grads_changed) = (
        value_and_pullback(op, do, *a) for a in (qkv, changed)
    )
    assert_close(jnp.where(queries, y_changed, 0.0), jnp.where(queries, y, 0.0), 1e-6)
    assert all(np.isfinite(g).all() for g in (y_changed, *grads_changed))
    some = LENGTHS > 0  # of a sample without tokens nothing is asked
    for name, a, b in zip("qkv", grads_changed, grads, strict=True):
        assert_close(a[some], b[some], 1e-6, f"d{name}")


@pytest.mark.parametrize("window", [1, 5, 16, 20, 40])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 32), (32, 16)])
def test_kernels_meet_no_block_that_is_hidden_as_a_whole(window, rows, columns):
    program = Program(
        Rules(1.0, causal=True), Blocks(rows, columns), num_queries=N, num_keys=N, group=1,
        channels=(HEAD,) * 3,
    )  # fmt: skip
    told = Visibility(window=jnp.array([window], jnp.int32))
    seen = np.triu(np.tril(np.ones((N, N), bool)), 1 - window)
    for first, size, found in (
        (0, rows, lambda i: key_blocks(program.queries(i), program, told)),
        (1, columns, lambda i: query_blocks(program.keys(i), program, told)),
    ):
        other = rows + columns - size
        for i in range(-(-N // size)):
            mine = np.take(seen, range(i * size, min(N, (i + 1) * size)), first)
            met = np.flatnonzero(mine.any(first))
            expected = (met[0] // other, met[-1] // other + 1)
            assert tuple(map(int, found(i))) == expected


@pytest.mark.parametrize("implementation", ["xla", "triton"])
def test_blocks_in_a_scan_have_windows_of_their_own(implementation, monkeypatch):
    monkeypatch.setattr(attention_blocks, "blocks_for", lambda *_: Blocks(16, 16))
    *qkv, _ = (as_jax(a)[:1] for a in inputs())
    op = functools.partial(attention, causal=True, implementation=implementation)
    with implemented():
        windows = jnp.array([5, 0, N, 3], jnp.int32)
        _, scanned = jax.lax.scan(lambda _, window: (None, op(*qkv, window=window)), None, windows)
        for y, window in zip(scanned, (5, None, 0, 3), strict=True):
            np.testing.assert_array_equal(y, op(*qkv, window=window))


class TestDropoutBits:
    SIZES = types.SimpleNamespace(samples=3, heads=4, queries=64, keys=96)

    @classmethod
    @functools.cache
    def kept(cls, rate=0.1):
        s = cls.SIZES
        seeds = dropout_seeds(jax.random.split(jax.random.key(1), s.samples))
        rows = jnp.arange(s.queries, dtype=jnp.int32)
        factor = np.asarray(dropout_factor(seeds, s.heads, rows, s.keys, rate), np.float64)
        assert set(np.unique(factor)) == {0.0, np.float64(np.float32(1 / (1 - rate)))}
        return factor > 0

    @pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
    def test_the_rate_is_kept_everywhere(self, rate):
        kept = self.kept(rate)
        for axes in ((0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
            count = np.prod([kept.shape[a] for a in axes])
            spread = np.sqrt(rate * (1 - rate) / count)
            assert np.abs(kept.mean(axis=axes) - (1 - rate)).max() < 5 * spread

    @pytest.mark.parametrize("axis", range(4))
    def test_neighbours_are_not_correlated(self, axis):
        drop = ~self.kept() - 0.1
        for shift in (1, 2, 3, 32):
            if shift < drop.shape[axis]:
                near = np.take(drop, range(drop.shape[axis] - shift), axis)
                far = np.take(drop, range(shift, drop.shape[axis]), axis)
                correlation = (near * far).mean() / 0.09
                assert abs(correlation) < 5 / np.sqrt(near.size), shift

    def test_four_corners_of_a_rectangle_are_not_correlated(self):
        """Bits of a row and of a column meet in an exclusive or, which alone would show here."""
        drop = ~self.kept(0.5) - 0.5
        corners = (
            drop[:, :, :-1, :-1] * drop[:, :, 1:, :-1] * drop[:, :, :-1, 1:] * drop[:, :, 1:, 1:]
        )
        assert abs(corners.mean() / 0.5**4) < 5 / np.sqrt(corners.size)

    def test_a_part_of_the_rows_is_that_part_of_the_whole(self):
        seeds = dropout_seeds(jax.random.split(jax.random.key(1), self.SIZES.samples))
        rows = jnp.array([5, 40, 63], jnp.int32)
        part = dropout_factor(seeds[1:], 4, rows, 96, 0.1)
        np.testing.assert_array_equal(part > 0, self.kept()[1:, :, [5, 40, 63]])


Q = jnp.zeros((2, 2, 5, 8))


def told(**arrays):
    return {"visibility": Visibility(**arrays)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (told(lengths=jnp.ones((2,))), r"lengths is float32 \(2,\): must be int32 \[B\] = \(2,\)"),
        (
            told(segment_ids=jnp.ones((2, 4), jnp.int32)),
            r"segment_ids is int32 \(2, 4\): must be int32 \[B, N\] = \(2, 5\)",
        ),
        ({"causal": True, "k": Q[:, :, :3], "v": Q[:, :, :3]}, "causal with 5 queries and 3 keys"),
        ({"window": 3}, "window without causal: is for queries that see the keys before them"),
        ({"window": -1, "causal": True}, "window = -1: must be a number of keys, or 0 or None"),
        (
            {"window": jnp.ones((2,), jnp.int32), "causal": True},
            r"window is int32 \(2,\): must be an integer scalar",
        ),
        (
            told(window=jnp.ones((2,), jnp.int32)) | {"window": 3, "causal": True},
            "window and visibility.window: give one of them",
        ),
        ({"dropout": 1.0}, r"dropout = 1\.0: must be in \[0, 1\)"),
        ({"dropout": 0.1}, r"dropout = 0\.1 without visibility.seeds: .*one PRNG key per sample"),
        (
            told(seeds=dropout_seeds(jax.random.split(jax.random.key(0), 3))) | {"dropout": 0.1},
            r"seeds is uint32 \(3, 2\): must be uint32 \[B, 2\] = \(2, 2\)",
        ),
    ],
)
def test_errors_name_argument_value_and_rule(given, message):
    with pytest.raises(ValueError, match=message):
        unchecked(attention)(**{"q": Q, "k": Q, "v": Q} | given)


def test_nothing_given_is_nothing_to_carry():
    assert jax.tree.leaves(Visibility()) == []
