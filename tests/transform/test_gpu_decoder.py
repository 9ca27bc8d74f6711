"""A decoder, 12 layers of width 1024 and 16 x 1024 tokens, compiled for an H200 that is not there.

Pruning alone saves time; its memory comes from checkpoints around the blocks, which it leaves as
they were. Temp bytes are the compiler's plan for loss and gradients.
"""

import jax
import pytest
from decoder import decoder, problem

from pbr_jax import prune
from pbr_jax.gpu import CARDS, compile_for, memory

pytestmark = [pytest.mark.gpu_compile, pytest.mark.exhaustive, pytest.mark.slow]
POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def compiled_temp(policy, pruned):
    model = decoder(POLICIES[policy])
    params, x, loss = problem(model)
    if not pruned:
        args = (params, x)
        return memory(compile_for(jax.value_and_grad(loss), args, CARDS["h200"])).temp_bytes
    pruned = prune(model, x, None, keep=0.1)
    assert len(pruned.sites) == 7 and len(pruned.groups) == 4
    selection = jax.eval_shape(lambda: pruned.select(pruned.init(), jax.random.key(0)))
    args = (params, selection, x)
    return memory(compile_for(pruned.value_and_grad(loss), args, CARDS["h200"])).temp_bytes


@pytest.mark.parametrize("policy", POLICIES)
def test_checkpoints_keep_what_they_kept(policy):
    """A policy that saves products still sees them: nothing else is recomputed or kept."""
    with jax.numpy_dtype_promotion("standard"):  # Flax' norms mix their types
        dense, pruned = compiled_temp(policy, False), compiled_temp(policy, True)
    assert pruned <= 1.01 * dense
    if policy == "nothing":
        assert pruned <= 1.5e9
    else:
        assert pruned >= 0.9 * dense
