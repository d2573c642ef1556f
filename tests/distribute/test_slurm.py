"""Parts of a plan by SLURM's variables, and the documented batch script without SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from driving import (
    REPOSITORY,
    SMALL,
    WITHIN_S,
    array,
    begin,
    catch,
    committed_in,
    environment,
    finish,
    owners,
    wait_until,
)
from scenarios import SPEC, snapshot

import ctgpu
from ctgpu.building import executor
from ctgpu.building.request import Part
from ctgpu.distribute.slurm import part_from_environment
from ctgpu.errors import StorageError, UsageError
from ctgpu.shards.manifest import write_manifest
from ctgpu.sources.hub import source as hub_module
from ctgpu.testing.hub import LocalHub


def step(task: int, tasks: int, per_node: str = "1", node: int = 0) -> dict[str, str]:
    """What srun sets in a task."""
    return {
        "SLURM_PROCID": str(task),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": per_node,
        "SLURM_NODEID": str(node),
    }


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),
        (step(0, 1), None),
        (array(3, 1, first=3), None),
        (array(0, 16), Part(0, 16)),
        (array(15, 16), Part(15, 16)),
        (array(7, 4, first=1, step=3), Part(2, 4)),
        (step(2, 4, "4"), Part(2, 4, 4)),
        (array(1, 3) | step(5, 8, "4(x2)", 1), Part(13, 24, 4)),
        (array(1, 3) | step(7, 9, "4(x2),1", 2), Part(16, 27, 1)),
        (array(1, 3) | step(4, 9, "1,4(x2)", 1), Part(13, 27, 4)),
    ],
)
def test_a_process_finds_its_part(variables: dict[str, str], part: Part | None) -> None:
    assert part_from_environment(variables) == part


@pytest.mark.parametrize(
    ("variables", "on_terminal", "part"),
    [
        (step(0, 4, "4"), True, None),
        (array(1, 3) | step(0, 4, "4"), True, Part(1, 3)),
        # What srun starts within an interactive shell, which left it SLURM_PTY_PORT.
        (step(0, 4, "4"), False, Part(0, 4, 4)),
        (step(3, 4, "4"), False, Part(3, 4, 4)),
    ],
)
def test_the_task_with_the_terminal_does_what_the_others_leave(
    variables: dict[str, str], on_terminal: bool, part: Part | None
) -> None:
    variables = variables | {"SLURM_PTY_PORT": "34889"}
    assert part_from_environment(variables, on_terminal=on_terminal) == part


def test_a_terminal_alone_changes_no_part() -> None:
    assert part_from_environment(step(2, 4, "4"), on_terminal=True) == Part(2, 4, 4)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (array(3, 2) | {"SLURM_ARRAY_TASK_MAX": "7"}, "no regular range"),
        (array(2, 3, first=1, step=3), "no regular range"),
        (array(0, 4) | {"SLURM_ARRAY_TASK_COUNT": ""}, "where SLURM sets a number"),
        (array(9, 4), "array element 9 of 4"),
        (step(4, 4), "task 4 of 4"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID is ''"),
    ],
)
def test_what_cannot_be_a_part_is_refused(variables: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        part_from_environment(variables)


@pytest.mark.parametrize("shards", [0, 1, 5, 16, 369])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_parts_are_the_whole_plan_each_shard_once(shards: int, count: int) -> None:
    parts = [Part(index, count).shards_of(shards) for index in range(count)]
    assert [shard for part in parts for shard in part] == list(range(shards))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_memory_and_quotas_are_divided(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets, counts = [], []
    usual_client, usual_maker = hub_module.HubClient, executor.ShardMaker

    def client(*arguments: Any) -> Any:
        counts.append(arguments[-1])
        return usual_client(*arguments)

    def maker(*arguments: Any, **options: Any) -> Any:
        budgets.append(options["memory_limit_bytes"])
        return usual_maker(*arguments, **options)

    monkeypatch.setattr(hub_module, "HubClient", client)
    monkeypatch.setattr(executor, "ShardMaker", maker)
    with LocalHub(source) as hub:
        ctgpu.build(
            tmp_path / "out",
            repo_id=hub.repo_id,
            endpoint=hub.url,
            spec=SPEC,
            samples_per_shard=1,
            part=Part(0, 32, 8),
            memory_limit_bytes=8 << 20,
            device="cpu",
        )
    assert budgets == [1 << 20]
    assert counts == [32]


def test_every_part_asks_for_the_space_of_all(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def note(folder: Path, needed_bytes: int) -> None:
        asked.append(needed_bytes)
        raise StorageError("full")

    monkeypatch.setattr("ctgpu.building.builder.require_free_space", note)
    for options in ({"part": Part(0, 4)}, {"part": Part(0, 4), "shards": range(1)}, {}):
        with pytest.raises(StorageError, match="full"):
            ctgpu.build(tmp_path / "out", source=source, samples_per_shard=8, **options)
    one_of_four, by_hand, alone = asked
    assert one_of_four == alone == 4 * by_hand


@pytest.mark.slow
@pytest.mark.parametrize("hub_source", [False, True], ids=["folder", "hub"])
def test_parts_side_by_side_leave_what_one_process_leaves(
    tmp_path: Path, source: Path, undisturbed: dict[str, Any], hub_source: bool
) -> None:
    folder = tmp_path / "out"
    with LocalHub(source) as hub:
        arguments: tuple[object, ...] = ("--source", source)
        if hub_source:
            arguments = ("--repo-id", hub.repo_id)
        parts = [
            begin(
                *("--output-dir", folder, *arguments, *SMALL),
                HF_ENDPOINT=hub.url,
                **(array(element, 2) | step(0, 1)),
            )
            for element in range(2)
        ]
        logs = [finish(part) for part in parts]
        assert [sorted(committed_in(log)) for log in logs] == [[0, 1], [2, 3]]
        if hub_source:
            # The samples name another source.
            finish(
                begin("--output-dir", tmp_path / "alone", *arguments, *SMALL, HF_ENDPOINT=hub.url)
            )
            undisturbed = snapshot(tmp_path / "alone")
    write_manifest(folder)
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
def test_a_part_without_shards_does_nothing(tmp_path: Path, source: Path) -> None:
    variables = array(0, 64)
    log = finish(begin("--output-dir", tmp_path / "out", "--source", source, **variables))
    assert "this is part 1 of 64" in log
    assert committed_in(log) == []
    assert "1 of the plan's 1 shard is not made yet" in log


@pytest.mark.slow
def test_a_shell_of_srun_builds_what_all_of_its_tasks_would(
    tmp_path: Path, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder, (terminal, stdin) = tmp_path / "out", os.openpty()
    try:
        variables = step(0, 4, "4") | {"SLURM_PTY_PORT": "34889"}
        log = finish(
            begin("--output-dir", folder, "--source", source, *SMALL, stdin=stdin, **variables)
        )
    finally:
        os.close(terminal)
        os.close(stdin)
    assert "srun --pty has started 4 tasks, and this one does the work of all" in log
    assert "this is part" not in log
    assert "not made yet" not in log
    assert snapshot(folder) == undisturbed


@pytest.mark.slow
def test_what_a_part_leaves_is_said_with_the_way_to_make_it(tmp_path: Path, source: Path) -> None:
    arguments = ("--output-dir", tmp_path / "out", "--source", source, *SMALL)
    variables = step(0, 4, "4") | {"SLURM_PTY_PORT": "34889"}
    first = finish(begin(*arguments, **variables))
    assert committed_in(first) == [0]
    assert "3 of the plan's 4 shards are not made yet" in first
    (way_out,) = re.findall(r"--shards \S+-\d+", first)
    rest = finish(begin(*arguments, *way_out.split(), **variables))
    assert committed_in(rest) == [1, 2, 3]
    assert "not made yet" not in rest


def batch_script() -> str:
    """The one that ``docs/slurm.md`` shows."""
    text = (REPOSITORY / "docs/slurm.md").read_text()
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    return str(script)


@pytest.mark.slow
def test_the_batch_script_stops_at_its_signal_and_goes_on_when_requeued(
    tmp_path: Path, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder, tools = tmp_path / "out", tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        # SLURM itself would start the task on a node and number it.
        "srun": 'SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_STEP_TASKS_PER_NODE=1 exec "$@"',
        "ctgpu": f'exec "{sys.executable}" -m ctgpu.cli "$@" $FOR_THE_TEST',
        "scontrol": f'echo "$@" >>"{tmp_path}/scontrol"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    script = tmp_path / "ctgpu.sbatch"
    script.write_text(batch_script())
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0

    def submit(element: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(
                **array(element, 2),
                SLURM_ARRAY_JOB_ID="77",
                OUTPUT_DIR=str(folder),
                PATH=f"{tools}:{os.environ['PATH']}",
                FOR_THE_TEST=" ".join(map(str, ("--split", "valid", "--source", source, *SMALL))),
            ),
        )

    first = submit(0)
    (pid,) = catch(folder, 1, first)
    # --signal=TERM@120 goes to the tasks that srun started.
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    _, errors = first.communicate(timeout=WITHIN_S)
    assert first.returncode == 143, errors
    assert (tmp_path / "scontrol").read_text() == "requeue 77_0\n"
    assert not owners(folder)
    wait_until(lambda: not list(folder.glob("*.lease.*")))
    for element in (0, 1):
        again = submit(element)
        _, errors = again.communicate(timeout=WITHIN_S)
        assert again.returncode == 0, errors
    assert (tmp_path / "scontrol").read_text() == "requeue 77_0\n"
    counted = Counter(path.suffix for path in folder.iterdir())
    assert counted[".tar"] == 4
    assert snapshot(folder) == undisturbed
