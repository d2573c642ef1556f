"""Every example runs as its first lines say, and does what they say."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ctgpu
from ctgpu import Geometry
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.spec import Spec
from stored import chest_as, save
from support.phantoms import study_ids

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
STUDIES = study_ids(12)
LABELLED = STUDIES[:-1]
#: Of a third of ones the least mean loss of whoever has not looked at the scan.
BLIND = -(np.log(1 / 3) / 3 + np.log(2 / 3) * 2 / 3)
NAMES = [path.name for path in sorted(EXAMPLES.glob("*.py"))]
#: What they are given beside the data set.
FILES = {"resume.py": "run.pt", "monai_on_scan.py": "found"}
#: What they need that need not be installed.
LIBRARIES = {"train_lightning.py": "lightning", "monai_on_scan.py": "monai"}

needs_lightning = pytest.mark.skipif(
    find_spec("lightning") is None, reason="Lightning is not installed"
)
needs_monai = pytest.mark.skipif(find_spec("monai") is None, reason="MONAI is not installed")


def environment() -> dict[str, str]:
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    # On a GPU, or by other threads, a sum is taken in another order, and its last bits differ.
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback, "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | own


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """An example as it is run by its name, in this process: torch need not be imported again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()

    def run_example(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        # Those of Lightning and MONAI are for their own users.
        with warnings.catch_warnings(action="ignore"):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    torch.set_num_threads(1)
    yield run_example
    torch.set_num_threads(threads)


def require_library(name: str) -> None:
    # Not `importorskip`: what it imports warns.
    if find_spec(LIBRARIES.get(name, "torch")) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed")


def losses_in(stdout: str) -> list[float]:
    """Those of the epochs, one after the other."""
    found = re.findall(r"^epoch (\d+): loss ([\d.]+)", stdout, re.MULTILINE)
    assert [int(epoch) for epoch, _ in found] == list(range(len(found)))
    return [float(loss) for _, loss in found]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_how_it_is_run(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    # docs/training.md goes through the long one, which is all of them together.
    assert text.count("\n") < (110 if name == "train.py" else 60)
    assert re.search(rf"examples/{name} \w+/\w+", text.partition('"""\n')[0])


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scan, of which nothing is known."""
    root = tmp_path_factory.mktemp("unlabelled")
    save(root / "scans/a.nii", chest_as("LPS"))
    spec = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(32, 32, 32))
    ctgpu.build(root / "shards", source=root / "scans", spec=spec, device="cpu")
    return root / "shards"


def refusal(run: Any, capsys: pytest.CaptureFixture[str], name: str, *arguments: object) -> str:
    """What an example says on standard error before it exits with 2."""
    with pytest.raises(SystemExit) as ended:
        run(name, *arguments)
    assert ended.value.code == 2
    *usage, said = capsys.readouterr().err.splitlines()
    assert usage[0].startswith(f"usage: {name}")
    return str(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "train.py"])
def test_a_folder_without_shards_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run: Any,
    name: str,
) -> None:
    require_library(name)
    more = [FILES[name]] if name in FILES else []
    if name == "train_ddp.py":
        assert "start it with torchrun" in refusal(run, capsys, name, tmp_path)
        monkeypatch.setenv("LOCAL_RANK", "0")
    assert "names no finished shard" in refusal(run, capsys, name, tmp_path, *more)
    assert "holds no plan.json" in refusal(run, capsys, name, tmp_path / "none", *more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("train_lightning.py", "has no labelled samples"),
        ("resume.py", "has no labelled samples"),
        ("train_clip.py", "has no samples to load"),
    ],
)
def test_scans_of_which_nothing_is_known_are_refused(
    unlabelled: Path, run: Any, capsys: pytest.CaptureFixture[str], name: str, wanted: str
) -> None:
    require_library(name)
    more = [FILES[name]] if name in FILES else []
    assert wanted in refusal(run, capsys, name, unlabelled, *more)


def test_too_few_pairs_for_a_batch_are_refused(
    shards: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(run, capsys, "train_clip.py", shards, "--batch-size", "13")
    assert said.endswith("12 scans have a report, too few for a batch")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_one_sentence(
    shards: Path, monkeypatch: pytest.MonkeyPatch, run: Any, name: str
) -> None:
    library = LIBRARIES[name]
    for module in [library, *(m for m in sys.modules if m.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=rf"^{name} needs \w+: pip install "):
        run(name, shards)


@pytest.mark.slow
@needs_lightning
def test_lightning_trains(shards: Path, tmp_path: Path, run: Any) -> None:
    run("train_lightning.py", shards, "--epochs", "15", "--valid", shards)
    logs = tmp_path / "lightning_logs/version_0"
    rows = list(csv.DictReader((logs / "metrics.csv").read_text().splitlines()))
    losses, valid = (
        [float(row[name]) for row in rows if row[name]] for name in ("loss", "valid_loss")
    )
    assert len(losses) == len(valid) == 15
    assert losses[-1] < 0.75 * BLIND < losses[0]
    # Of the same scans, after the epoch that has taught them.
    assert valid[-1] < 0.75 * BLIND
    (checkpoint,) = (logs / "checkpoints").iterdir()
    state = torch.load(checkpoint, weights_only=False)
    assert '"shuffle": true' in json.dumps(state["loops"]).lower()


@pytest.mark.slow
def test_pairs_are_told_apart(shards: Path, run: Any) -> None:
    losses = losses_in(run("train_clip.py", shards, "--epochs", "40"))
    assert len(losses) == 40
    # By chance, a batch of four gives the logarithm of four.
    assert np.mean(losses[-5:]) < np.log(4) / 2 < losses[0]


#: Kills itself when the checkpoint of a step is written, but not yet under its name.
_KILLED = """
import os, runpy, signal, sys

replace, left = os.replace, int(sys.argv.pop(1))

def replace_or_die(*paths):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)

os.replace = replace_or_die
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_middle_of_an_epoch(
    shards: Path, tmp_path: Path, run: Any
) -> None:
    epochs, killed_at = 3, len(LABELLED) + 6
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    run("resume.py", shards, whole, "--epochs", epochs)
    words = (killed_at, EXAMPLES / "resume.py", shards, killed, "--epochs", epochs)
    result = subprocess.run(
        [sys.executable, "-c", _KILLED, *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(history_of(killed)) == killed_at - 1
    stdout = run("resume.py", shards, killed, "--epochs", epochs)
    assert stdout.startswith(f"going on after step {killed_at - 1}\nstep {killed_at}: loss ")
    orders = make_loader(shards, shuffle=True, seed=0, labelled_only=True)
    expected = [batch["study_id"][0] for _ in range(epochs) for batch in orders]
    assert sorted(expected) == sorted(epochs * LABELLED)
    history = history_of(killed)
    assert [study for study, _ in history] == expected
    # To the last bit; and a blank cell has not made them NaN.
    assert history == history_of(whole)
    # One that is complete has nothing left to do.
    done = run("resume.py", shards, killed, "--epochs", epochs)
    assert done == f"going on after step {len(expected)}\n"


def history_of(checkpoint: Path) -> list[Any]:
    return list(torch.load(checkpoint)["history"])


@pytest.mark.slow
def test_two_ranks_share_each_epoch(shards: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    result = subprocess.run(
        [sys.executable, *launcher, EXAMPLES / "train_ddp.py", shards, "--epochs", "12"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    losses = losses_in(result.stdout)
    assert len(losses) == 12
    assert losses[-1] < BLIND < losses[0]
    samples = re.findall(r"samples (\[.*\])$", result.stdout, re.MULTILINE)
    assert len(samples) == 12
    for line in samples:
        first, second = (re.findall(r"'(\w+)'", part) for part in line.split("], ["))
        # Of eleven samples one comes twice, so that both ranks have as many steps.
        assert len(first) == len(second) == 6
        assert set(first + second) == set(LABELLED)
    assert len(set(samples)) == 12


@pytest.mark.slow
@needs_monai
def test_what_monai_finds_lies_on_the_scan(
    shards: Path, source: Path, tmp_path: Path, run: Any
) -> None:
    stdout = run("monai_on_scan.py", shards, "found")
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
