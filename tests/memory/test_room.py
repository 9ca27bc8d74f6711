"""A run that this machine cannot hold is refused before it starts."""

import re
from pathlib import Path

import pytest
from fakes import config

from pbr_jax.configs.common import Model
from pbr_jax.measure.memory import Room, host_room
from pbr_jax.memory import fit
from pbr_jax.memory.room import check_room
from pbr_jax.settings.load import ConfigError, at_once

NEED = fit.estimated(config("full")).peak_bytes


def test_what_fits_is_not_talked_about():
    assert check_room(config("full"), Room(2 * NEED, NEED, "a machine")) == []
    assert check_room(config("full")) == []  # this one


def test_what_is_taken_by_others_now_is_a_note():
    (line,) = check_room(config("full"), Room(2 * NEED, NEED - 1, "a machine"))
    assert re.match(
        r"a step by full needs about \S+ kB by a formula, and a machine has .* free", line
    )


def test_what_can_never_fit_is_refused_with_a_batch_that_does():
    run = config("full", batch_size=12)
    room = Room(NEED, NEED, "a machine")
    with pytest.raises(ValueError, match=r"^batch_size = 12: a step by full needs") as raised:
        check_room(run, room)
    batch = int(re.search(r"set batch_size=(\d+) or less", str(raised.value))[1])
    assert check_room(config("full", batch_size=batch), room) == []
    too_small = Room(1000, 1000, "a machine")
    with pytest.raises(ValueError, match="no batch would fit; take a smaller model\n"):
        check_room(run, too_small)
    # A formula may be wrong.
    with pytest.raises(ValueError, match="a smaller model; --force tries it all the same\n"):
        check_room(run, too_small, force=False)
    assert "it may be ended" in check_room(run, too_small, force=True)[0]


def test_a_model_beyond_any_machine_is_refused_without_being_made():
    huge = Model(
        width=2**16, depth=1000, heads=1024, mlp_dim=2**18, patch=1, image_size=2**14, channels=1024
    )
    with pytest.raises(ValueError, match="no batch would fit"):
        check_room(config("full", model=huge, batch_size=10**6))
    # It is told beside the faults of the data.
    with pytest.raises(ConfigError, match=r"(?s)a step by full needs.*no such file"):
        at_once(lambda: check_room(config("full", model=huge)), Path("no such file").read_text)


def machine(root, meminfo, **files):
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = (
    "MemTotal: 1000 kB\nMemAvailable: 600 kB\nSwapTotal: 100 kB\nSwapFree: 50 kB\nHugePages: 0\n"
)


def test_the_kernel_says_what_a_machine_has(tmp_path):
    assert host_room(machine(tmp_path, MEMINFO)) == Room(1126400, 665600, "this machine")
    assert host_room(tmp_path / "nowhere") is None
    assert host_room(machine(tmp_path / "odd", "MemTotal: much\n")) is None


@pytest.mark.parametrize(
    ("group", "files"),
    [
        (
            "0::/a/b",
            {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": "204800"},
        ),
        ("0::/", {"sys/fs/cgroup/memory.max": "204800\n"}),
        (
            "3:cpu:/x\n4:memory:/job",
            {"sys/fs/cgroup/memory/job/memory.limit_in_bytes": "204800"},
        ),
        (
            "4:memory:/gone",  # a container sees its own group as the root
            {"sys/fs/cgroup/memory/memory.limit_in_bytes": "204800"},
        ),
    ],
)
def test_the_limit_of_a_container_or_job_counts(tmp_path, group, files):
    files = {"proc/self/cgroup": group + "\n", **files}
    room = host_room(machine(tmp_path, MEMINFO, **files))
    assert room == Room(204800 + 102400, 204800 + 51200, "this machine")
