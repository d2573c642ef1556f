"""What a process may use: the smallest of what machine, control groups and scheduler allow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ctgpu.machine import available_memory_bytes, default_memory_limit_bytes

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 GiB available, no control groups and no scheduler; its cgroup folder."""
    memory = SimpleNamespace(available=64 * GIB)
    monkeypatch.setattr("ctgpu.machine.psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("ctgpu.machine._CGROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr("ctgpu.machine._OWN_CGROUPS", tmp_path / "own")
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cgroup"


def limit(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n")


def test_without_limits_it_is_what_the_machine_has() -> None:
    assert available_memory_bytes() == 64 * GIB
    assert default_memory_limit_bytes() == 32 * GIB


def test_a_jobs_control_group_above_the_process_counts(machine: Path) -> None:
    (machine.parent / "own").write_text("0::/slurm/job_1/step_0/task_0\n")
    limit(machine / "slurm/job_1/step_0/task_0/memory.max", "max")
    limit(machine / "slurm/job_1/memory.max", str(16 * GIB))
    limit(machine / "memory.max", str(48 * GIB))
    assert available_memory_bytes() == 16 * GIB


def test_the_older_hierarchy_counts_too(machine: Path) -> None:
    (machine.parent / "own").write_text("5:devices:/a\n4:cpu,memory:/job_1/step_0\n0::/\n")
    limit(machine / "memory/job_1/memory.limit_in_bytes", str(8 * GIB))
    limit(machine / "memory/memory.limit_in_bytes", str((1 << 63) - 4096))
    limit(machine / "a/memory.max", "1")
    assert available_memory_bytes() == 8 * GIB


def test_a_container_sees_its_own_group_as_the_root(machine: Path) -> None:
    (machine.parent / "own").write_text("0::/../../elsewhere\n")
    limit(machine / "memory.max", str(4 * GIB))
    assert available_memory_bytes() == 4 * GIB


@pytest.mark.parametrize(
    ("variables", "gib"),
    [
        ({"SLURM_MEM_PER_NODE": "8192"}, 8),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "16"}, 32),
        ({"SLURM_MEM_PER_CPU": "2048"}, 64),
        ({"SLURM_MEM_PER_NODE": "0"}, 64),
    ],
)
def test_what_slurm_grants_counts(
    variables: dict[str, str], gib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert available_memory_bytes() == gib * GIB
