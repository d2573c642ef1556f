"""Samples against their originals: what is right passes, and every planted fault is found."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ctgpu
from ctgpu.compare import Comparison, compare_samples, pick, ulp_distance
from ctgpu.engines import Job, open_engine
from ctgpu.errors import DeviceError, UsageError
from ctgpu.extras import install_command
from ctgpu.geometry import plan_volume
from ctgpu.shards.patterns import expand_pattern
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate
from ctgpu.testing.hub import LocalHub
from ctgpu.volume import Rescale

SPEC = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(72, 72, 40))
SPACING_MM = (3.5, 3.0, 5.0)
STUDIES = [f"valid_{n}_a_1" for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def phantoms() -> dict[str, Volume]:
    return {
        study: Volume(chest_phantom((90, 80, 60), SPACING_MM, seed), SPACING_MM)
        for seed, study in enumerate(STUDIES)
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, phantoms: dict[str, Volume]) -> Path:
    root = tmp_path_factory.mktemp("built")
    lay_out_ct_rate(root / "source", phantoms)
    ctgpu.build(root / "out", source=root / "source", spec=SPEC, samples_per_shard=2, device="cpu")
    return root


def rewrite(built: Path, folder: Path, change: Callable[[str, str, bytes], bytes]) -> Path:
    """A copy of the data set whose members went through `change`."""
    folder.mkdir()
    for name in ("plan.json", "manifest.json"):
        (folder / name).write_bytes((built / "out" / name).read_bytes())
    for path in sorted((built / "out").glob("*.tar")):
        with tarfile.open(path) as old, tarfile.open(folder / path.name, "w") as new:
            for info in old:
                key, _, extension = info.name.partition(".")
                file = old.extractfile(info)
                assert file is not None
                content = change(key, extension, file.read())
                info.size = len(content)
                info.pax_headers = {}
                new.addfile(info, io.BytesIO(content))
    return folder


def compare(built: Path, folder: Path) -> dict[str, Comparison]:
    found = compare_samples(folder, source=built / "source", num_samples=None)
    return {comparison.key: comparison for comparison in found}


def test_what_was_built_passes(built: Path) -> None:
    found = compare(built, built / "out")
    assert list(found) == STUDIES
    for comparison in found.values():
        assert comparison.passed, comparison.faults
        assert comparison.max_ulp <= 1
        assert comparison.mean_ulp <= comparison.differing_share <= 1e-3


def test_originals_whose_names_have_another_normal_form_are_found(
    tmp_path: Path, phantoms: dict[str, Volume]
) -> None:
    decomposed, composed = (unicodedata.normalize(form, "Müller é") for form in ("NFD", "NFC"))
    for folder, name in (("here", decomposed), ("copy", composed)):
        (tmp_path / folder).mkdir()
        np.savez(
            tmp_path / folder / f"{name}.npz",
            phantoms[STUDIES[0]].voxels,
            spacing=np.array(SPACING_MM),
        )
    ctgpu.build(tmp_path / "out", source=tmp_path / "here", spec=SPEC, device="cpu")
    for folder in ("here", "copy"):
        (found,) = compare_samples(tmp_path / "out", source=tmp_path / folder, num_samples=None)
        assert found.passed, found


def test_without_a_source_the_plans_own_is_used(built: Path) -> None:
    assert all(c.passed for c in compare_samples(built / "out", num_samples=2))


def test_a_data_set_from_the_hub_is_held_against_its_pinned_revision(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalHub(built / "source", "someone/CT-RATE", token="hf_secret") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        ctgpu.build(tmp_path / "out", repo_id="someone/CT-RATE", spec=SPEC, device="cpu")
        hub.commit()
        found = list(compare_samples(tmp_path / "out", num_samples=2))
    assert [comparison.passed for comparison in found] == [True, True]


def made_with(
    volume: Volume,
    spec: Spec,
    *,
    rescale: Rescale | None = None,
) -> npt.NDArray[np.float16]:
    """What an engine with a fault would have stored."""
    voxels = volume.voxels
    out = np.empty(spec.stored_shape, np.float16)
    plan = plan_volume(voxels.shape, volume.spacing_mm, spec)
    open_engine("cpu").run([Job(voxels, rescale or Rescale(), plan, out)])
    return out


def half_a_voxel_on(volume: Volume, spec: Spec) -> npt.NDArray[np.float16]:
    plan = plan_volume(volume.voxels.shape, volume.spacing_mm, spec)
    # align_corners-like sampling: every position along D half an output voxel further on.
    axis = plan.axes[2]
    position = np.clip(axis.i0 + axis.w.astype(np.float64) + 0.5, 0, axis.n_source - 1)
    i0 = position.astype(np.int32)
    moved = type(axis)(
        *(axis.n_source, axis.n_resized, axis.n_out, axis.crop_start, axis.pad_before),
        i0,
        np.minimum(i0 + 1, axis.n_source - 1).astype(np.int32),
        (position - i0).astype(np.float32),
    )
    out = np.empty(spec.stored_shape, np.float16)
    shifted = type(plan)(spec, plan.spacing_mm, (plan.axes[0], plan.axes[1], moved))
    open_engine("cpu").run([Job(volume.voxels, Rescale(), shifted, out)])
    return out


def with_window(spec: Spec, *hu_window: float) -> Spec:
    return Spec(**(spec.to_dict() | {"hu_window": hu_window}))


FAULTS: dict[str, tuple[Callable[[Volume, Spec], npt.NDArray[np.float16]], str]] = {
    "swapped axis": (lambda v, s: np.swapaxes(made_with(v, s), 0, 1), "axes are in the order"),
    "half a voxel": (half_a_voxel_on, "lies elsewhere"),
    "wrong window": (lambda v, s: made_with(v, with_window(s, -1150, 350)), "another HU window"),
    "double rescale": (
        lambda v, s: made_with(v, s, rescale=Rescale(1.0, -1024.0)),
        "a rescale too many",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(
    tmp_path: Path, built: Path, phantoms: dict[str, Volume], fault: str
) -> None:
    make, cause = FAULTS[fault]

    def change(key: str, extension: str, content: bytes) -> bytes:
        if extension != "bin" or key != STUDIES[1]:
            return content
        return make(phantoms[key], SPEC).tobytes()

    found = compare(built, rewrite(built, tmp_path / "bad", change))
    assert [key for key, comparison in found.items() if not comparison.passed] == [STUDIES[1]]
    (message,) = found[STUDIES[1]].faults
    assert cause in message
    assert found[STUDIES[1]].differing_share > 1e-3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_on_real_ct(tmp_path: Path, real_ct: Path, fault: str) -> None:
    path = real_ct / "ts_pulmonary_ct_cropped.nii.gz"
    volume, make = Volume.read(path), FAULTS[fault][0]
    spec = Spec(target_spacing_mm=(1.8, 1.8, 2.5), shape_hwd=(96, 96, 64))
    lay_out_ct_rate(tmp_path / "source", {STUDIES[0]: path})
    ctgpu.build(tmp_path / "out", source=tmp_path / "source", spec=spec, device="cpu")
    folder = rewrite(
        tmp_path,
        tmp_path / "bad",
        lambda k, e, c: make(volume, spec).tobytes() if e == "bin" else c,
    )
    assert compare(tmp_path, tmp_path / "out")[STUDIES[0]].passed
    assert not compare(tmp_path, folder)[STUDIES[0]].passed


@pytest.mark.parametrize(("member", "what"), [("cls", "the labels"), ("txt", "the report")])
def test_a_mixed_up_row_is_found(tmp_path: Path, built: Path, member: str, what: str) -> None:
    contents: dict[str, bytes] = {}
    rewrite(
        built,
        tmp_path / "same",
        lambda k, e, c: contents.setdefault(f"{k}.{e}", c),
    )
    other = {STUDIES[0]: STUDIES[1], STUDIES[1]: STUDIES[0], STUDIES[2]: STUDIES[2]}
    folder = rewrite(
        built, tmp_path / "bad", lambda k, e, c: contents[f"{other[k]}.{e}"] if e == member else c
    )
    found = compare(built, folder)
    for study in STUDIES[:2]:
        assert len(found[study].faults) == 1
        assert what in found[study].faults[0]
    assert found[STUDIES[2]].passed


def test_a_sample_without_an_original_fails_alone(
    tmp_path: Path, built: Path, phantoms: dict[str, Volume]
) -> None:
    lay_out_ct_rate(tmp_path / "part", {k: phantoms[k] for k in STUDIES[:2]})
    found = list(compare_samples(built / "out", source=tmp_path / "part", num_samples=None))
    assert [comparison.passed for comparison in found] == [True, True, False]
    assert "no original of valid_3_a_1" in found[2].faults[0]
    assert found[2].to_dict()["max_ulp"] is None


def test_a_few_samples_are_spread_over_the_tars(built: Path) -> None:
    tars = expand_pattern(built / "out")
    assert [sample.key for sample in pick(tars, None)] == STUDIES
    assert len({sample.tar for sample in pick(tars, 2)}) == 2
    assert len(list(pick(tars, 1))) == 1


def write_tars(folder: Path, counts: list[int]) -> list[Path]:
    """Tars that hold so many samples each, named after tar and place."""
    tars = []
    for index, count in enumerate(counts):
        tars.append(folder / f"shard-{index:06d}.tar")
        with tarfile.open(tars[-1], "w") as archive:
            for place in range(count):
                archive.addfile(tarfile.TarInfo(f"t{index}_{place}.bin"))
    return tars


@pytest.mark.parametrize(
    ("counts", "wanted", "taken"),
    [
        ([2, 1], 3, [2, 1]),
        ([2, 1], 2, [1, 1]),
        ([2, 1], 8, [2, 1]),
        ([1, 9, 1], 8, [1, 6, 1]),
        ([9, 1, 9, 2], 11, [4, 1, 4, 2]),
        ([0, 5, 0, 0], 3, [0, 3, 0, 0]),
        ([4, 4, 4], 8, [2, 3, 3]),
        ([0, 0, 7], 1, [0, 0, 1]),
        ([3], 2, [2]),
    ],
)
def test_as_many_samples_are_picked_as_there_are(
    tmp_path: Path, counts: list[int], wanted: int, taken: list[int]
) -> None:
    tars = write_tars(tmp_path, counts)
    picked = [(tars.index(sample.tar), sample.key) for sample in pick(tars, wanted)]
    assert len(set(picked)) == len(picked) == min(wanted, sum(counts))
    assert [sum(tar == index for tar, _ in picked) for index in range(len(tars))] == taken
    everything = [(tars.index(sample.tar), sample.key) for sample in pick(tars, None)]
    assert picked == [sample for sample in everything if sample in picked]


def test_no_more_tars_are_scanned_than_samples_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[Path] = []

    def counted(tar: Path) -> Any:
        scanned.append(tar)
        return samples_of_tar(tar)

    monkeypatch.setattr("ctgpu.compare.samples_of_tar", counted)
    tars = write_tars(tmp_path, [5] * 40)
    assert len(list(pick(tars, 4))) == len(scanned) == len(set(scanned)) == 4
    scanned.clear()
    with tarfile.open(tars[5], "w"):
        pass  # the first of the four is empty now
    assert len(list(pick(tars, 4))) == 4
    assert len(scanned) == len(set(scanned)) == 5


@pytest.mark.parametrize("wanted", [None, 1, 8])
def test_tars_without_a_sample_are_no_comparison(tmp_path: Path, wanted: int | None) -> None:
    with pytest.raises(UsageError, match=r"shard-000000\.tar and the 2 tars.*nothing to compare"):
        list(pick(write_tars(tmp_path, [0, 0, 0]), wanted))


def test_three_samples_in_shards_of_two_and_one_are_all_compared(
    tmp_path: Path, built: Path
) -> None:
    patterns = ("--preprocessed-pattern", built / "out" / "shard-{000000..000001}.tar")
    answer = run(*patterns, "--source", built / "source", "--num-samples", 3)
    assert answer.returncode == 0, answer.stderr
    assert "3 of 3 samples passed" in answer.stdout


def test_ulp_distance_counts_across_zero() -> None:
    tiny = np.float16(6e-8)
    made = np.array([0.0, -0.0, tiny, 1.0], np.float16)
    reference = np.array([-0.0, 0.0, -tiny, 1.001], np.float16)
    assert ulp_distance(made, reference).tolist() == [0, 0, 2, 1]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ctgpu.cli", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_says_what_it_compared_and_how_it_went(tmp_path: Path, built: Path) -> None:
    good = run(built / "out", "--source", built / "source", "--num-samples", "all", "--json")
    assert good.returncode == 0, good.stderr
    answer = json.loads(good.stdout)
    assert answer["passed"]
    assert [sample["key"] for sample in answer["samples"]] == STUDIES
    zeros = rewrite(built, tmp_path / "bad", lambda k, e, c: bytes(len(c)) if e == "bin" else c)
    pattern = zeros / "shard-{000000..000001}.tar"
    bad = run("--preprocessed-pattern", pattern, "--source", built / "source", "--num-samples", 2)
    assert bad.returncode == 1
    assert "0 of 2 samples passed" in bad.stdout
    assert run(built / "out", "--num-samples", "some").returncode == 2
    assert run(built / "out", "--preprocessed-pattern", pattern).returncode == 2
    assert run().returncode == 2


def test_nothing_to_compare_with_is_said(tmp_path: Path, built: Path) -> None:
    (tar,) = (built / "out").glob("shard-000000.tar")
    (tmp_path / tar.name).symlink_to(tar)
    with pytest.raises(UsageError, match="no plan that names the originals"):
        list(compare_samples(tmp_path))


def test_eighteen_nan_are_the_labels_of_an_original_that_has_none(
    tmp_path: Path, built: Path, phantoms: dict[str, Volume]
) -> None:
    # As tars hold them that were made when every data set had CT-RATE's classes.
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in lay_out_ct_rate(tmp_path / "made", phantoms, tables=()).values():
        path.rename(bare / path.name)
    found = {}
    for name, value in (("nan", np.nan), ("zero", 0.0)):
        labels = np.full(18, value, "<f4").tobytes()
        folder = rewrite(
            built,
            tmp_path / name,
            lambda k, e, c, labels=labels: {"cls": labels, "txt": b""}.get(e, c),
        )
        (folder / "plan.json").unlink()
        compared = compare_samples(folder, source=bare, num_samples=None)
        found[name] = {fault for comparison in compared for fault in comparison.faults}
    assert found == {"nan": set(), "zero": {"the labels are not those of its original"}}


def test_without_torch_nothing_is_said_of_an_option_that_nobody_gave(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceError) as caught:
        next(compare_samples(built / "out", source=built / "source"))
    assert install_command("torch") in str(caught.value)
    assert "--device" not in str(caught.value)
