"""The devices of a run: how its state and its batches lie on them.

The only module that knows shardings. Parameters, moments and what policies have learned are the
same on every device; of a batch each has an equal part.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pbr_jax.configs.common import Config
from pbr_jax.methods import Method
from pbr_jax.settings.resolve import batch_divisor
from pbr_jax.training.devices import ONE, Devices, along
from pbr_jax.training.pruned_model import PrunedModel

PyTree = Any
_AXIS = "data"


def settled_devices(config: Config) -> tuple[Config, list[str]]:
    """`config` with a number of devices, and a line if it is not that of the devices there are.

    Raises:
      ValueError: it asks for more than JAX sees.
    """
    there, asked = jax.device_count(), config.mesh.data
    if asked is not None:
        if asked > there:
            kind = jax.devices()[0].device_kind
            raise ValueError(
                f"mesh.data = {asked}: JAX sees {there} ({kind}); set mesh.data={there} or less"
            )
        return config, []
    parts = batch_divisor(config)
    used = max(n for n in range(1, there + 1) if config.batch_size % (parts * n) == 0)
    note = (
        f"{used} of {there} devices are used: more do not divide batch_size = {config.batch_size}"
    )
    mesh = dataclasses.replace(config.mesh, data=used)
    return dataclasses.replace(config, mesh=mesh), [note] if used < there else []


class Placement(NamedTuple):
    """Where the arrays of a run lie; on one device, wherever JAX puts them.

    Attributes:
      mesh: of the devices that share a batch; None for one.
      per_device: `PrunedModel.per_device`.
      accumulation_steps: micro-batches of a step.
      overlap: whether gradients are exchanged while others are computed, which is worth it where
        that takes no more bytes than to do it once, of all that is packed.
    """

    mesh: jax.sharding.Mesh | None
    per_device: bool
    accumulation_steps: int
    overlap: bool = False

    @property
    def devices(self) -> Devices:
        """What a step asks of the other devices."""
        return ONE if self.mesh is None or not self.per_device else along(_AXIS, self.overlap)

    def spread(self, step: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """A function `(state, batch) -> results` of all devices, from one for `devices`."""
        if self.mesh is None or not self.per_device:
            return step
        specs = PartitionSpec(), PartitionSpec(_AXIS)

        def spread(state, batch):
            leaves, structure = jax.tree.flatten(state)

            def own(filled, batch):
                given = iter(filled)
                all_of_it = [
                    next(given) if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)
                    for leaf in leaves
                ]
                return step(jax.tree.unflatten(structure, all_of_it), batch)

            # Empty arrays stay outside: of inputs that it finds unused, XLA's partitioner in
            # jax 0.11 crashes. Kernels do not say along which axes their outputs vary, so that
            # it cannot be checked.
            run = jax.shard_map(
                own, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
            )
            return run([leaf for leaf in leaves if leaf.size], batch)

        return spread

    def jit(self, step: Callable[..., PyTree], **kwargs: Any) -> Any:
        """`jax.jit` of what `spread` returned."""
        if self.mesh is None:
            return jax.jit(step, **kwargs)
        whole = NamedSharding(self.mesh, PartitionSpec())
        parts = NamedSharding(self.mesh, PartitionSpec(_AXIS))
        return jax.jit(step, in_shardings=(whole, parts), out_shardings=whole, **kwargs)

    def state(self, state: PyTree) -> PyTree:
        """A state on every device."""
        if self.mesh is None:
            return state
        return jax.device_put(state, NamedSharding(self.mesh, PartitionSpec()))

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A training batch in the order in which devices take their parts of it.

        Every micro-batch is shared by all devices, so that its samples are those of one device.
        """
        steps = self.accumulation_steps
        if self.mesh is None or not self.per_device or steps == 1:
            return batch
        shape = steps, self.mesh.size, -1
        return {
            name: np.swapaxes(array.reshape(*shape, *array.shape[1:]), 0, 1).reshape(array.shape)
            for name, array in batch.items()
        }


def placement(
    config: Config,
    model: PrunedModel,
    method: Method,
    devices: Sequence[jax.Device] | None = None,
) -> Placement:
    """Where the arrays of a run lie that has settled its devices; one device if it has not.

    `devices` may be others than JAX's own, to compile for them.
    """
    per_device = model.per_device
    count, steps = config.mesh.data or 1, config.optimizer.accumulation_steps
    if count == 1:
        return Placement(None, per_device, steps)
    devices = (devices or jax.devices())[:count]
    mesh = jax.make_mesh((count,), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    # JointSPAR drops whole blocks when all gradients are there, accumulation adds them up first.
    overlap = steps == 1 and method.joint_spar is None
    return Placement(mesh, per_device, steps, overlap)
