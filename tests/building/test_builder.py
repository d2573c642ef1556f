"""The main job from a source to shards, on small phantoms and on real CT."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ctgpu
from built import assert_within_contract, read_samples, tar_bytes
from ctgpu.building.events import Event, Planned, SampleFailed, SampleWritten, ShardCommitted
from ctgpu.checking.verify import verify_folder
from ctgpu.cli.display import show_summary
from ctgpu.cli.terminal import Console
from ctgpu.engines import Job, open_engine
from ctgpu.errors import MismatchError, StorageError, UsageError
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from ctgpu.testing.hub import LocalHub
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from support.building import builds
from support.phantoms import SPEC

build = builds(spec=SPEC, samples_per_shard=4)


def test_a_folder_becomes_shards_with_manifest_records_and_index(
    tmp_path: Path, source: Path, phantoms: dict[str, Volume]
) -> None:
    report = build(tmp_path / "out", source)
    assert report.exit_code == 0
    assert (report.written, report.stored_bytes) == (6, 6 * SPEC.size_bytes)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("plan.json", "manifest.json", "failures.jsonl"),
        *(f"shard-{n:06d}.{suffix}" for n in (0, 1) for suffix in ("tar", "json", "idx")),
    }
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == report.manifest
    assert manifest["total_samples"] == 6
    assert [shard["num_samples"] for shard in manifest["shards"]] == [4, 2]
    assert manifest["sample_shape"] == [90, 90, 50]
    assert manifest["source"]["revision"]
    samples = read_samples(tmp_path / "out")
    assert list(samples) == list(phantoms)
    first = samples["valid_1_a_1"]
    assert first.text == (
        "Trachea and both main bronchi are open, case 0.\nNo active infiltration."
    )
    assert first.labels.shape == (18,)
    assert first.metadata["source"]["spacing_source"] == "csv"
    assert first.metadata["report"]["Technique_EN"] == "Non-contrast chest CT."
    assert "num_samples: 6" in report.training_yaml()
    assert "shard-{000000..000001}.tar" in report.training_yaml()


@pytest.mark.slow
def test_tars_are_the_same_bytes_whatever_the_number_of_workers(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "one", source, num_workers=1)
    build(tmp_path / "many", source, num_workers=12, memory_limit_bytes=6 << 20)
    assert tar_bytes(tmp_path / "one") == tar_bytes(tmp_path / "many")
    for name in ("plan.json", "manifest.json", "shard-000001.idx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {"format": ".nii"},
        {"format": ".npz", "order": "C"},
        {"format": ".npz", "order": "F", "nested": False, "npz_member": "data"},
        {"format": ".npz", "compressed": False, "npz_member": "volume"},
    ],
)
def test_the_same_voxels_give_the_same_samples_from_any_format(
    tmp_path: Path, source: Path, phantoms: dict[str, Volume], layout: dict[str, Any]
) -> None:
    lay_out_ct_rate(tmp_path / "other", phantoms, **layout)
    build(tmp_path / "nifti", source)
    build(tmp_path / "out", tmp_path / "other")
    expected, found = read_samples(tmp_path / "nifti"), read_samples(tmp_path / "out")
    assert list(found) == list(expected)
    for key, sample in found.items():
        assert sample.volume == expected[key].volume
        assert sample.labels.tobytes() == expected[key].labels.tobytes()
        assert sample.text == expected[key].text


def test_the_hub_gives_the_same_samples_as_a_folder(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "folder", source)
    with LocalHub(source, "someone/CT-RATE", token="hf_secret", page_size=3) as hub:
        report = build(
            tmp_path / "hub", repo_id="someone/CT-RATE", endpoint=hub.url, token="hf_secret"
        )
        commit = hub.head
        # What was planned is pinned: a moved main is not resolved again.
        hub.commit()
        again = build(tmp_path / "hub", endpoint=hub.url, token="hf_secret", force=True)
    expected, found = read_samples(tmp_path / "folder"), read_samples(tmp_path / "hub")
    assert {key: (s.volume, s.text) for key, s in found.items()} == {
        key: (s.volume, s.text) for key, s in expected.items()
    }
    assert report.manifest["source"]["revision"] == commit
    assert again.manifest == report.manifest
    assert all(s.metadata["source"]["revision"] == commit for s in found.values())
    for path in (tmp_path / "hub").iterdir():
        assert b"hf_secret" not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["HWD", "DHW"])
def test_real_ct_is_within_the_contract_from_every_format(
    tmp_path: Path, real_ct: Path, layout: Any
) -> None:
    names = {
        "valid_1_a_1": "lidcidri0001_small",
        "valid_2_a_1": "lidcidri0002_small",
        "valid_3_a_1": "ts_aorta_ct_cropped",
        "valid_4_a_1": "ts_example_ct",
    }
    paths = {study: real_ct / f"{name}.nii.gz" for study, name in names.items()}
    spec = Spec(target_spacing_mm=(1.5, 1.5, 3.0), shape_hwd=(240, 240, 40), layout=layout)
    layouts: dict[str, dict[str, Any]] = {
        "nifti": {},
        "npz-c": {"format": ".npz", "order": "C"},
        "npz-f": {"format": ".npz", "order": "F"},
    }
    for name, options in layouts.items():
        lay_out_ct_rate(tmp_path / name, paths, **options)
        assert build(tmp_path / f"{name}-out", tmp_path / name, spec=spec).exit_code == 0
    built = {name: read_samples(tmp_path / f"{name}-out") for name in layouts}
    reference = open_engine("reference")
    for study, path in paths.items():
        volume = Volume.read(path)
        out = np.empty(spec.stored_shape, np.float16)
        plan = plan_volume(volume.voxels.shape, volume.spacing_mm, spec)
        reference.run([Job(volume.voxels, Rescale(), plan, out)])
        assert_within_contract(built["nifti"][study].array, out)
        assert built["npz-c"][study].volume == built["nifti"][study].volume
        assert built["npz-f"][study].volume == built["nifti"][study].volume
        assert np.allclose(
            built["nifti"][study].metadata["source"]["affine"], volume.affine, atol=1e-5
        )


def test_a_finished_build_is_not_touched_again(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "out", source)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    (tmp_path / "out" / "shard-000000.tar").chmod(0)  # nothing needs to read it
    report = ctgpu.build(tmp_path / "out", device="cpu")
    (tmp_path / "out" / "shard-000000.tar").chmod(0o644)
    assert report.written == 0
    assert report.pipeline is None
    assert report.manifest["total_samples"] == 6
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("shard-*")}


def test_force_builds_the_same_bytes_again(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "out", source)
    before = tar_bytes(tmp_path / "out")
    report = build(tmp_path / "out", force=True)
    assert report.written == 6
    assert tar_bytes(tmp_path / "out") == before


@pytest.mark.slow
def test_parts_of_the_plan_add_up_to_the_whole(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "whole", source, samples_per_shard=2)
    build(tmp_path / "parts", source, samples_per_shard=2, shards=range(1, 3))
    assert [p.name for p in sorted((tmp_path / "parts").glob("*.tar"))] == [
        "shard-000001.tar",
        "shard-000002.tar",
    ]
    build(tmp_path / "parts", shards=range(1))
    assert tar_bytes(tmp_path / "parts") == tar_bytes(tmp_path / "whole")
    with pytest.raises(UsageError, match=r"shards is range\(9, 10\).*shards 0 to 2"):
        build(tmp_path / "parts", shards=range(9, 10))


@pytest.mark.slow
def test_selection_limit_recon_and_order(
    tmp_path: Path, source: Path, phantoms: dict[str, Volume]
) -> None:
    studies = list(phantoms)
    build(tmp_path / "limit", source, limit=3)
    assert list(read_samples(tmp_path / "limit")) == studies[:3]
    build(tmp_path / "first", source, recon="first")
    assert list(read_samples(tmp_path / "first")) == studies[::2]
    build(tmp_path / "shuffled", source, order="shuffled", seed=3)
    shuffled = list(read_samples(tmp_path / "shuffled"))
    assert shuffled != studies
    assert sorted(shuffled) == sorted(studies)


@pytest.mark.slow
def test_volumes_without_a_chest_are_left_out_unless_kept(
    tmp_path: Path, phantoms: dict[str, Volume]
) -> None:
    lay_out_ct_rate(tmp_path / "source", phantoms, no_chest=["valid_2_a_1"])
    build(tmp_path / "out", tmp_path / "source")
    assert "valid_2_a_1" not in read_samples(tmp_path / "out")
    build(tmp_path / "kept", tmp_path / "source", keep_no_chest=True)
    assert "valid_2_a_1" in read_samples(tmp_path / "kept")


def test_a_failing_sample_is_in_the_ledger_and_only_it_is_retried(
    tmp_path: Path, source: Path, phantoms: dict[str, Volume]
) -> None:
    build(tmp_path / "whole", source)
    (broken,) = source.rglob("valid_2_a_1.nii.gz")
    good = broken.read_bytes()
    damaged = bytearray(good)
    damaged[len(damaged) // 2] ^= 0x55
    broken.write_bytes(damaged)
    events: list[Event] = []
    report = build(tmp_path / "out", source, watch=events.append)
    assert report.exit_code == 1
    (failure,) = report.failures
    assert (failure["key"], failure["attempts"]) == ("valid_2_a_1", 1)
    assert json.loads((tmp_path / "out" / "failures.jsonl").read_text()) == failure
    assert report.manifest["total_samples"] == 5
    kinds = Counter(type(event) for event in events)
    assert kinds[SampleWritten] == 5
    assert kinds[SampleFailed] == kinds[Planned] == 1
    assert kinds[ShardCommitted] == 2

    untouched = (tmp_path / "out" / "shard-000001.tar").stat().st_ino
    again = build(tmp_path / "out", retry_failed=True)
    assert again.failures[0]["attempts"] == 2
    broken.write_bytes(good)
    mended = build(tmp_path / "out", retry_failed=True)
    assert (mended.exit_code, mended.written) == (0, 1)
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "whole")
    assert (tmp_path / "out" / "shard-000001.tar").stat().st_ino == untouched


def test_a_link_without_its_file_is_a_failed_sample_that_is_found_again(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "whole", source)
    (path,) = source.rglob("valid_2_a_1.nii.gz")
    blob = tmp_path / "blob"
    path.rename(blob)
    path.symlink_to(blob)
    blob.rename(tmp_path / "elsewhere")
    events: list[Event] = []
    report = build(tmp_path / "out", source, watch=events.append)
    (planned,) = (event for event in events if isinstance(event, Planned))
    assert (planned.samples, planned.counts["without a byte"]) == (6, 1)
    assert report.exit_code == 1
    (failure,) = report.failures
    assert (failure["key"], failure["stage"]) == ("valid_2_a_1", "fetch")
    assert f"is a link to {blob}, which is not there" in failure["message"]
    assert "1 of 6 volumes cannot be looked at" in caplog.text
    assert build(tmp_path / "out").exit_code == 1
    assert build(tmp_path / "out", retry_failed=True).failures[0]["attempts"] == 2
    (tmp_path / "elsewhere").rename(blob)
    mended = build(tmp_path / "out", retry_failed=True)
    assert (mended.exit_code, mended.written) == (0, 1)
    volumes = {k: s.volume for k, s in read_samples(tmp_path / "out").items()}
    assert volumes == {k: s.volume for k, s in read_samples(tmp_path / "whole").items()}


def test_a_folder_that_leads_nowhere_is_no_success(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = source.rglob("valid_2")
    away = folder.rename(tmp_path / "away")
    folder.symlink_to("/gone/valid_2")
    report = build(tmp_path / "out", source)
    assert (report.exit_code, report.failures, report.written) == (1, [], 4)
    missing = {"dataset/valid_fixed/valid_2": "a link to /gone/valid_2"}
    assert report.missing_folders == missing
    assert json.loads(report.to_json())["missing_folders"] == missing
    assert "dataset/valid_fixed/valid_2 (a link to /gone/valid_2): none of their" in caplog.text
    shown = io.StringIO()
    show_summary(report, Console(file=shown, width=200))
    assert "1 folder of the source could not be looked at" in shown.getvalue()
    assert "dataset/valid_fixed/valid_2: a link to /gone/valid_2" in shown.getvalue()
    # It stays so, whatever is run again, and whatever becomes of the folder.
    assert build(tmp_path / "out").exit_code == 1
    assert verify_folder(tmp_path / "out").findings == []
    folder.unlink()
    away.rename(folder)
    caplog.clear()
    assert build(tmp_path / "out", source, retry_failed=True).exit_code == 1
    assert "holds 2 files that this data set was planned without" in caplog.text
    assert build(tmp_path / "other", source).exit_code == 0
    assert len(read_samples(tmp_path / "other")) == 6


def test_what_was_made_stays_when_its_file_is_gone_later(tmp_path: Path, source: Path) -> None:
    whole = build(tmp_path / "whole", source)
    (path,) = source.rglob("valid_2_a_1.nii.gz")
    assert build(tmp_path / "out", source, shards=range(1)).exit_code == 0
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "nowhere")
    assert build(tmp_path / "out").written == whole.written - 4
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "whole")


def test_a_missing_row_fails_its_sample_before_it_is_read(
    tmp_path: Path, phantoms: dict[str, Volume]
) -> None:
    lay_out_ct_rate(tmp_path / "source", phantoms)
    table = tmp_path / "source/dataset/metadata/validation_metadata.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith("valid_10_a_1")))
    report = build(tmp_path / "out", tmp_path / "source")
    assert [(f["key"], f["stage"]) for f in report.failures] == [("valid_10_a_1", "tables")]
    assert "--spacing-fallback header" in report.failures[0]["message"]
    fallback = build(tmp_path / "header", tmp_path / "source", spacing_fallback="header")
    assert fallback.exit_code == 0
    sources = {
        key: sample.metadata["source"]["spacing_source"]
        for key, sample in read_samples(tmp_path / "header").items()
    }
    assert sources.pop("valid_10_a_1") == "header"
    assert set(sources.values()) == {"csv"}


def test_a_folder_belongs_to_one_spec_source_and_selection(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "out", source)
    other = Spec(**(SPEC.to_dict() | {"layout": "DHW"}))
    with pytest.raises(MismatchError, match=r"spec\.layout: found 'HWD', wanted 'DHW'"):
        build(tmp_path / "out", spec=other)
    with pytest.raises(MismatchError, match="samples_per_shard: found 4, wanted 5"):
        build(tmp_path / "out", samples_per_shard=5)
    with pytest.raises(MismatchError, match="split: found 'valid', wanted 'train'"):
        build(tmp_path / "out", split="train")
    with pytest.raises(MismatchError, match="arithmetic: found 'ctgpu'"):
        build(tmp_path / "out", device="reference")
    with pytest.raises(MismatchError, match=r"source\.kind"):
        build(tmp_path / "out", repo_id="someone/CT-RATE")


def test_the_reference_engine_builds_a_folder_of_its_own(tmp_path: Path, source: Path) -> None:
    report = build(tmp_path / "out", source, device="reference", limit=2)
    assert report.manifest["arithmetic"] == "torch-reference"
    build(tmp_path / "cpu", source, limit=2)
    made, reference = read_samples(tmp_path / "cpu"), read_samples(tmp_path / "out")
    for key, sample in made.items():
        assert_within_contract(sample.array, reference[key].array)
    # `auto` keeps to what the folder was begun with.
    assert ctgpu.build(tmp_path / "out").written == 0


def test_a_source_that_changed_is_refused(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "out", source, shards=range(1))
    next(source.rglob("*.nii.gz")).unlink()
    with pytest.raises(MismatchError, match="does not hold the volumes that were planned"):
        build(tmp_path / "out")


def test_an_interrupted_build_goes_on_at_the_sample(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "whole", source)
    written = []

    def interrupt(event: Event) -> None:
        if isinstance(event, SampleWritten):
            written.append(event.key)
            if len(written) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", source, watch=interrupt)
    assert not list((tmp_path / "out").glob("*.tar"))
    report = build(tmp_path / "out")
    assert report.written == 3
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "whole")


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="of the split 'valid'"):
        build(tmp_path / "out", tmp_path / "empty")


def test_too_little_space_is_said_before_anything_is_read(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 10**5))
    with pytest.raises(StorageError, match=r"0\.0 GB free and the build needs up to"):
        build(tmp_path / "out", source)
    assert not list((tmp_path / "out").glob("shard-*"))


def test_where_the_free_space_is_not_known_the_build_goes_on_with_a_warning(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What some network file systems answer to statfs.
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=0))
    assert build(tmp_path / "out", source).exit_code == 0
    assert "does not say how much is free; the build needs up to" in caplog.text


@pytest.mark.parametrize("address", ["s3://bucket/shards", "gs://bucket", "hdfs:/data"])
def test_an_object_store_is_no_output_folder(
    tmp_path: Path, source: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"an address; .* build into a folder"):
        ctgpu.build(address, source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
