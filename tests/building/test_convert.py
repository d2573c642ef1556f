"""Raw and preprocessed WebDatasets into shards, through the same build."""

from __future__ import annotations

import gzip
import io
import json
import logging
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import webdataset

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.building.convert import convert_tars
from ctgpu.building.events import Event, SampleWritten
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import MismatchError, StorageError, UsageError
from ctgpu.shards.patterns import expand_pattern
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate
from raw_tars import SPEC, raw_sample, write_tar
from support.building import conversions
from support.masks import with_masks
from support.phantoms import SPACING_MM, study_ids

STUDIES = study_ids(5)


@pytest.fixture(scope="module")
def phantoms() -> dict[str, npt.NDArray[np.int16]]:
    return {study: chest_phantom((90, 80, 60), SPACING_MM, n) for n, study in enumerate(STUDIES)}


@pytest.fixture
def raw(tmp_path: Path, phantoms: dict[str, npt.NDArray[np.int16]]) -> Path:
    samples = {s: raw_sample(s, v, SPACING_MM, n) for n, (s, v) in enumerate(phantoms.items())}
    for shard in range(3):
        part = STUDIES[2 * shard : 2 * shard + 2]
        write_tar(tmp_path / f"raw/shard-{shard:06d}.tar", {s: samples[s] for s in part})
    return tmp_path / "raw"


convert = conversions(spec=SPEC, samples_per_shard=2)


def test_raw_tars_become_what_a_folder_of_the_same_volumes_becomes(
    tmp_path: Path, raw: Path, phantoms: dict[str, npt.NDArray[np.int16]]
) -> None:
    report = convert(raw / "shard-{000000..000002}.tar", tmp_path / "out")
    assert report.exit_code == 0
    assert report.manifest["source"]["kind"] == "tars"
    lay_out_ct_rate(tmp_path / "s", {k: Volume(v, SPACING_MM) for k, v in phantoms.items()})
    ctgpu.build(tmp_path / "b", source=tmp_path / "s", spec=SPEC, device="cpu")
    built, converted = read_samples(tmp_path / "b"), read_samples(tmp_path / "out")
    assert list(converted) == STUDIES
    for number, (key, sample) in enumerate(converted.items()):
        assert sample.volume == built[key].volume
        assert sample.text == f"Findings of {key}."
        assert np.array_equal(sample.labels, np.arange(18) % (number + 2) == 1)
        assert sample.metadata["source"]["spacing_source"] == "json"
        assert sample.metadata["source"]["spacing_mm"] == list(SPACING_MM)
        assert sample.metadata["source"]["intensity"]["source"] == "hu"
    found = list(compare_samples(tmp_path / "out", source=raw / "shard-*.tar", num_samples=None))
    assert len(found) == 5
    assert all(comparison.passed for comparison in found)


@pytest.mark.slow
def test_real_ct_from_raw_tars_is_within_the_contract(tmp_path: Path, real_ct: Path) -> None:
    names = ("lidcidri0001_small", "ts_aorta_ct_cropped", "ts_example_ct")
    samples = {}
    for number, name in enumerate(names):
        volume = Volume.read(real_ct / f"{name}.nii.gz")
        samples[name] = raw_sample(name, volume.voxels, volume.spacing_mm, number)
    write_tar(tmp_path / "raw/shard-000000.tar", samples)
    spec = Spec(target_spacing_mm=(1.5, 1.5, 3.0), shape_hwd=(240, 240, 40))
    assert (
        convert(tmp_path / "raw", tmp_path / "out", spec=spec, samples_per_shard=4).exit_code == 0
    )
    verify = [
        *(sys.executable, "-m", "ctgpu.cli", "verify", "--num-samples", "all"),
        *("--original-pattern", str(tmp_path / "raw/shard-{000000..000000}.tar")),
        *("--preprocessed-pattern", str(tmp_path / "out/shard-{000000..000000}.tar")),
    ]
    result = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 of 3 samples passed" in result.stdout


