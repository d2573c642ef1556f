"""``ctgpu verify``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import ctgpu
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.building import rewrite
from support.command_line import run, run_here, sentence
from support.phantoms import SPEC, chests, study_ids


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples of three, in two shards."""
    root = tmp_path_factory.mktemp("made")
    paths = lay_out_ct_rate(root / "source", chests(study_ids(3), (40, 36, 24)))
    paths["valid_2_a_1"].write_bytes(b"nothing")
    ctgpu.build(root / "out", source=root / "source", spec=SPEC, samples_per_shard=2, device="cpu")
    return root / "out"


@pytest.mark.slow
def test_the_command_prints_a_sentence_for_each_finding_and_exits_1(
    tmp_path: Path, made: Path
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "out"))
    good = run("verify", folder)
    assert (good.returncode, good.stderr) == (0, "")
    assert "2 samples in 2 shards" in good.stdout
    assert "every byte is as it was written; 1 sample failed" in good.stdout
    (folder / "shard-000001.idx").unlink()
    with (folder / "shard-000000.tar").open("r+b") as tar:
        tar.write(b"x")
    bad = run("verify", folder)
    assert (bad.returncode, bad.stderr) == (1, "")
    named = [line.partition(":")[0] for line in bad.stdout.splitlines()]
    assert named == ["shard-000000.tar", "shard-000001.idx", str(folder)]
    found = json.loads(run_here("verify", folder, "--json").stdout)["findings"]
    assert [finding["file"] for finding in found] == ["shard-000000.tar", "shard-000001.idx"]


def test_the_command_on_what_is_no_data_set(tmp_path: Path) -> None:
    result = run_here("verify", tmp_path / "none")
    assert result.returncode == 2
    assert result.stderr.startswith("ctgpu: ")
    empty = run_here("verify", tmp_path)
    assert empty.returncode == 1
    assert "holds no plan.json" in empty.stdout


@pytest.mark.slow
def test_three_samples_in_shards_of_two_and_one_are_all_compared(source: Path, built: Path) -> None:
    pattern = built / "shard-{000000..000001}.tar"
    answer = run_here(
        *("verify", "--preprocessed-pattern", pattern, "--source", source, "--num-samples", 3)
    )
    assert answer.returncode == 0, answer.stderr
    assert "3 of 3 samples passed" in answer.stdout


@pytest.mark.slow
def test_the_command_says_what_it_compared_and_how_it_went(
    tmp_path: Path, source: Path, built: Path
) -> None:
    good = run_here("verify", built, "--source", source, "--num-samples", "all", "--json")
    assert good.returncode == 0, good.stderr
    answer = json.loads(good.stdout)
    assert answer["passed"]
    assert [sample["key"] for sample in answer["samples"]] == study_ids(3)
    zeros = rewrite(built, tmp_path / "bad", lambda k, e, c: bytes(len(c)) if e == "bin" else c)
    pattern = zeros / "shard-{000000..000001}.tar"
    bad = run_here(
        *("verify", "--preprocessed-pattern", pattern, "--source", source, "--num-samples", 2)
    )
    assert bad.returncode == 1
    assert "0 of 2 samples passed" in bad.stdout
    assert run_here("verify", built, "--num-samples", "some").returncode == 2
    assert run_here("verify", built, "--preprocessed-pattern", pattern).returncode == 2
    assert run_here("verify").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "a", "--original-pattern", "b"], "both name the originals; give one"),
        (["--source", "a"], "name what to compare"),
        ([], "name the data set's folder"),
    ],
)
def test_what_is_to_be_looked_at_is_named_once(arguments: list[str], words: str) -> None:
    result = run_here("verify", *arguments)
    assert result.returncode == 2
    assert words in sentence(result)
