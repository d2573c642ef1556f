"""``ctgpu export``."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctgpu.loading import VolumeDataset
from support.command_line import run_here, sentence

NAMES = ["valid_1_a_1", "valid_2_a_1", "valid_3_a_1"]


def test_it_says_what_it_wrote(tmp_path: Path, built: Path) -> None:
    result = run_here(
        *("export", built, "--to", "npy", "--output-dir", tmp_path / "to"),
        *("--samples", f"{NAMES[2]},0"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{NAMES[0]}: {NAMES[0]}.npy, {NAMES[0]}.json",
        f"{NAMES[2]}: {NAMES[2]}.npy, {NAMES[2]}.json",
        f"{tmp_path / 'to'}: 2 of 2 samples exported",
    ]
    found = np.load(tmp_path / "to" / f"{NAMES[0]}.npy")
    np.testing.assert_array_equal(found, VolumeDataset(built)[0]["volume"][0].transpose(1, 2, 0))


def test_a_damaged_sample_is_said_and_the_exit_code_is_1(tmp_path: Path, built: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "out")
    shard, entry = VolumeDataset(folder).locate(0)
    data = bytearray(shard.path.read_bytes())
    data[entry.members["bin"].offset] ^= 0xFF
    shard.path.write_bytes(data)
    words = ("--to", "npy", "--output-dir", tmp_path / "to", "--samples", "all")
    result = run_here("export", folder, *words)
    assert result.returncode == 1
    first, *_, last = result.stdout.splitlines()
    assert first.startswith(f"{NAMES[0]}: {shard.path}: {NAMES[0]}.bin does not have its checksum")
    assert last == f"{tmp_path / 'to'}: 2 of 3 samples exported; 1 could not be"
    again = run_here("export", folder, *words)
    assert again.returncode == 2
    assert "would be replaced" in sentence(again)
    assert run_here("export", built, *words, "--force").returncode == 0


# A signal comes while a file is half written.
_STOPPED_HALFWAY = """
import os, signal, sys
from ctgpu.cli import main

number = signal.Signals[sys.argv.pop(1)]
os.fsync = lambda fd: os.kill(os.getpid(), number)
sys.exit(main())
"""


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_no_half_file_stays_where_it_is_stopped(
    tmp_path: Path, built: Path, signal_name: str
) -> None:
    words = ("export", built, "--to", "npy", "--output-dir", tmp_path / "to", "--samples", "all")
    result = subprocess.run(
        [sys.executable, "-c", _STOPPED_HALFWAY, signal_name, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 128 + signal.Signals[signal_name]
    assert (result.stdout, result.stderr) == ("", "ctgpu: stopped\n")
    assert list((tmp_path / "to").iterdir()) == []


def test_blanks_around_names_are_no_part_of_them(tmp_path: Path, built: Path) -> None:
    words = ("--to", "npy", "--output-dir", tmp_path, "--samples", f" {NAMES[0]}, {NAMES[1]},")
    result = run_here("export", built, *words)
    assert result.stdout.splitlines()[-1] == f"{tmp_path}: 2 of 2 samples exported"


def test_an_index_for_energon(tmp_path: Path, built: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "out")
    words = ("export", folder, "--to", "energon", "--split", "val")
    result = run_here(*words)
    assert result.returncode == 0, result.stderr
    said = f"{folder}: 3 samples in 2 shards indexed for Energon as val"
    assert result.stdout == f"{said}\n"
    again = run_here(*words)
    assert again.stdout == f"{said}; dataset.yaml was left as it is, --force replaces it\n"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["{out}"], "Missing option '--to'"),
        (["{out}", "--to", "mha"], "--to is 'mha'; it is npy"),
        (["{out}", "--to", "npy"], "--output-dir, and which samples"),
        (
            ["{out}", "--to", "npy", "--output-dir", "{tmp}/x", "--samples", ", ,"],
            "--samples: names, numbers or all",
        ),
        (["{out}", "--to", "npy", "--output-dir", "{tmp}/x"], "--samples: names, numbers or all"),
        (
            ["{out}", "--to", "npy", "--output-dir", "{tmp}/x", "--samples", "none"],
            "samples has 'none', which is the name of no sample",
        ),
        (
            ["{tmp}/none", "--to", "npy", "--output-dir", "{tmp}/x", "--samples", "all"],
            "holds no plan.json",
        ),
        (
            ["{out}", "--to", "npy", "--output-dir", "{out}", "--samples", "all"],
            "is the folder of a data set",
        ),
        (["{out}", "--to", "energon", "--samples", "all"], "leave out --output-dir, --samples"),
        (["{out}", "--to", "energon", "--split", "valid"], "--split is 'valid'; it is train or"),
        (["{out}", "--to", "npy", "--split", "val"], "--split is for the index"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, built: Path, words: list[str], wanted: str
) -> None:
    result = run_here("export", *(word.format(tmp=tmp_path, out=built) for word in words))
    assert result.returncode == 2
    assert wanted in sentence(result)
    assert result.stdout == ""
