"""What one task takes of a Ray cluster, and how many fit into it at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctgpu.engines import Engine
from ctgpu.errors import (
    DeviceError,
    UsageError,
)

# Cores of a task where a node has no GPUs to divide them by.
_CORES_PER_TASK = 4


@dataclass(frozen=True, slots=True)
class Resources:
    """What one task takes, and how many tasks the cluster runs at a time.

    Attributes
    ----------
    cpus, gpus : int
        Of one task.
    at_a_time : int
        In the whole cluster.
    most_per_machine : int
        On the machine that runs most of them.
    """

    cpus: int
    gpus: int
    at_a_time: int
    most_per_machine: int


def task_resources(
    nodes: Sequence[dict[str, Any]], device: str | Engine, num_workers: int | None
) -> Resources:
    """What a task takes on a cluster of these nodes.

    A task has one GPU where the device is a GPU, and with it its share of the node's cores; else
    `num_workers` cores, or four, or what the smallest node has.

    Parameters
    ----------
    nodes : sequence of dict
        As ``ray.nodes()`` describes them.
    device : str or Engine
        ``"auto"`` takes GPUs where a node has one.
    num_workers : int or None
        Threads, and so cores, of a task.

    Raises
    ------
    UsageError
        If `device` names a GPU by number: Ray chooses.
    DeviceError
        If no node has room for a task.
    """
    if isinstance(device, str) and device.startswith("cuda:"):
        raise UsageError(f"--device is {device}; with --ray write cuda: Ray gives a GPU to a task")
    held = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpus = [r for r in held if r.get("GPU", 0) >= 1]
    gpus = 1 if device == "cuda" or (device == "auto" and with_gpus) else 0
    if gpus:
        cpus = min((int(r.get("CPU", 0) // r["GPU"]) for r in with_gpus), default=1)
    else:
        cpus = min([_CORES_PER_TASK, *(int(r["CPU"]) for r in held if r.get("CPU", 0) >= 1)])
    cpus = num_workers or max(1, cpus)
    per_machine: dict[str, int] = {}
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            room = int(has.get("CPU", 0) // cpus)
            if gpus:
                room = min(room, int(has.get("GPU", 0)))
            machine = node["NodeManagerHostname"]
            per_machine[machine] = per_machine.get(machine, 0) + room
    if not any(per_machine.values()):
        wanted = f"{cpus} free CPUs" + (" and a GPU" if gpus else "")
        raise DeviceError(
            f"no node of the Ray cluster has {wanted} for a task: add nodes, lower --num-workers, "
            "or use --device cpu"
        )
    return Resources(cpus, gpus, sum(per_machine.values()), max(per_machine.values()))
