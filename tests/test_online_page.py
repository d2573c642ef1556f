"""What docs/online.md shows is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ctgpu
from ctgpu.loading import RawDataset, make_loader
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.pages import python_block
from support.phantoms import chest, study_ids

pytest.importorskip("torch")

PAGE = (Path(__file__).resolve().parent.parent / "docs/online.md").read_text()
SPEC = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(24, 20, 16))
STUDIES = study_ids(5)


def run(mark: str, root: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the one block of Python with `mark` in it leaves, of small volumes below `root`."""
    code = python_block(PAGE, mark)
    code = code.replace('"/data/CT-RATE"', repr(str(root / "source")))
    code = code.replace('"shards/', f'"{root}/shards/').replace('split="train"', 'split="valid"')
    code = code.replace('split="valid"', 'split="valid", spec=spec, device="cpu"')
    names = {"ctgpu": ctgpu, "spec": SPEC, "RawDataset": RawDataset, "make_loader": make_loader}
    names |= known or {}
    exec(code, names)
    return names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lay_out_ct_rate(
        tmp_path / "source",
        {name: chest((60, 56, 40), seed) for seed, name in enumerate(STUDIES)},
    )
    return tmp_path


def test_a_run_begins_raw_and_goes_on_on_shards(root: Path) -> None:
    names = run("shards is optional", root)
    loader = names["loader"]
    assert len(names["data"]) == 5
    assert not (root / "shards").exists()
    next(iter(loader))
    options: dict[str, Any] = {"source": root / "source", "spec": SPEC, "device": "cpu"}
    ctgpu.build(root / "shards/train", **options)
    later = run("of raw volumes", root, {"loader": loader})["loader"]
    seen = [study for batch in later for study in batch["study_id"]]
    whole = [study for batch in loader for study in batch["study_id"]]
    assert seen == whole[2:]


def test_what_an_epoch_makes_is_kept(root: Path) -> None:
    data = run("write_shards=", root)["data"]
    whole = [batch["volume"] for batch in make_loader(data, 2)]
    kept = make_loader(root / "shards/train", 2)
    assert all(a.equal(b["volume"]) for a, b in zip(whole, kept, strict=True))


def test_the_first_epoch_comes_in_the_order_of_the_build(root: Path) -> None:
    first = run("the plan's order is shuffled already", root)
    options: dict[str, Any] = {"source": root / "source", "spec": SPEC, "device": "cpu"}
    ctgpu.build(root / "shards/valid", order="shuffled", seed=1, **options)
    planned = list(first["first"].study_ids)
    assert planned != STUDIES
    assert [study for batch in first["loader"] for study in batch["study_id"]] == planned
    assert list(ctgpu.loading.VolumeDataset(root / "shards/valid").study_ids) == planned


def test_a_few_scans_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    for name, file in zip("abc", sorted((root / "source").rglob("*.nii.gz")), strict=False):
        (root / f"{name}.nii.gz").write_bytes(file.read_bytes())
    (root / "c.nii.gz").write_bytes(b"")
    names = run("ctgpu.preprocess_batch(paths", root, {"paths": ["a.nii.gz", "c.nii.gz"]})
    first, skipped = names["first"], names["batch"]
    assert first.volume.shape == (2, *SPEC.stored_shape)
    assert (skipped.volume[0] == first.volume[0]).all()
    assert list(skipped.failures) == [1]
    assert skipped.indices == (0,)