@pytest.mark.parametrize("kind", ["npz", "nii.gz"])
def test_packed_volumes_are_read_too(
    tmp_path: Path, phantoms: dict[str, npt.NDArray[np.int16]], kind: str
) -> None:
    import nibabel

    voxels = phantoms[STUDIES[0]]
    archive = io.BytesIO()
    np.savez_compressed(archive, voxels)
    make: Any = nibabel.Nifti1Image
    packed = {
        "npz": archive.getvalue(),
        "nii.gz": gzip.compress(make(voxels, np.diag([9.0, 9, 9, 1])).to_bytes()),
    }
    members = raw_sample(STUDIES[0], voxels, SPACING_MM, 0)
    write_tar(tmp_path / "bin/a.tar", {STUDIES[0]: members})
    write_tar(
        tmp_path / "packed/a.tar", {STUDIES[0]: {kind: packed[kind]} | {"json": members["json"]}}
    )
    convert(tmp_path / "bin", tmp_path / "one")
    convert(tmp_path / "packed", tmp_path / "two")
    one, two = (read_samples(tmp_path / name)[STUDIES[0]] for name in ("one", "two"))
    assert one.volume == two.volume
    assert np.isnan(two.labels).all()
    assert two.text == ""


def test_voxels_that_need_the_pair_get_it_when_asked(
    tmp_path: Path, phantoms: dict[str, npt.NDArray[np.int16]]
) -> None:
    unscaled = (phantoms[STUDIES[0]] + 1024).astype(np.int16)
    write_tar(tmp_path / "raw/a.tar", {STUDIES[0]: raw_sample(STUDIES[0], unscaled, SPACING_MM, 0)})
    (failure,) = convert(tmp_path / "raw", tmp_path / "refused").failures
    assert "--intensity rescale" in failure["message"]
    spec = Spec(**(SPEC.to_dict() | {"intensity": "rescale"}))
    assert convert(tmp_path / "raw", tmp_path / "out", spec=spec).exit_code == 0


def test_an_interrupted_conversion_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, raw: Path
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, SampleWritten) and event.key == STUDIES[2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(raw, tmp_path / "out", watch=stop, delete_after=True)
    assert [tar.name for tar in expand_pattern(raw)] == ["shard-000001.tar", "shard-000002.tar"]
    assert convert(raw, tmp_path / "out").manifest["total_samples"] == 5


def test_inputs_are_deleted_once_their_output_is_verified(tmp_path: Path, raw: Path) -> None:
    expected = convert(raw, tmp_path / "kept")
    assert len(expand_pattern(raw)) == 3
    convert(raw / "shard-{000000..000002}.tar", tmp_path / "out", delete_after=True)
    assert list(raw.iterdir()) == []
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "kept")
    again = convert(raw / "shard-{000000..000002}.tar", tmp_path / "out", delete_after=True)
    assert again.manifest["total_samples"] == expected.manifest["total_samples"] == 5


def test_the_input_of_a_failed_sample_is_kept(tmp_path: Path, raw: Path) -> None:
    content = bytearray((raw / "shard-000001.tar").read_bytes())
    place = content.index(b'"volume_dtype": "int16"')
    content[place : place + 23] = b'"volume_dtype": "int33"'
    (raw / "shard-000001.tar").write_bytes(content)
    report = convert(raw, tmp_path / "out", delete_after=True)
    assert report.exit_code == 1
    assert [failure["key"] for failure in report.failures] == [STUDIES[2]]
    assert [tar.name for tar in raw.iterdir()] == ["shard-000001.tar"]


def test_nothing_is_deleted_for_a_shard_that_cannot_be_read_back(tmp_path: Path, raw: Path) -> None:
    convert(raw, tmp_path / "out")
    with (tmp_path / "out/shard-000000.tar").open("r+b") as tar:
        tar.seek(5000)
        tar.write(b"\xff\x00\xff")
    with pytest.raises(StorageError, match="nothing was deleted"):
        convert(raw, tmp_path / "out", delete_after=True)
    assert len(list(raw.iterdir())) == 3


