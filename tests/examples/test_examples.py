"""Every example runs as its first lines say, and does what they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from ctgpu import Geometry
from ctgpu.loading import VolumeDataset, make_loader
from support.phantoms import study_ids

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
STUDIES = study_ids(12)
#: Of a third of ones the least mean loss of whoever has not looked at the scan.
BLIND = -(np.log(1 / 3) / 3 + np.log(2 / 3) * 2 / 3)


def environment() -> dict[str, str]:
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    # On a GPU, or by other threads, a sum is taken in another order, and its last bits differ.
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback, "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | own


def command(name: str, *arguments: str | Path, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, str(EXAMPLES / name), *map(str, arguments)]


def run_in(folder: Path, words: list[str]) -> str:
    result = subprocess.run(
        words,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def losses_in(stdout: str) -> list[float]:
    """Those of the epochs, one after the other."""
    found = re.findall(r"^epoch (\d+): loss ([\d.]+)", stdout, re.MULTILINE)
    assert [int(epoch) for epoch, _ in found] == list(range(len(found)))
    return [float(loss) for _, loss in found]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 60
    assert f"examples/{path.name} demo/shards" in text.partition('"""\n')[0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lightning") is None, reason="Lightning is not installed")
def test_lightning_trains(shards: Path, tmp_path: Path) -> None:
    losses = losses_in(run_in(tmp_path, command("train_lightning.py", shards, "--epochs", "15")))
    assert len(losses) == 15
    assert losses[-1] < 0.75 * BLIND < losses[0]


@pytest.mark.slow
def test_pairs_are_told_apart(shards: Path, tmp_path: Path) -> None:
    losses = losses_in(run_in(tmp_path, command("train_clip.py", shards, "--epochs", "40")))
    assert len(losses) == 40
    # By chance, a batch of four gives the logarithm of four.
    assert np.mean(losses[-5:]) < np.log(4) / 2 < losses[0]


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_middle_of_an_epoch(shards: Path, tmp_path: Path) -> None:
    epochs = 25  # of steps of milliseconds: it is killed long before the last
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    run_in(tmp_path, command("resume.py", shards, whole, "--epochs", str(epochs)))
    words = command("resume.py", shards, killed, "--epochs", str(epochs))
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            next(line for line in process.stdout if line.startswith("step 5:"))
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 5 <= len(history_of(killed)) < epochs * len(STUDIES)
    stdout = run_in(tmp_path, words)
    assert stdout.startswith("going on after step ")
    orders = make_loader(shards, shuffle=True, seed=0)
    expected = [batch["study_id"][0] for _ in range(epochs) for batch in orders]
    assert sorted(expected) == sorted(epochs * STUDIES)
    history = history_of(killed)
    assert [study for study, _ in history] == expected
    assert history == history_of(whole)
    # One that is complete has nothing left to do.
    assert run_in(tmp_path, words) == f"going on after step {len(expected)}\n"


def history_of(checkpoint: Path) -> list[Any]:
    return list(torch.load(checkpoint)["history"])


@pytest.mark.slow
def test_two_ranks_share_each_epoch(shards: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    words = command("train_ddp.py", shards, "--epochs", "12", launcher=launcher)
    stdout = run_in(tmp_path, words)
    losses = losses_in(stdout)
    assert len(losses) == 12
    assert losses[-1] < BLIND < losses[0]
    samples = re.findall(r"samples (\[.*\])$", stdout, re.MULTILINE)
    assert len(samples) == 12
    for line in samples:
        first, second = (re.findall(r"'(\w+)'", part) for part in line.split("], ["))
        assert len(first) == len(second) == 6
        assert sorted(first + second) == sorted(STUDIES)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("monai") is None, reason="MONAI is not installed")
def test_what_monai_finds_lies_on_the_scan(shards: Path, source: Path, tmp_path: Path) -> None:
    stdout = run_in(tmp_path, command("monai_on_scan.py", shards, "found"))
    stated = dict(re.findall(r"^(\w+): (\d+) ml of air$", stdout, re.MULTILINE))
    assert list(stated) == STUDIES
    dataset = VolumeDataset(shards)
    for study in STUDIES:
        (path,) = source.rglob(f"{study}.nii.gz")
        scan: Any = nibabel.load(path)
        found: Any = nibabel.load(tmp_path / "found" / f"{study}_air.nii.gz")
        assert found.shape == scan.shape
        assert np.allclose(found.affine, scan.affine, atol=1e-4)
        inside = found.get_fdata() > 0
        air = scan.get_fdata() < -500
        # Of a grid that is coarser, edges are a little off; what is found is air, in its place.
        assert air[inside].mean() > 0.9
        # Inside of the crop it is what the volume itself says, taken to the scan without MONAI.
        sample = dataset[study]["volume"][0] < -0.5
        wanted = Geometry.of_metadata(dataset.metadata(study)).to_scan(sample, layout="DHW")
        middle = tuple(slice(n // 8, n - n // 8) for n in scan.shape)
        assert wanted[middle].any()
        assert (inside[middle] == wanted[middle]).mean() > 0.99
        assert float(stated[study]) == pytest.approx(inside.sum() * 3.5 * 3 * 5 / 1000, rel=0.1)
        # The crop leaves the corners out.
        assert not inside[0, 0, 0]
        assert air[0, 0, 0]
