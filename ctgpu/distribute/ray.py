"""A Ray task for each shard.

::

    driver: plan ──► window of tasks ──► look at each result ──► records ──► manifest
                         │                   ▲
    worker:              └──► lease, pipeline, commit ──► a few numbers

The output folder lies on a file system that all nodes share.  Scheduling, GPUs and lost nodes are
Ray's; who may write a shard is decided by its lease, so that a task that Ray starts again, and a
second driver on the same folder, do no harm.  Only paths and numbers go through the object store:
progress is read off the journals.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from ctgpu.building.events import Watcher
from ctgpu.building.executor import BuildJob, Executor
from ctgpu.building.pipeline import PipelineReport
from ctgpu.distribute.ray_cluster import connect, import_ray
from ctgpu.distribute.ray_driver import Driver
from ctgpu.distribute.ray_resources import Resources, task_resources
from ctgpu.printable import counted
from ctgpu.shards.plan import Plan
from ctgpu.sources.base import Source
from ctgpu.sources.hub.source import account_of

log = logging.getLogger(__name__)


class RayExecutor(Executor):
    """Makes every shard in a task on a Ray cluster.

    Parameters
    ----------
    address : str
        As :func:`~ctgpu.distribute.ray_cluster.connect`; with ``"auto"`` the cluster of this
        machine, or else a new one on it.
    """

    def __init__(self, address: str = "auto") -> None:
        self._address = address
        self._joined = False

    def open(self, job: BuildJob) -> None:
        self._ray = import_ray()
        if not self._ray.is_initialized():
            self._joined = True
            connect(self._ray, self._address)
        nodes = self._ray.nodes()
        self._resources = task_resources(nodes, job.request.device, job.request.num_workers)
        self._job = _for_workers(job, self._resources)
        log.info(
            "Ray: %s, %s at a time, each with CPUs: %d, GPUs: %d",
            counted(sum(node["Alive"] for node in nodes), "node"),
            counted(self._resources.at_a_time, "task"),
            self._resources.cpus,
            self._resources.gpus,
        )

    def make(
        self, plan: Plan, todo: Sequence[int], source: Source | None, watch: Watcher
    ) -> tuple[int, PipelineReport]:
        began = time.monotonic()
        run = Driver(self._ray, self._job, self._resources, plan, watch)
        run.work_off(todo)
        report = PipelineReport.together(
            run.reports, self._resources.at_a_time, time.monotonic() - began
        )
        return run.follower.written, report

    def close(self) -> None:
        if self._joined:
            self._ray.shutdown()


def _for_workers(job: BuildJob, resources: Resources) -> BuildJob:
    """The job for other machines: absolute paths, and nothing that only this machine knows."""
    request, part = job.request, job.request.part
    device = request.device
    if resources.gpus or device == "auto":
        device = "cuda" if resources.gpus else "cpu"
    token, endpoint = None, None
    source = request.source_path
    if source is None:
        token, endpoint = account_of(request.token, request.endpoint)
    return replace(
        job,
        folder=job.folder.absolute(),
        request=replace(
            request,
            device=device,
            source=source.absolute() if source is not None else None,
            token=token,
            endpoint=endpoint,
            part=replace(
                part,
                count=part.count * resources.at_a_time,
                processes_per_machine=part.processes_per_machine * resources.most_per_machine,
            ),
        ),
    )
