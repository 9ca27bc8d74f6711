"""The place of a process in its job, as its environment tells it."""

import pytest

from pbr_jax.hosts import ALONE, joined
from pbr_jax.hosts.cluster import found

THREE = {
    "JAX_COORDINATOR_ADDRESS": "node1:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
SLURM = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        THREE | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},  # sbatch without srun
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        {"JAX_PROCESS_ID": ""},
    ],
)
def test_a_process_by_itself_joins_nothing(environ, tmp_path):
    assert found(environ) is None
    with joined(tmp_path, environ) as job:
        assert job is ALONE and job.first
        assert job.shared({"a": 1}) == {"a": 1}


def test_three_variables_say_it_all():
    assert found(THREE) == {
        "coordinator_address": "node1:1234",
        "num_processes": 2,
        "process_id": 1,
        "cluster_detection_method": "deactivate",
    }
    assert found(SLURM | THREE)["process_id"] == 1


def test_what_a_scheduler_started_is_left_to_jax():
    mpi = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://node1:9"}
    assert found(mpi) == found(SLURM | mpi) == {}
    with pytest.raises(ValueError, match="mpirun: JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"):
        found({"OMPI_COMM_WORLD_SIZE": "4"})  # Open MPI 5
    # Two tasks on one node: JAX gives each a GPU of its own.
    assert found(SLURM | {"SLURM_STEP_NUM_NODES": "1"}) == {"local_device_ids": None}
    assert found(SLURM | {"JAX_COORDINATOR_ADDRESS": "node1:99"}) is not None


def test_the_only_task_of_a_node_has_all_its_gpus():
    assert found(SLURM) == {"local_device_ids": [0, 1, 2, 3, 4, 5, 6, 7]}
    assert found(SLURM | {"SLURM_GPUS_ON_NODE": "1"}) == {"local_device_ids": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_NUM_PROCESSES=2: JAX_PROCESS_ID must be set, too"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID = 2, JAX_NUM_PROCESSES = 2: must be an index"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES = two: must be"),
        (
            {"JAX_COORDINATOR_ADDRESS": "node1"},
            "JAX_COORDINATOR_ADDRESS = node1: must be host:port",
        ),
    ],
)
def test_half_a_place_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        found(THREE | changes)