def test_a_tar_that_was_mended_since_is_taken_for_what_is_not_finished(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ctgpu")
    convert(raw, tmp_path / "out", shards=range(1))
    other = chest_phantom((50, 80, 60), SPACING_MM)
    write_tar(
        raw / "shard-000001.tar", {s: raw_sample(s, other, SPACING_MM, 0) for s in STUDIES[2:4]}
    )
    assert convert(raw, tmp_path / "out").exit_code == 0
    assert "2 volumes of another size than planned, taken as they are now" in caplog.text
    assert verify_folder(tmp_path / "out").findings == []
    (raw / "shard-000002.tar").unlink()
    with pytest.raises(MismatchError, match=r"1 is gone \(shard-000002\.tar/"):
        convert(raw, tmp_path / "out", force=True)


def test_a_repaired_tar_is_read_again_for_what_failed(tmp_path: Path, raw: Path) -> None:
    good = (raw / "shard-000001.tar").read_bytes()
    small = chest_phantom((50, 80, 60), SPACING_MM)
    half = {study: raw_sample(study, small, SPACING_MM, 0) for study in STUDIES[2:4]}
    half[STUDIES[2]]["json"] = b"{"
    write_tar(raw / "shard-000001.tar", half)
    assert len(convert(raw, tmp_path / "out").failures) == 1
    (raw / "shard-000001.tar").write_bytes(good)
    report = convert(raw, tmp_path / "out", retry_failed=True)
    assert report.exit_code == 0
    assert (report.written, report.manifest["total_samples"]) == (1, 5)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "{raw}/shard-{{000000..000009}}.tar",
            r"shard-000003.tar does not exist \(missing: 7 of 10",
        ),
        ("{raw}/none-*.tar", "names no tar"),
        ("{raw}/x.zip", "ends in .tar"),
    ],
)
def test_a_wrong_pattern_is_refused(tmp_path: Path, raw: Path, pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert(pattern.format(raw=raw), tmp_path / "out")
    assert not (tmp_path / "out/plan.json").exists()


def test_input_and_output_are_not_the_same_folder(raw: Path) -> None:
    with pytest.raises(UsageError, match="choose another --output-dir"):
        convert(raw, raw)
    with pytest.raises(UsageError, match="give one of them"):
        convert(raw, raw.parent / "out", force=True, delete_after=True)


def old_shards(folder: Path, volumes: Mapping[str, npt.NDArray[np.float16]]) -> Path:
    """As the old scripts left preprocessed shards: a manifest, and JSON that says little."""
    samples = {
        key: {
            "bin": np.ascontiguousarray(volume).tobytes(),
            "json": json.dumps({"study_id": key}).encode(),
            "cls": np.zeros(18, "<f4").tobytes(),
            "txt": b"Clear.",
        }
        for key, volume in volumes.items()
    }
    write_tar(folder / "shard-000000.tar", samples)
    card = {"split": "train", "preprocessed": True, "sample_shape": [72, 72, 36]}
    (folder / "manifest.json").write_text(json.dumps(card))
    return folder


def test_preprocessed_shards_are_adopted_and_scrambled_volumes_named(
    tmp_path: Path, raw: Path
) -> None:
    convert(raw, tmp_path / "good")
    arrays = {key: sample.array for key, sample in read_samples(tmp_path / "good").items()}
    # Defect 1: cropped to (72, 36, 72) and stored under a manifest that says (72, 72, 36).
    wide = np.pad(arrays[STUDIES[1]], ((0, 0), (0, 0), (18, 18)), constant_values=-1)
    old = old_shards(
        tmp_path / "old",
        {
            STUDIES[0]: arrays[STUDIES[0]],
            STUDIES[1]: wide[:, 18:54],
            STUDIES[2]: arrays[STUDIES[2]][:50],
        },
    )
    report = convert_tars(old, tmp_path / "out")
    adopted = read_samples(tmp_path / "out")
    assert list(adopted) == [STUDIES[0]]
    assert np.array_equal(adopted[STUDIES[0]].array, arrays[STUDIES[0]])
    assert adopted[STUDIES[0]].metadata["shape"] == [72, 72, 36]
    assert adopted[STUDIES[0]].metadata["source"]["spacing_source"] == "assumed"
    messages = {failure["key"]: failure["message"] for failure in report.failures}
    assert "36 of 72 in-plane rows are gone" in messages[STUDIES[1]]
    assert "cannot be recovered" in messages[STUDIES[1]]
    assert "wanted float16 of shape (72, 72, 36)" in messages[STUDIES[2]]
    assert report.manifest["split"] == "train"
    assert report.manifest["arithmetic"] == "adopted"
    with pytest.raises(MismatchError, match="arithmetic"):
        ctgpu.build(tmp_path / "out", device="cpu")


def test_volumes_that_a_writer_gzipped_once_more_are_read(
    tmp_path: Path, phantoms: dict[str, npt.NDArray[np.int16]]
) -> None:
    volumes = {study: Volume(v, SPACING_MM) for study, v in list(phantoms.items())[:2]}
    paths = lay_out_ct_rate(tmp_path / "source", volumes)
    (tmp_path / "raw").mkdir()
    with webdataset.TarWriter(str(tmp_path / "raw" / "x.tar")) as writer:
        for study, path in paths.items():
            writer.write({"__key__": study, "nii.gz": path.read_bytes()})
    with tarfile.open(tmp_path / "raw" / "x.tar") as archive:
        for info in archive:
            stored = archive.extractfile(info)
            assert stored is not None
            assert gzip.decompress(stored.read())[:2] == b"\x1f\x8b"
    assert convert(tmp_path / "raw", tmp_path / "out").exit_code == 0
    ctgpu.build(tmp_path / "b", source=tmp_path / "source", spec=SPEC, device="cpu")
    built, converted = read_samples(tmp_path / "b"), read_samples(tmp_path / "out")
    assert {k: s.volume for k, s in converted.items()} == {k: s.volume for k, s in built.items()}


def test_preprocessed_shards_are_rounded_to_a_precision_and_never_called_finer(
    tmp_path: Path, raw: Path
) -> None:
    coarse = replace(SPEC, precision="2^-10")
    convert(raw, tmp_path / "exact")
    convert(raw, tmp_path / "coarse", spec=coarse)
    convert(tmp_path / "exact", tmp_path / "rounded", spec=coarse)
    exact, made = read_samples(tmp_path / "exact"), read_samples(tmp_path / "rounded")
    assert list(made) == list(exact)
    for key, sample in made.items():
        numbers = exact[key].array.astype(np.float32)
        assert np.array_equal(sample.array, np.rint(numbers * 1024) / 1024)
    for finer in (SPEC, replace(SPEC, precision="2^-11")):
        with pytest.raises(UsageError, match=r"precision 2\^-10.*give --precision 2\^-10"):
            convert(tmp_path / "coarse", tmp_path / "finer", spec=finer)
    convert(tmp_path / "coarse", tmp_path / "again", spec=coarse)
    before, after = read_samples(tmp_path / "coarse"), read_samples(tmp_path / "again")
    assert {k: s.volume for k, s in after.items()} == {k: s.volume for k, s in before.items()}


def test_preprocessed_shards_with_masks_are_not_adopted_without_them(
    tmp_path: Path, raw: Path
) -> None:
    convert(raw, tmp_path / "good")
    masked = with_masks(tmp_path / "good", tmp_path / "masked")
    before = tar_bytes(masked)
    with pytest.raises(
        UsageError, match=r"shard-000000\.tar holds .*\.seg, a mask .*copy the folder as it is"
    ):
        convert(masked, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert tar_bytes(masked) == before
    # Beside raw volumes it is a member like any other that nothing reads; so its tar is kept.
    sample = raw_sample("a", chest_phantom((90, 80, 60), SPACING_MM, 1), SPACING_MM, 0)
    write_tar(tmp_path / "own/a.tar", {"a": sample | {"seg": b"other"}})
    report = convert(tmp_path / "own", tmp_path / "plain", delete_after=True)
    assert report.exit_code == 0, report.failures
    assert (tmp_path / "own/a.tar").exists()
