"""What a Ray worker does: one shard a task, in a process that may have made others before."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

from ctgpu.building.builder import unforeseen_os_errors
from ctgpu.building.events import Event, ShardCommitted
from ctgpu.building.executor import LEAST_DEFAULT_WORKERS, BuildJob
from ctgpu.building.pipeline import PipelineReport, Workers
from ctgpu.building.shard_maker import ShardMaker
from ctgpu.errors import CtgpuError, StorageError, UsageError
from ctgpu.installation import __version__
from ctgpu.machine import usable_cores
from ctgpu.shards.lease import LeaseHeld
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.plan import Plan


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a task returns.

    Attributes
    ----------
    report : PipelineReport or None
        What the shard cost; None where it was not made.
    held : str or None
        Who else is making it, in words.
    error : CtgpuError or None
        Why it could not be made.
    node : str
        Where this was.
    """

    node: str
    report: PipelineReport | None = None
    held: str | None = None
    error: CtgpuError | None = None


@dataclass(slots=True)
class _Workplace:
    """What a worker process keeps from one task to the next: engine, source and tables."""

    run_id: str
    maker: ShardMaker
    committed: list[int]
    opened: ExitStack

    @classmethod
    def set_up(cls, job: BuildJob, run_id: str, cpus: int) -> _Workplace:
        if not (job.folder / PLAN_NAME).exists():
            raise StorageError(
                f"{job.folder} on {_node()} does not hold the plan that was made for it: --ray "
                "needs an output folder on a file system that all nodes share"
            )
        plan = Plan.load(job.folder)
        committed: list[int] = []

        def note(event: Event) -> None:
            if isinstance(event, ShardCommitted):
                committed.append(event.shard)

        with ExitStack() as opened:
            engine = job.open_engine()
            opened.callback(engine.close)
            now = job.open_source(plan)
            opened.callback(now.source.close)
            workers = Workers(
                job.request.num_workers or max(LEAST_DEFAULT_WORKERS, cpus),
                min(cpus, usable_cores()),
                min(cpus, engine.concurrency),
                engine.batch_size,
            )
            maker = job.maker(plan, now.source, now.sizes_now, engine, workers, note)
            return cls(run_id, maker, committed, opened.pop_all())


_workplace: _Workplace | None = None


def make_shard(job: BuildJob, run_id: str, version: str, cpus: int, index: int) -> ShardResult:
    """The task: one shard, in a process that may have made others before.

    Parameters
    ----------
    job : BuildJob
        What to know.
    run_id : str
        Which driver's run this is.
    version : str
        The driver's version of ctgpu.
    cpus : int
        Cores that the task has.
    index : int
        The shard.
    """
    global _workplace
    try:
        if version != __version__:
            raise UsageError(
                f"{_node()} has ctgpu {__version__} and the driver has {version}: install the same "
                "version on every node"
            )
        with unforeseen_os_errors(job.folder):
            if _workplace is None or _workplace.run_id != run_id:
                _close_workplace()
                _workplace = _Workplace.set_up(job, run_id, cpus)
            _workplace.committed.clear()
            report = _workplace.maker.make_one(index)
            made = index in _workplace.committed
        return ShardResult(_node(), report=report if made else None)
    except LeaseHeld as error:
        return ShardResult(_node(), held=error.holder)
    except CtgpuError as error:
        _close_workplace()
        return ShardResult(_node(), error=error)
    except BaseException:
        _close_workplace()
        raise


def _close_workplace() -> None:
    global _workplace
    if _workplace is not None:
        workplace, _workplace = _workplace, None
        workplace.opened.close()


def _node() -> str:
    return os.uname().nodename
