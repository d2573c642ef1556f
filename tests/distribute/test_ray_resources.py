"""What a task takes of a Ray cluster, and how many fit."""

from __future__ import annotations

from typing import Any

import pytest

from ctgpu.distribute.ray_resources import Resources, task_resources
from ctgpu.errors import DeviceError, UsageError


def node(machine: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "NodeManagerHostname": machine, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "device", "num_workers", "expected"),
    [
        ([node("a", CPU=64)], "cpu", None, Resources(4, 0, 16, 16)),
        ([node("a", CPU=64), node("b", CPU=2)], "cpu", None, Resources(2, 0, 33, 32)),
        ([node("a", CPU=64), node("b", CPU=2)], "auto", 8, Resources(8, 0, 8, 8)),
        ([node("a", CPU=8), node("a", CPU=8)], "cpu", None, Resources(4, 0, 4, 4)),
        ([node("a", CPU=64, GPU=8)], "auto", None, Resources(8, 1, 8, 8)),
        ([node("a", CPU=64, GPU=8), node("b", CPU=96)], "cuda", None, Resources(8, 1, 8, 8)),
        ([node("a", CPU=64, GPU=8)], "cpu", None, Resources(4, 0, 16, 16)),
        ([node("a", CPU=2, GPU=4)], "cuda", None, Resources(1, 1, 2, 2)),
        ([node("a", CPU=4), node("b", False, CPU=99)], "cpu", None, Resources(4, 0, 1, 1)),
    ],
)
def test_a_task_takes_one_gpu_or_some_cores(
    nodes: list[dict[str, Any]], device: str, num_workers: int | None, expected: Resources
) -> None:
    assert task_resources(nodes, device, num_workers) == expected


def test_a_gpu_by_number_is_refused() -> None:
    with pytest.raises(UsageError, match="with --ray write cuda"):
        task_resources([node("a", CPU=4, GPU=1)], "cuda:0", None)


@pytest.mark.parametrize(
    ("nodes", "device", "num_workers"),
    [([node("a", CPU=4)], "cpu", 5), ([node("a", CPU=4)], "cuda", None), ([node("a")], "cpu", 1)],
)
def test_a_cluster_without_room_for_a_task_is_refused(
    nodes: list[dict[str, Any]], device: str, num_workers: int | None
) -> None:
    with pytest.raises(DeviceError, match="no node of the Ray cluster has"):
        task_resources(nodes, device, num_workers)


def test_machines_of_several_nodes_are_counted_once() -> None:
    """As in a test of Ray itself, where one machine has them all."""
    nodes = [node("a", CPU=4, GPU=1), node("a", CPU=4, GPU=2), node("b", CPU=8, GPU=1)]
    assert task_resources(nodes, "cuda", 1) == Resources(1, 1, 4, 3)


def test_of_a_cluster_without_a_living_node_nothing_can_be_had() -> None:
    for nodes in ([], [node("a", False, CPU=8, GPU=1)]):
        with pytest.raises(DeviceError, match="4 free CPUs for a task"):
            task_resources(nodes, "auto", None)
    with pytest.raises(DeviceError, match="a GPU for a task"):
        task_resources([node("a", CPU=4, GPU=0.5)], "cuda", None)
