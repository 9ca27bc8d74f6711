"""What the backward pass keeps: which numbers, in which order, in how many bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from measures import as_jax, normal

from pbr_jax.ops import residuals
from pbr_jax.plans import budget_for

pack_elements = jax.jit(residuals.pack_elements, static_argnames=("keep", "dtype"))
unpack_elements = jax.jit(residuals.unpack_elements, static_argnames=("shape", "dtype"))


@given(st.floats(0.001, 1.0), st.integers(1, 5000))
def test_number_of_columns_is_the_next_multiple_of_8_or_all(keep, num_columns):
    kept = budget_for(keep, num_columns)
    assert kept == num_columns or (kept % 8 == 0 and kept - 8 < keep * num_columns)
    assert keep * num_columns - 1e-6 <= kept <= num_columns


@pytest.mark.parametrize(
    ("keep", "num_columns", "expected"),
    [
        (0.1, 768, 80),
        (0.1, 3072, 312),
        (0.1, 80, 8),
        (0.5, 16, 8),
        (1.0, 13, 13),
        (0.9, 13, 13),
        (0.01, 4, 4),
    ],
)
def test_number_of_columns_of_known_sizes(keep, num_columns, expected):
    assert budget_for(keep, num_columns) == expected


@pytest.mark.parametrize("keep", [0, -0.1, 1.5])
def test_keep_out_of_range_names_value_and_rule(keep):
    with pytest.raises(ValueError, match=rf"keep = {keep}: must be in \(0, 1\]"):
        budget_for(keep, 16)


class TestColumns:
    def test_pack_and_scatter_are_numpy_indexing(self):
        x, rows, columns = normal(0, 2, 3, 10), normal(1, 4, 5), np.array([0, 3, 4, 9], np.int32)
        np.testing.assert_array_equal(
            residuals.take_columns(as_jax(x), jnp.asarray(columns)), x[..., columns]
        )
        expected = np.zeros((10, 5))
        expected[columns] = rows
        scattered = residuals.put_rows(as_jax(rows), jnp.asarray(columns), 10)
        np.testing.assert_array_equal(scattered, expected)

    def test_unused_slots_read_as_zero_and_write_nowhere(self):
        x, columns = as_jax(normal(0, 2, 10)), jnp.array([2, 10, 10], jnp.int32)
        packed = residuals.take_columns(x, columns)
        np.testing.assert_array_equal(packed[:, 1:], 0)
        scattered = residuals.put_rows(jnp.ones((3, 1)), columns, 10)
        np.testing.assert_array_equal(np.flatnonzero(scattered), [2])

    def test_largest_columns_go_by_norm_over_the_whole_batch(self):
        x = normal(2, 3, 4, 12) * np.linspace(3, 1, 12)
        kept = residuals.largest_columns(as_jax(x), 5)
        np.testing.assert_array_equal(kept, oracles.columns_of_largest_norm(x, 5))
        assert kept.dtype == jnp.int32

    def test_energy_is_summed_in_float32(self):
        # In bfloat16 a sum of 1 + 1 + ... stops at 256, and 400 ones would tie with 300.
        x = jnp.zeros((400, 2), jnp.bfloat16).at[:, 1].set(1).at[:300, 0].set(1)
        assert residuals.largest_columns(x, 1).tolist() == [1]


class TestCheckColumns:
    def test_accepts_columns_and_unused_slots(self):
        residuals.check_columns(jnp.array([0, 9, 10, 10], jnp.int32), 10)
        residuals.check_columns(jnp.zeros((0,), jnp.int32), 10)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (
                jnp.array([0, 11], jnp.int32),
                r"columns contains 11: must be in 0\.\.9 .* D = 10 for an unused slot",
            ),
            (jnp.array([-1, 3], jnp.int32), r"columns contains -1: must be in 0\.\.9"),
            (jnp.zeros(11, jnp.int32), r"columns has K = 11 entries: must be at most D = 10"),
            (jnp.zeros(2, jnp.uint8), r"columns has dtype uint8: must be int32"),
            (jnp.zeros((2, 2), jnp.int32), r"columns has shape \(2, 2\): must be \[K\]"),
        ],
    )
    def test_names_argument_value_and_rule(self, columns, message):
        with pytest.raises(ValueError, match=message):
            residuals.check_columns(columns, 10)

    def test_a_constant_selection_is_checked_inside_jit_too(self):
        bad = jnp.array([0, 11], jnp.int32)
        with pytest.raises(ValueError, match="contains 11"):
            jax.jit(lambda x: residuals.check_columns(bad, 10))(1.0)

    def test_a_traced_selection_is_checked_by_shape_only(self):
        jax.jit(lambda columns: residuals.check_columns(columns, 10))(jnp.array([0, 11], jnp.int32))
        with pytest.raises(ValueError, match="K = 11"):
            jax.eval_shape(
                lambda c: residuals.check_columns(c, 10), jax.ShapeDtypeStruct((11,), jnp.int32)
            )


class TestElements:
    """Shapes with and without a last byte that is partly used."""

    @pytest.mark.parametrize("shape", [(3, 16), (2, 3, 7), (1, 1), (2, 2, 5, 5)])
    @pytest.mark.parametrize("keep", [0.01, 0.25, 1.0])
    def test_keeps_the_largest_of_each_sample(self, shape, keep):
        x = normal(3, *shape)
        packed = pack_elements(as_jax(x), keep)
        dense = unpack_elements(packed, shape, jnp.float32)
        np.testing.assert_array_equal(dense, oracles.largest_elements(x, keep))

    def test_stored_as_values_and_one_bit_per_element(self):
        packed = jax.eval_shape(
            lambda x: pack_elements(x, 0.1, jnp.float16),
            jax.ShapeDtypeStruct((4, 3, 7), jnp.float32),
        )
        assert (packed.values.shape, packed.values.dtype) == ((4, 2), jnp.float16)
        assert (packed.bits.shape, packed.bits.dtype) == ((4, 3), jnp.uint8)

    def test_bits_are_in_order_most_significant_first(self):
        packed = pack_elements(jnp.array([[5.0, 0, 0, 0, 0, 0, 0, 1, -7, 0]]), 0.3)
        np.testing.assert_array_equal(packed.bits, [[0b1000_0001, 0b1000_0000]])
        np.testing.assert_array_equal(packed.values, [[5, 1, -7]])

    @given(hnp.arrays(np.float32, (2, 11), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])))
    def test_ties_go_to_the_lowest_index_and_exactly_k_are_kept(self, x):
        packed = pack_elements(jnp.asarray(x), 5 / 11)
        kept = np.unpackbits(np.asarray(packed.bits), axis=1)[:, :11]
        first = np.argsort(-np.abs(x), axis=1, kind="stable")[:, :5]
        expected = np.zeros_like(kept)
        np.put_along_axis(expected, first, 1, axis=1)
        np.testing.assert_array_equal(kept, expected)
        dense = unpack_elements(packed, x.shape, jnp.float32)
        np.testing.assert_array_equal(dense, np.where(expected, x, 0))

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_sixteen_bit_inputs_keep_their_bits(self, dtype):
        x = as_jax(normal(4, 2, 24), dtype)
        packed = pack_elements(x, 0.5, residuals.half_precision(dtype))
        assert packed.values.dtype == dtype
        dense = unpack_elements(packed, x.shape, dtype)
        kept = np.asarray(dense != 0)
        assert kept.sum(axis=1).tolist() == [12, 12]
        np.testing.assert_array_equal(np.asarray(dense)[kept], np.asarray(x)[kept])
        magnitudes = np.abs(np.asarray(x, np.float32))
        for row, mask in zip(magnitudes, kept, strict=True):
            assert row[mask].min() >= row[~mask].max()

    @pytest.mark.parametrize("keep", [0.0, 1.5])
    def test_keep_out_of_range_names_value_and_rule(self, keep):
        with pytest.raises(ValueError, match=rf"keep = {keep}: must be in \(0, 1\]"):
            pack_elements(jnp.ones((2, 8)), keep)

    def test_values_beyond_float16_are_clipped_not_infinite(self):
        x = jnp.array([[1e6, -1e6, 1.0, np.inf]])
        packed = pack_elements(x, 1.0, jnp.float16)
        np.testing.assert_array_equal(packed.values, [[65504, -65504, 1, 65504]])


class TestChannels:
    def test_pack_and_scatter_are_numpy_indexing(self):
        x, channels = normal(5, 2, 3, 4, 6), np.array([[0, 5], [1, 2], [3, 4]], np.int32)
        packed = residuals.take_channels(as_jax(x), jnp.asarray(channels))
        expected = np.stack([x[:, h][..., channels[h]] for h in range(3)], axis=1)
        np.testing.assert_array_equal(packed, expected)
        scattered = residuals.put_channels(packed, jnp.asarray(channels), 6)
        kept = np.zeros((3, 6), bool)
        np.put_along_axis(kept, channels, True, axis=1)
        np.testing.assert_array_equal(scattered, np.where(kept[None, :, None], x, 0))

    def test_largest_channels_of_each_head(self):
        energy = jnp.array([[1.0, 5, 3, 2], [9, 0, 0, 8]])
        np.testing.assert_array_equal(residuals.largest_channels(energy, 2), [[1, 2], [0, 3]])
