"""The devices of a run: how its state and its batches lie on them.

The only module that knows shardings. Of a batch each device has an equal part. Parameters, moments
and what policies have learned are the same on every device, or, along the axis `fsdp` of the mesh,
the large ones of the first two, or of the moments alone, are cut in their last axis, F: rows that
are chosen along D, and the slices that the optimizer moves, then are as many on every device.
"""

import dataclasses
import itertools
import math
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pbr_jax.configs.common import Config
from pbr_jax.methods import Method
from pbr_jax.settings.resolve import batch_divisor
from pbr_jax.training.cuts import Cuts, is_cut, names_of, split_of
from pbr_jax.training.devices import ONE, Devices, along
from pbr_jax.training.pruned_model import PrunedModel

PyTree = Any
_DATA, _SHARDS = "data", "fsdp"  # axes of the mesh; a batch is cut along both
_BATCH = PartitionSpec((_DATA, _SHARDS))


def settled_devices(config: Config) -> tuple[Config, list[str]]:
    """`config` with a number of devices, and a line if it is not that of the devices there are.

    Raises:
      ValueError: it asks for more than JAX sees.
    """
    # Of every process equally many, since a process without a device would have no part.
    hosts = jax.process_count()
    each = min(Counter(device.process_index for device in jax.devices()).values())
    there, asked = hosts * each, config.mesh.data
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
    parts, shards = batch_divisor(config), config.mesh.fsdp
    unit = math.lcm(hosts, shards)
    fitting = range(unit, there + 1, unit)
    used = max((n for n in fitting if config.batch_size % (parts * n) == 0), default=0)
    if not used:
        kind = f"{there} devices of {hosts} processes" if hosts > 1 else f"{there} devices"
        raise ValueError(
            f"batch_size = {config.batch_size}: has no equal parts on any multiple of {unit} of the"
            f" {kind} that JAX sees; set it to a multiple of {parts * unit}"
            + (", or set mesh.fsdp=1" if shards > 1 else "")
        )
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
      overlap: whether gradients are exchanged while others are computed, which is worth it where
        that takes no more bytes than to do it once, of all that is packed.
      split: which parameters are cut along F; their moments are, too.
      moments_only: of these parameters only the moments are cut.
    """

    mesh: jax.sharding.Mesh | None
    per_device: bool
    overlap: bool = False
    split: Cuts = types.MappingProxyType({})
    moments_only: bool = False

    @property
    def devices(self) -> Devices:
        """What a step asks of the other devices."""
        if self.mesh is None or not self.per_device:
            return ONE
        parameters, moments = ({}, self.split) if self.moments_only else (self.split, {})
        return along(_DATA, _SHARDS, parameters, moments, self.overlap)

    def specs(self, tree: PyTree) -> PyTree:
        """How the leaves of a state, or of a part of it, are cut."""

        def spec(keys, leaf):
            cut = is_cut(self.split, keys)
            if self.moments_only:
                cut &= names_of(keys)[:1] == ("opt_state",)
            return PartitionSpec(*(None,) * (leaf.ndim - 1), _SHARDS) if cut else PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, tree)

    def state_shardings(self, tree: PyTree) -> PyTree:
        """Where a state, or a part of it, lies: a sharding for each array or shape; None on one.

        What restores a state, restores it into these.
        """
        if self.mesh is None:
            return None
        mesh = self.mesh
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.specs(tree))

    def state_shapes(self, shapes: PyTree) -> PyTree:
        """Shapes and dtypes of a state, with where it lies if that is not one device."""
        if self.mesh is None:
            return shapes
        return jax.tree.map(
            lambda own, place: jax.ShapeDtypeStruct(own.shape, own.dtype, sharding=place),
            shapes,
            self.state_shardings(shapes),
        )

    def spread(self, step: Callable[..., PyTree], moves: bool = False) -> Callable[..., PyTree]:
        """A function `(state, batch) -> results` of all devices, from one for `devices`.

        With `moves` the results are `(state, others)`.
        """
        if self.mesh is None:
            return step

        def lying(results):
            """The new state where the old one lay."""
            if not (moves and self.split):
                return results
            state, others = results
            return lax.with_sharding_constraint(state, self.state_shardings(state)), others

        if not self.per_device:
            return lambda state, batch: lying(step(state, batch))

        def spread(state, batch):
            leaves, structure = jax.tree.flatten(state)
            specs = self.specs(state)

            def own(filled, batch):
                given = iter(filled)
                all_of_it = [
                    next(given) if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)
                    for leaf in leaves
                ]
                return step(jax.tree.unflatten(structure, all_of_it), batch)

            # Empty arrays stay outside: of inputs that it finds unused, XLA's partitioner in
            # jax 0.11 crashes. What varies along the axes is not checked: the loop over blocks
            # begins with zeros, which do not say that they will.
            pairs = zip(leaves, jax.tree.leaves(specs), strict=True)
            filled = [(leaf, spec) for leaf, spec in pairs if leaf.size]
            whole = PartitionSpec()
            run = jax.shard_map(
                own,
                mesh=self.mesh,
                in_specs=([spec for _, spec in filled], _BATCH),
                out_specs=(specs, whole) if moves else whole,
                check_vma=False,
            )
            return lying(run([leaf for leaf, _ in filled], batch))

        return spread

    def jit(self, step: Callable[..., PyTree], **kwargs: Any) -> Any:
        """`jax.jit` of what `spread` returned."""
        if self.mesh is None:
            return jax.jit(step, **kwargs)
        whole = NamedSharding(self.mesh, PartitionSpec())
        parts = NamedSharding(self.mesh, _BATCH)
        if self.split:  # a state lies where it is put, and its shapes say where
            return jax.jit(step, in_shardings=(None, parts), **kwargs)
        return jax.jit(step, in_shardings=(whole, parts), out_shardings=whole, **kwargs)

    def each(self, function: Callable[[PyTree, PyTree], jax.Array]) -> Any:
        """`jax.jit` of `(variables, batch) -> [B, ...]`; each device has a part of the samples."""
        if self.mesh is None:
            return jax.jit(function)
        own = function
        if self.per_device:
            specs = PartitionSpec(), _BATCH
            own = jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=_BATCH, check_vma=False
            )
        whole, parts = (NamedSharding(self.mesh, spec) for spec in (PartitionSpec(), _BATCH))
        return jax.jit(own, in_shardings=(whole, parts), out_shardings=parts)

    def state(self, state: PyTree) -> PyTree:
        """A state, or a part of it, on the devices; each process passes the same."""
        if self.mesh is None:
            return state
        places = self.state_shardings(state)
        if jax.process_count() == 1:
            return jax.device_put(state, places)
        return jax.jit(lambda state: state, out_shardings=places)(state)

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
        parts = NamedSharding(self.mesh, _BATCH)
        return {
            name: jax.make_array_from_process_local_data(parts, array)
            for name, array in batch.items()
        }


ONE_DEVICE = Placement(None, per_device=True)


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
        return ONE_DEVICE._replace(per_device=per_device)
    devices = (devices or _of_each_process(count))[:count]
    shards = config.mesh.fsdp
    assert count % shards == 0, (count, shards)
    sizes, kinds = (count // shards, shards), (AxisType.Auto,) * 2
    mesh = jax.make_mesh(sizes, (_DATA, _SHARDS), axis_types=kinds, devices=devices)
    # JointSPAR drops whole blocks when all gradients are there, accumulation adds them up first,
    # and with moments that are cut a gradient goes to where its share is.
    moments_only = shards > 1 and config.mesh.split == "moments"
    overlap = steps == 1 and method.joint_spar is None and not moments_only
    split = split_of(model.shapes()[0], shards) if shards > 1 else {}
    return Placement(mesh, per_device, overlap, split, moments_only)


def _of_each_process(count: int) -> list[jax.Device]:
    """`count` devices, equally many of each process, those of a process together."""
    own = itertools.groupby(jax.devices(), key=lambda device: device.process_index)
    each = count // jax.process_count()
    return [device for _, devices in own for device in itertools.islice(devices, each)]
