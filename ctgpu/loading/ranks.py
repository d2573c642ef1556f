"""Which of several processes that train together this one is."""

from __future__ import annotations

import logging
import numbers
import os
import sys
from functools import cache

from ctgpu.errors import UsageError

log = logging.getLogger(__name__)


def given_place(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Rank and world size as a caller gave them; None where they did not.

    Raises
    ------
    UsageError
        If one is missing, or they do not fit each other.
    """
    if rank is None and world_size is None:
        return None
    whole = isinstance(rank, numbers.Integral) and isinstance(world_size, numbers.Integral)
    if rank is None or world_size is None or not whole or not 0 <= rank < world_size:
        raise UsageError(
            f"rank is {rank!r} and world_size {world_size!r}; give both as whole numbers, rank "
            "from 0 to world_size - 1"
        )
    return rank, world_size


def distributed_place() -> tuple[int, int]:
    """Rank and world size of ``torch.distributed`` where it is initialised, else 0 of 1.

    One warning in the log says where the environment names others, as `torchrun` does.
    """
    # What was never imported was never initialised.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank, world_size = os.environ.get("RANK") or "0", os.environ.get("WORLD_SIZE") or "1"
    if rank != "0" or world_size != "1":
        _warn_of_ranks(rank, world_size)
    return 0, 1


def processes_here() -> int:
    """How many processes share this machine with this one, as what started them says.

    ``torchrun``, and what builds on it, states the ranks of a machine in ``LOCAL_WORLD_SIZE``; a
    torch DataLoader has workers, in each of which this is asked.
    """
    stated = os.environ.get("LOCAL_WORLD_SIZE", "")
    ranks = int(stated) if stated.isdecimal() and int(stated) > 0 else 1
    data = sys.modules.get("torch.utils.data")
    worker = None if data is None else data.get_worker_info()
    return ranks * (1 if worker is None else int(worker.num_workers))


@cache  # once
def _warn_of_ranks(rank: str, world_size: str) -> None:
    log.warning(
        "RANK is %s and WORLD_SIZE %s, but torch.distributed is not initialised: every rank reads "
        "everything; call torch.distributed.init_process_group first, or pass rank and world_size",
        *(rank, world_size),
    )
