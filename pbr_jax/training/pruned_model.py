"""What the trainer asks of a model: the seam between a step and whatever is trained by it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any
Batch = Mapping[str, jax.Array | np.ndarray]


class PrunedModel(NamedTuple):
    """A model, and who chooses what a step trains of it; pure functions.

    Parameters are nested dicts of arrays. `extra` is what else the model changes, such as running
    statistics; empty for most. A selection says what one step trains. A gradient is packed: like
    the parameters, but of a pruned one it has the selected rows alone.

    Two modules make one: `family_model` of a family, `own_model` of a user's own module.

    Attributes:
      module: the Flax module, for those who know its kind.
      input_specs: `batch_size -> {name: shape and dtype}` of what it reads of a batch.
      shapes: `() -> (params, extra)` as shapes and dtypes; nothing is computed.
      begin: `(seed, class_names) -> (params, extra, notes)` before the first step: pretrained where
        the configuration says so, with notes on how.
      outputs: `((params, extra), batch, part) -> [B, ...]`, in evaluation; the part as in `loss`.
      policies: `() -> state` of those who choose, before the first step.
      select: `(key, state, step) -> (state, selection)`. The key is consumed.
      split: `(params, selection) -> (trained, frozen)` for `loss`: in `trained` a pruned parameter
        is zeros of the packed shape, and `frozen` holds it whole.
      loss: `(trained, frozen, extra, selection, batch, key, part) -> (loss, (figures, extra))`, to
        be differentiated by `trained`. The key is that of dropout; the part, an `ops.arrays.Part`,
        says which samples these are where several devices share a batch, and is None elsewhere;
        where it has an exchange, gradients are means over all devices.
      slices: `(selection, params) -> tree`, like the parameters, of `slices.Slices`: what the
        optimizer moves.
      pack: `(selection, grads) -> grads`, without what `slices` leaves out.
      unbias: `(state, selection, packed) -> packed`, kept rows of what `pack` gave divided by the
        probability that they were drawn with (Theorem 1).
      learn: `(state, selection, packed, step, norms, added) -> state` (Algorithm 1, line 24), of
        what `pack` gave, before any division by p. `norms`, squared norms of what `slices` names,
        are computed where None; `added` is that of `Devices`.
      per_device: whether, of a batch that several devices share, each runs the model on its own
        part; otherwise one program is partitioned, in which a batch is whole.
      merged: `params -> params` of the model as others know it, for an export: those of LoRA are
        added to the kernels that they stand beside.
    """

    module: Any
    input_specs: Callable[[int], dict[str, jax.ShapeDtypeStruct]]
    shapes: Callable[[], tuple[PyTree, PyTree]]
    begin: Callable[..., tuple[PyTree, PyTree, list[str]]]
    outputs: Callable[..., Any]
    policies: Callable[[], PyTree]
    select: Callable[[jax.Array, PyTree, jax.Array], tuple[PyTree, PyTree]]
    split: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    loss: Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]]
    slices: Callable[[PyTree, PyTree], PyTree]
    pack: Callable[[PyTree, PyTree], PyTree]
    unbias: Callable[[PyTree, PyTree, PyTree], PyTree]
    learn: Callable[..., PyTree]
    per_device: bool = False
    merged: Callable[[PyTree], PyTree] = lambda params: params
