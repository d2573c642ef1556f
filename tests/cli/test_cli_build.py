"""``ctgpu build``, and what its signals leave."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from built import read_samples, tar_bytes
from ctgpu.testing.masks import lay_out_with_masks
from support.command_line import SMALL, run, run_here, sentence
from support.data_set_copies import marked
from support.phantoms import SPACING_MM, SPEC_FLAGS


@pytest.mark.slow
def test_build_shows_what_it_did_and_exits_0(tmp_path: Path, source: Path) -> None:
    result = run("build", "--output-dir", tmp_path / "out", "--source", source, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "3 listed, 3 selected" in result.stderr
    assert "Where the time went" in result.stdout
    assert "bottleneck" in result.stdout
    assert "num_samples: 3" in result.stdout
    assert "Traceback" not in result.stderr
    assert len(read_samples(tmp_path / "out")) == 3


def next_of(shown: str) -> list[list[str]]:
    """The arguments of the commands with which a summary ends."""
    _, _, commands = shown.partition("\nNext:\n")
    words = [shlex.split(line) for line in commands.splitlines()]
    assert all(program == "ctgpu" for program, *_ in words)
    return [rest for _, *rest in words]


def test_a_summary_ends_with_the_two_commands_that_come_next(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "a folder's"
    words = ("build", "--output-dir", folder, "--source", source, "--samples-per-shard", "2")
    part = run_here(*words, *SMALL, "--shards", "0-0")
    assert "2 samples in 1 shard," in part.stdout
    assert next_of(part.stdout) == [["build", "--output-dir", str(folder)], ["verify", str(folder)]]
    whole = run_here(*next_of(part.stdout)[0], "--device", "cpu")
    assert "3 samples in 2 shards," in whole.stdout
    assert "shard 000001: 1 sample, " in whole.stderr
    commands = next_of(whole.stdout)
    assert commands == [["inspect", str(folder)], ["verify", str(folder)]]
    for arguments in commands:
        result = run_here(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
    # Nothing is left to do.
    done = run_here("build", "--output-dir", folder, "--device", "cpu")
    assert "3 samples in 2 shards; to do: nothing" in done.stderr
    assert next_of(done.stdout) == commands


def test_json_log_lines_and_summary_can_be_parsed(tmp_path: Path, source: Path) -> None:
    result = run_here(
        *("build", "--output-dir", tmp_path, "--source", source, "--log-format", "json", *SMALL)
    )
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    events = [line.get("event") for line in lines]
    assert events[:2] == ["Listing", "Planned"]
    assert "ShardCommitted" in events
    assert json.loads(result.stdout)["total_samples"] == 3


def test_a_failed_sample_exits_1_and_says_how_to_retry(tmp_path: Path, source: Path) -> None:
    copy = tmp_path / "source"
    for path in source.rglob("*.*"):
        target = copy / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes()[: 2000 if "valid_3" in path.name else None])
    result = run_here("build", "--output-dir", tmp_path / "out", "--source", copy, *SMALL)
    assert result.returncode == 1
    assert f"1 sample failed; see {tmp_path / 'out' / 'failures.jsonl'}\n" in result.stdout
    # Why, is said once: when it happens, or at the end by a run that does not come upon it.
    assert (result.stderr.count("valid_3_a_1 failed"), result.stdout.count("valid_3_a_1")) == (1, 0)
    again = ["build", "--output-dir", str(tmp_path / "out")]
    assert next_of(result.stdout) == [[*again, "--retry-failed"], ["verify", again[2]]]
    result = run_here(*again, "--device", "cpu")
    assert (result.stderr.count("valid_3_a_1"), result.stdout.count("  valid_3_a_1 (")) == (0, 1)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--source", "{source}", "--split", "test"], 2, "--split train or valid"),
        (["--source", "{source}", "--device", "cuda:x"], 2, "--device is 'cuda:x'"),
        (["--source", "{source}", "--memory-limit", "lots"], 2, "'lots' is not a size"),
        (["--source", "{source}", "--shards", "7-3"], 2, "write A-B"),
        (["--source", "/nonexistent"], 2, "is not a folder"),
        ([], 3, "HF_HUB_OFFLINE"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_an_exit_code(
    tmp_path: Path, source: Path, arguments: list[str], code: int, sentence: str
) -> None:
    filled = [argument.format(source=source) for argument in arguments]
    device = [] if "--device" in filled else ["--device", "cpu"]
    result = run_here("build", "--output-dir", tmp_path / "out", *device, *filled)
    assert result.returncode == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("ctgpu: ")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run_here(
        *("build", "--output-dir", tmp_path, "--source", "/nonexistent"),
        *("--device", "cpu", "--debug"),
    )
    assert "Traceback" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_leaves_a_folder_that_can_be_resumed(
    tmp_path: Path, source: Path, number: signal.Signals, code: int
) -> None:
    command = [
        *(sys.executable, "-m", "ctgpu.cli", "build", "--output-dir", str(tmp_path / "out")),
        *("--source", str(source), "--device", "cpu", "--num-workers", "1"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out" / "shard-000000.journal"
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Go on with: ctgpu build" in errors
    assert "Traceback" not in errors
    resumed = run("build", "--output-dir", tmp_path / "out", "--device", "cpu")
    assert resumed.returncode == 0
    whole = run("build", "--output-dir", tmp_path / "whole", "--source", source, "--device", "cpu")
    assert whole.returncode == 0
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "whole")


def test_masks_are_stored_or_left_out_by_a_flag(tmp_path: Path) -> None:
    scans = {"a": marked(0)}
    dataset = lay_out_with_masks(tmp_path / "source", scans, SPACING_MM)
    for flag, members in (("--masks", 5), ("--no-masks", 4)):
        folder = tmp_path / flag
        result = run_here(
            *("build", "--source", tmp_path / "source", "--dataset", dataset),
            *("--output-dir", folder, "--split", "train", "--device", "cpu", flag, *SPEC_FLAGS),
        )
        assert result.returncode == 0, result.stderr
        with tarfile.open(folder / "shard-000000.tar") as tar:
            assert len(tar.getnames()) == members


def test_compressed_volumes_are_shown_and_gone_on_with(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "out"
    words = ("build", "--output-dir", folder, "--source", source, "--samples-per-shard", 2, *SMALL)
    result = run_here(*words, "--compress", "rice", "--shards", "0-0")
    assert result.returncode == 0, result.stderr
    assert "compression: rice" in result.stdout
    assert re.search(r"│ compress +│", result.stdout)  # among the stages
    with tarfile.open(folder / "shard-000000.tar") as tar:
        extensions = [name.partition(".")[2] for name in tar.getnames()]
        stored = tar.getmember("valid_1_a_1.ctz").size
    assert extensions == ["ctz", "cls", "txt", "json"] * 2
    assert stored < 2 * 90 * 90 * 50 // 2
    # What it was begun with holds, and is not said again.
    for other in ("none", "pack"):
        refused = run_here(*words, "--compress", other)
        assert refused.returncode == 2
        assert "compression: found 'rice', wanted" in sentence(refused)
    result = run_here("build", "--output-dir", folder, "--device", "cpu", "--log-format", "json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["total_samples"] == 3
    record = json.loads((folder / "shard-000001.json").read_bytes())
    assert json.loads(result.stdout)["stored_bytes"] == record["samples"][0]["members"]["ctz"][1]
    checked = run_here("verify", folder)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "3 samples in 2 shards" in checked.stdout


def test_an_unknown_compression_is_refused_with_those_that_there_are(
    tmp_path: Path, source: Path
) -> None:
    result = run_here(
        *("build", "--output-dir", tmp_path / "out", "--source", source, "--compress", "zip")
    )
    assert result.returncode == 2
    assert sentence(result) == "ctgpu: --compress is 'zip'; it is none or pack or rice"
    assert not (tmp_path / "out").exists()


def test_the_help_says_what_each_compression_is_for() -> None:
    for command in ("build", "convert"):
        text = " ".join(run_here(command, "--help").stdout.replace("│", " ").split())
        assert "none, pack (fastest to read) or rice (smallest)" in text
        assert "without loss" in text
