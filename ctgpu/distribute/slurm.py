"""Which part of the plan this process does, as SLURM's own variables say it.

A job array divides the plan among its elements, and each element again among the tasks that
``srun`` starts; nobody coordinates, since every process derives its part from the same plan.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from ctgpu.building.request import Part
from ctgpu.errors import UsageError

log = logging.getLogger(__name__)


def part_from_environment(
    environment: Mapping[str, str], *, on_terminal: bool = False
) -> Part | None:
    """The part of this process; None outside of job arrays and of steps with several tasks.

    Of the tasks that ``srun --pty`` starts, only the first has a terminal, and the shells of the
    others end at once: it takes over their parts.

    Parameters
    ----------
    environment : mapping of str to str
        ``SLURM_ARRAY_TASK_ID``, ``_COUNT``, ``_MIN``, ``_MAX`` and ``_STEP`` of a job array;
        ``SLURM_PROCID``, ``SLURM_STEP_NUM_TASKS``, ``SLURM_STEP_TASKS_PER_NODE`` and
        ``SLURM_NODEID``, which only ``srun`` sets, and with ``--pty`` ``SLURM_PTY_PORT``.
    on_terminal : bool
        Whether this process reads from a terminal: what ``srun`` starts within an interactive
        shell has the shell's ``SLURM_PTY_PORT`` too, and no terminal.

    Raises
    ------
    UsageError
        If the array is no regular range, so that an element cannot know its place in it.
    """
    element, elements = _array(environment)
    task, tasks, on_node = 0, 1, 1
    if "SLURM_STEP_NUM_TASKS" in environment:
        tasks = _number(environment, "SLURM_STEP_NUM_TASKS")
        task = _number(environment, "SLURM_PROCID")
    if not (0 <= task < tasks and 0 <= element < elements):
        raise UsageError(
            f"SLURM's variables say task {task} of {tasks} in array element {element} of "
            f"{elements}; start ctgpu with srun, or choose a part by hand with --shards A-B"
        )
    if on_terminal and tasks > 1 and "SLURM_PTY_PORT" in environment:
        log.info("SLURM: srun --pty has started %d tasks, and this one does the work of all", tasks)
        task, tasks = 0, 1
    else:
        on_node = _tasks_on_node(environment)
    if elements * tasks == 1:
        return None
    return Part(element * tasks + task, elements * tasks, on_node)


def _array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Number of this element from 0, and how many there are."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    this, count, first, last, step = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}")
        for name in ("ID", "COUNT", "MIN", "MAX", "STEP")
    )
    step = max(1, step)
    if last - first != (count - 1) * step or (this - first) % step:
        raise UsageError(
            f"the job array has {count} elements between {first} and {last}, which is no regular "
            "range, so that none of them can know its part: submit --array=0-N or A-B:STEP, or "
            "choose each part by hand with --shards A-B"
        )
    return (this - first) // step, count


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Tasks of this step on this node: ``SLURM_STEP_TASKS_PER_NODE`` such as ``4(x2),3``."""
    counts: list[int] = []
    for text in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", text):
            counts += [int(match[1])] * int(match[2] or 1)
    node = environment.get("SLURM_NODEID", "0")
    return max(1, counts[int(node)]) if node.isdigit() and int(node) < len(counts) else 1


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text):
        raise UsageError(
            f"{name} is {text!r} where SLURM sets a number; start ctgpu with srun, or choose a "
            "part by hand with --shards A-B"
        )
    return int(text)
