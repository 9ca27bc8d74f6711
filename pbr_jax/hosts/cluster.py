"""Whether this process is one of several, read off its environment before JAX starts.

`jax.distributed.initialize` finds the place of a process by itself where a scheduler started it,
and raises where none did; and it does not read how many processes there are, and which this is,
where a person started them.
"""

from collections.abc import Mapping
from typing import Any

# Of processes that a person or a manifest starts; JAX itself reads the first one only.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def found(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` for this process; None where it is alone.

    The three `VARIABLES` come first. Without them the steps of Slurm, and the processes of Open MPI
    4, are known by their own variables, which JAX reads.

    Raises:
      ValueError: some of the three are set and others are not, or they are no place in a job.
    """
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    mpi = _number(environ, "OMPI_COMM_WORLD_SIZE") > 1
    if not {*given} - {*VARIABLES[:1]}:
        if mpi and "OMPI_MCA_orte_hnp_uri" in environ:
            return {}
        if not mpi and _number(environ, "SLURM_STEP_NUM_TASKS") > 1:
            return {"local_device_ids": _of_the_only_task(environ)}
    if not given and not mpi:
        return None
    if missing := [name for name in VARIABLES if name not in given]:
        listed = ", ".join(f"{name}={value}" for name, value in given.items()) or "mpirun"
        raise ValueError(
            f"{listed}: {' and '.join(missing)} must be set, too: the host:port of the first"
            " process, how many processes there are, and which of them this is, from 0; or set"
            " none of the three"
        )
    address, count, index = given.values()
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise ValueError(
            f"JAX_PROCESS_ID = {index}, JAX_NUM_PROCESSES = {count}: must be an index from 0, and"
            " a number above it"
        )
    if not address.rpartition(":")[2].isdecimal():
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS = {address}: must be host:port of the first process, such as"
            f" {address.partition(':')[0] or 'host'}:1234"
        )
    if int(count) == 1:
        return None
    place = {"num_processes": int(count), "process_id": int(index)}
    # Otherwise JAX would look for a scheduler, and hide devices from this process.
    return {"coordinator_address": address, **place, "cluster_detection_method": "deactivate"}


def _of_the_only_task(environ: Mapping[str, str]) -> list[int] | None:
    """All GPUs of a host on which Slurm started one task; JAX would give it the first alone."""
    gpus = _number(environ, "SLURM_GPUS_ON_NODE")
    alone = _number(environ, "SLURM_STEP_NUM_TASKS") == _number(environ, "SLURM_STEP_NUM_NODES")
    return list(range(gpus)) if alone and gpus > 1 else None


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else 0
