"""The devices of a run: how its state and its batches lie on them.

The only module that knows shardings. Parameters, moments and what policies have learned are the
same on every device; of a batch each has an equal part.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pbr_jax.configs.common import Config
from pbr_jax.settings.resolve import batch_divisor
from pbr_jax.training.devices import ONE, Devices, along

PyTree = Any
_AXIS = "data"


def settled_devices(config: Config) -> tuple[Config, list[str]]:
    """`config` with a number of devices, and a line if it is not that of the devices there are.

    Raises:
      ValueError: it asks for more than JAX sees.
    """
    there, asked, hosts = jax.device_count(), config.mesh.data, jax.process_count()
    if asked is not None:
        if asked > there:
            kind = jax.devices()[0].device_kind
            raise ValueError(
                f"mesh.data = {asked}: JAX sees {there} ({kind}); set mesh.data={there} or less"
            )
        if asked % hosts:
            raise ValueError(
                f"mesh.data = {asked}: must be a multiple of the {hosts} processes of the job, each"
                " of which has equally many of the devices"
            )
        return config, []
    # Of every process equally many, since a process without a device would have no part.
    parts, each = batch_divisor(config), there // hosts
    fitting = [n for n in range(1, each + 1) if config.batch_size % (parts * n * hosts) == 0]
    if not fitting:
        raise ValueError(
            f"batch_size = {config.batch_size}: must be a multiple of {parts * hosts}, so that each"
            f" of the {hosts} processes of the job has an equal part of it"
        )
    used = hosts * fitting[-1]
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
    """

    mesh: jax.sharding.Mesh | None
    per_device: bool

    @property
    def devices(self) -> Devices:
        """What a step asks of the other devices."""
        return ONE if self.mesh is None or not self.per_device else along(_AXIS)

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
        """A state on every device, of which each process passes the same."""
        if self.mesh is None:
            return state
        whole = NamedSharding(self.mesh, PartitionSpec())
        if jax.process_count() == 1:
            return jax.device_put(state, whole)
        return jax.jit(lambda state: state, out_shardings=whole)(state)

    def state_like(self, shapes: PyTree) -> PyTree:
        """Shapes and dtypes of a state, and how it lies on the devices, for a restored one."""
        if self.mesh is None:
            return shapes
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes
        )

    def places(self, batch_size: int, steps: int = 1) -> np.ndarray:
        """The places in a batch of the samples that this process prepares, in their order.

        Devices take their parts in this order. Every one of `steps` micro-batches is shared by all
        devices, so that its samples are those of one device.
        """
        places = np.arange(batch_size)
        if self.mesh is None:
            return places
        if self.per_device:
            places = places.reshape(steps, self.mesh.size, -1).swapaxes(0, 1).ravel()
        owners = [device.process_index for device in self.mesh.devices.flat]
        own = np.repeat(np.equal(owners, jax.process_index()), batch_size // self.mesh.size)
        return places[own]

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A batch for a step, from its samples at `places`."""
        if self.mesh is None or jax.process_count() == 1:
            return batch
        parts = NamedSharding(self.mesh, PartitionSpec(_AXIS))
        return {
            name: jax.make_array_from_process_local_data(parts, array)
            for name, array in batch.items()
        }


def placement(
    config: Config, per_device: bool, devices: Sequence[jax.Device] | None = None
) -> Placement:
    """Where the arrays of a run lie that has settled its devices; one device if it has not.

    `devices` may be others than JAX's own, to compile for them.
    """
    count = config.mesh.data or 1
    if count == 1:
        return Placement(None, per_device)
    devices = (devices or _of_each_process(count))[:count]
    mesh = jax.make_mesh((count,), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return Placement(mesh, per_device)


def _of_each_process(count: int) -> list[jax.Device]:
    """`count` devices, equally many of each process, those of a process together."""
    own = itertools.groupby(jax.devices(), key=lambda device: device.process_index)
    each = count // jax.process_count()
    return [device for _, devices in own for device in itertools.islice(devices, each)]
