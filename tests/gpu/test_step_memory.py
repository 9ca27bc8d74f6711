"""Memory of any function on a card that is not there, and the arrays that fill it."""

import jax
import jax.numpy as jnp
import optax
import pytest

from pbr_jax import gpu
from pbr_jax.gpu import alive

WIDTH, DEPTH, BATCH = 256, 6, 1024
LAYERS = {"w": jax.ShapeDtypeStruct((DEPTH, WIDTH, WIDTH), jnp.float32)}
X = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)


def loss(params, x):
    def layer(x, w):
        return jnp.tanh(x @ w), None

    return jnp.mean(jax.lax.scan(layer, x, params["w"])[0])


@pytest.fixture(scope="module")
def found():
    with jax.numpy_dtype_promotion("standard"):
        return gpu.fit(jax.value_and_grad(loss), LAYERS, X, card="rtx4090")


@pytest.mark.gpu_compile
def test_the_arrays_are_all_of_the_memory(found):
    """Each byte has one owner, but for what lies between the arrays to align them."""
    by_purpose = dict.fromkeys(("argument", "output", "temp"), 0)
    for array in found.arrays:
        by_purpose[array.purpose] += array.bytes
    report = found.report
    assert by_purpose["argument"] == report.argument_bytes == 4 * WIDTH * (DEPTH * WIDTH + BATCH)
    assert 0.95 * report.temp_bytes <= by_purpose["temp"] <= report.temp_bytes
    assert list(found.arrays) == sorted(found.arrays, key=lambda array: -array.bytes)


@pytest.mark.gpu_compile
def test_the_largest_is_what_the_loop_keeps_for_the_backward_pass(found):
    kept = next(array for array in found.arrays if array.purpose == "temp")
    assert kept.shape == f"f32[{DEPTH},{BATCH},{WIDTH}]"
    assert kept.bytes == kept.number * 4 * DEPTH * BATCH * WIDTH
    assert kept.operation.startswith("jit(loss)/jvp()/while")
    assert kept.source.startswith("test_step_memory.py:")
    weights = next(array for array in found.arrays if array.purpose == "argument")
    assert weights.operation == "params['w']" and weights.number == 1


@pytest.mark.gpu_compile
def test_a_jitted_step_keeps_its_donation_and_may_take_numbers():
    tx = optax.sgd(0.1)

    def step(params, state, x, scale):
        updates, state = tx.update(jax.grad(lambda p: loss(p, x) * scale)(params), state)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, LAYERS)
    step = jax.jit(step, donate_argnums=0)
    report = gpu.fit(step, LAYERS, state, X, 2.0, card=gpu.CARDS["h200"]).report
    assert report.alias_bytes == 4 * DEPTH * WIDTH**2
    assert report.host_bytes == 0


@pytest.mark.gpu_compile
def test_it_fits_with_room_to_spare_or_not(found):
    room = found.card.memory_bytes - found.report.peak_bytes
    assert found.fits() and found.fits(room) and not found.fits(room + 1)


@pytest.mark.parametrize(
    ("args", "card", "message"),
    [
        (({"x": "word"},), "h200", r"args\[0\]\['x'\]: is a str, and must be an array"),
        ((jnp.ones(3),), "rtx490", "no such card; did you mean 'rtx4090'"),
    ],
)
def test_mistakes_are_named(args, card, message):
    with pytest.raises(ValueError, match=message):
        gpu.fit(jnp.sum, *args, card=card)


def test_a_report_of_another_form_is_no_empty_table(tmp_path):
    with pytest.raises(ValueError, match=r"0 files \*buffer-assignment\.txt, expected 1"):
        alive.largest(tmp_path)
    for name in ("buffer-assignment", "live-range", "gpu_after_optimizations"):
        (tmp_path / f"step.{name}.txt").write_text("something else\n")
    with pytest.raises(ValueError, match="unknown form"):
        alive.largest(tmp_path)
