"""Labels, reports and metadata of finished shards, written again from mended tables."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ctgpu
from built import Sample, read_samples, tar_bytes
from ctgpu.building.convert import convert_tars
from ctgpu.building.relabelling import RelabelReport, relabel
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import StorageError, UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.shards.lease import LeaseHeld, LeaseSession
from ctgpu.shards.record import ShardRecord
from ctgpu.testing.ctrate import chest_phantom, lay_out_ct_rate
from faults.build_child import DeadlyOs
from raw_tars import raw_sample, write_tar
from support.masks import mask_of, with_masks
from support.phantoms import COARSE_SPEC, SPACING_MM, chests, study_ids
from support.tables import LABELS, METADATA, REPORTS, all_positive, mend

STUDIES = study_ids(5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, and a finished data set of three shards with one failed sample."""
    root = tmp_path_factory.mktemp("made")
    volumes = chests(STUDIES, (60, 56, 40))
    paths = lay_out_ct_rate(root / "source", volumes)
    paths["valid_2_a_1"].write_bytes(b"nothing")
    ctgpu.build(
        root / "out", source=root / "source", spec=COARSE_SPEC, samples_per_shard=2, device="cpu"
    )
    return root


@pytest.fixture
def source(tmp_path: Path, made: Path) -> Path:
    """A copy whose tables may be mended, without volumes."""
    for name in (LABELS, REPORTS, METADATA):
        (tmp_path / "source" / name).parent.mkdir(parents=True)
        shutil.copy(made / "source" / name, tmp_path / "source" / name)
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path: Path, made: Path) -> Path:
    """A copy of the data set."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def volumes_of(samples: dict[str, Sample]) -> dict[str, bytes]:
    return {key: sample.volume for key, sample in samples.items()}


def test_mended_rows_are_written_and_volumes_stay(out: Path, source: Path) -> None:
    before, tars = read_samples(out), tar_bytes(out)
    mend(source / LABELS, "valid_3_a_1", all_positive)
    mend(source / REPORTS, "valid_4_a_1", lambda line: line.replace("case 3", "as corrected"))
    report = relabel(out, source=source)
    assert (report.exit_code, report.relabelled, report.shards, report.left) == (
        *(0, ["valid_3_a_1", "valid_4_a_1"], 1, {}),
    )
    after = read_samples(out)
    assert volumes_of(after) == volumes_of(before)
    assert after["valid_3_a_1"].labels.tolist() == [1.0] * 18
    assert after["valid_3_a_1"].text == before["valid_3_a_1"].text
    assert "as corrected" in after["valid_4_a_1"].text
    assert "as corrected" in after["valid_4_a_1"].metadata["report"]["Findings_EN"]
    assert after["valid_4_a_1"].labels.tobytes() == before["valid_4_a_1"].labels.tobytes()
    # Nothing else was touched, and the ledger still knows what failed.
    assert {n: b for n, b in tar_bytes(out).items() if n != "shard-000001.tar"} == {
        n: b for n, b in tars.items() if n != "shard-000001.tar"
    }
    assert json.loads((out / "failures.jsonl").read_text())["key"] == "valid_2_a_1"
    assert verify_folder(out).findings == []
    loaded = VolumeDataset(out, verify="always")
    assert loaded["valid_3_a_1"]["labels"].tolist() == [1.0] * 18
    assert loaded["valid_4_a_1"]["report"] == after["valid_4_a_1"].text
    run = ShardRecord.load(out / "shard-000001.json").run
    assert run["engine"]["name"] == "cpu"
    assert run["relabelled_by"] == ctgpu.__version__


def test_masks_stay_with_their_volumes(tmp_path: Path, made: Path, source: Path) -> None:
    masked = with_masks(made / "out", tmp_path / "masked", "uint16")
    before = {s: VolumeDataset(masked)[s] for s in VolumeDataset(masked).study_ids}
    mend(source / LABELS, "valid_3_a_1", all_positive)
    assert relabel(masked, source=source).relabelled == ["valid_3_a_1"]
    loaded = VolumeDataset(masked, verify="always")
    assert loaded["valid_3_a_1"]["labels"].tolist() == [1.0] * 18
    for study_id, sample in before.items():
        assert np.array_equal(loaded[study_id]["mask"], sample["mask"])
        assert np.array_equal(sample["mask"], mask_of(sample["volume"], "uint16"))
    assert loaded.metadata("valid_3_a_1")["mask"]["dtype"] == "uint16"
    assert verify_folder(masked).findings == []


def test_a_relabelled_data_set_is_the_one_that_the_mended_tables_build(
    tmp_path: Path, made: Path, out: Path, source: Path
) -> None:
    shutil.copytree(made / "source", tmp_path / "again")
    mend(source / LABELS, "valid_1_a_1", all_positive)
    mend(source / REPORTS, "valid_5_a_1", lambda line: line.replace("case 4", "é\u2028, case 4"))
    for name in (LABELS, REPORTS):
        shutil.copy(source / name, tmp_path / "again" / name)
    relabel(out, source=source)
    ctgpu.build(out, source=tmp_path / "again", force=True, device="cpu")
    rebuilt = tar_bytes(out)
    shutil.rmtree(out)
    shutil.copytree(made / "out", out)
    relabel(out, source=source)
    assert tar_bytes(out) == rebuilt


def test_tables_that_say_the_same_rewrite_nothing(out: Path, source: Path) -> None:
    before = {path.name: path.stat().st_ino for path in out.glob("shard-*")}
    report = relabel(out, source=source)
    assert (report.relabelled, report.shards, report.exit_code) == ([], 0, 0)
    assert {path.name: path.stat().st_ino for path in out.glob("shard-*")} == before


def test_rows_that_come_and_go_are_counted(
    out: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mend(source / LABELS, "valid_1_a_1", lambda line: "")
    mend(source / REPORTS, "valid_5_a_1", lambda line: "")
    report = relabel(out, source=source)
    assert report.manifest["unlabelled_samples"] == 1
    samples = read_samples(out)
    assert np.isnan(samples["valid_1_a_1"].labels).all()
    assert samples["valid_5_a_1"].text == ""
    assert samples["valid_5_a_1"].metadata["report"] == {}
    assert "1 sample of shard 000000 had labels and no row of them now" in caplog.text
    assert verify_folder(out).findings == []
    with (source / LABELS).open("a") as table:
        table.write(all_positive("valid_1_a_1.nii.gz"))
    assert relabel(out, source=source).manifest["unlabelled_samples"] == 0
    assert verify_folder(out).findings == []


@pytest.mark.parametrize("kept", [LABELS, REPORTS])
def test_of_a_table_that_is_not_there_what_is_stored_stays(
    out: Path, source: Path, kept: str
) -> None:
    before = read_samples(out)
    mend(source / LABELS, "valid_1_a_1", all_positive)
    mend(source / REPORTS, "valid_1_a_1", lambda line: line.replace("case 0", "as corrected"))
    for name in {LABELS, REPORTS, METADATA} - {kept}:
        (source / name).unlink()
    assert relabel(out, source=source).relabelled == ["valid_1_a_1"]
    after = read_samples(out)["valid_1_a_1"]
    if kept == LABELS:
        assert after.labels.tolist() == [1.0] * 18
        assert after.metadata == before["valid_1_a_1"].metadata
    else:
        assert after.labels.tobytes() == before["valid_1_a_1"].labels.tobytes()
        assert "as corrected" in after.text


def test_a_sample_whose_rows_contradict_each_other_is_left_and_named(
    out: Path, source: Path
) -> None:
    before = read_samples(out)
    with (source / LABELS).open("a") as table:
        table.write(all_positive("valid_3_a_1.nii.gz"))
    mend(source / LABELS, "valid_4_a_1", all_positive)
    report = relabel(out, source=source)
    assert report.exit_code == 1
    assert list(report.left) == ["valid_3_a_1"]
    assert "contradict each other" in report.left["valid_3_a_1"]
    after = read_samples(out)
    assert after["valid_3_a_1"].labels.tobytes() == before["valid_3_a_1"].labels.tobytes()
    assert after["valid_4_a_1"].labels.tolist() == [1.0] * 18


def test_another_spacing_is_said_and_not_written_over_that_of_the_volume(
    out: Path, source: Path
) -> None:
    before = read_samples(out)
    mend(source / METADATA, "valid_3_a_1", lambda line: line.replace("3.5", "0.7"))
    mend(source / LABELS, "valid_3_a_1", all_positive)
    report = relabel(out, source=source)
    assert report.exit_code == 1
    assert "the spacing [0.7, 3.0, 5.0] mm, and its volume has [3.5" in report.left["valid_3_a_1"]
    assert "--force --shards 1" in report.left["valid_3_a_1"]
    odd = out.rename(out.parent / "the patient's $HOME")
    (command,) = re.findall(r"`(.*)`", relabel(odd, source=source).left["valid_3_a_1"])
    wanted = ["ctgpu", "build", "--output-dir", str(odd), "--force", "--shards", "1"]
    assert shlex.split(command) == wanted
    after = read_samples(odd)
    assert after["valid_3_a_1"].metadata == before["valid_3_a_1"].metadata
    assert after["valid_3_a_1"].labels.tolist() == [1.0] * 18


def test_tables_of_another_data_set_are_refused(tmp_path: Path, out: Path, source: Path) -> None:
    tars = tar_bytes(out)
    for name in (LABELS, REPORTS, METADATA):
        text = (source / name).read_text()
        (source / name).write_text(text.replace("valid_", "scan_"))
    with pytest.raises(UsageError, match=r"has a row for none of the 5 samples planned"):
        relabel(out, source=source)
    for name in (LABELS, REPORTS, METADATA):
        (source / name).unlink()
    with pytest.raises(UsageError, match="no table of labels, reports or metadata"):
        relabel(out, source=source)
    with pytest.raises(UsageError, match="is not a folder"):
        relabel(out, source=tmp_path / "none")
    with pytest.raises(UsageError, match=r"holds no plan\.json"):
        relabel(tmp_path, source=source)
    assert tar_bytes(out) == tars


def test_an_unfinished_build_is_relabelled_as_far_as_it_is(
    tmp_path: Path, made: Path, source: Path
) -> None:
    part = tmp_path / "part"
    ctgpu.build(
        part,
        source=made / "source",
        spec=COARSE_SPEC,
        samples_per_shard=2,
        shards=range(1, 2),
        device="cpu",
    )
    mend(source / LABELS, "valid_4_a_1", all_positive)
    assert relabel(part, source=source).relabelled == ["valid_4_a_1"]
    assert [path.name for path in part.glob("*.tar")] == ["shard-000001.tar"]
    assert ctgpu.build(part, device="cpu").exit_code == 1
    assert verify_folder(part).findings == []


def test_a_shard_that_another_process_writes_is_not_touched(out: Path, source: Path) -> None:
    mend(source / LABELS, "valid_1_a_1", all_positive)
    held = pytest.raises(LeaseHeld, match=f"process {os.getpid()} on")
    with LeaseSession(out) as other, other.acquire(0), held:
        relabel(out, source=source)
    assert relabel(out, source=source).shards == 1


def test_a_damaged_volume_is_never_written_again_as_a_good_one(out: Path, source: Path) -> None:
    entry = ShardRecord.load(out / "shard-000001.json").samples[1]
    with (out / "shard-000001.tar").open("r+b") as tar:
        tar.seek(entry.members["bin"].offset + 1000)
        tar.write(b"damage")
    tars = tar_bytes(out)
    mend(source / LABELS, "valid_3_a_1", all_positive)
    with pytest.raises(StorageError, match="does not have its checksum"):
        relabel(out, source=source)
    assert tar_bytes(out) == tars


def test_labels_are_not_read_where_the_plan_has_no_classes(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plain").mkdir()
    for n, path in enumerate(sorted((made / "source").rglob("valid_[13]_a_1.nii.gz"))):
        shutil.copy(path, tmp_path / "plain" / f"scan {n}.nii.gz")
    ctgpu.build(tmp_path / "out", source=tmp_path / "plain", spec=COARSE_SPEC, device="cpu")
    rows = ctgpu.testing.ctrate.LABEL_NAMES
    (tmp_path / "plain" / "valid_predicted_labels.csv").write_text(
        "VolumeName," + ",".join(rows) + "\n" + all_positive("scan 0.nii.gz")
    )
    (tmp_path / "plain" / "valid_reports.csv").write_text(
        "VolumeName,Findings_EN,Impressions_EN\nscan 0.nii.gz,Clear.,None.\n"
    )
    assert relabel(tmp_path / "out").relabelled == ["scan_0"]
    assert "no labels are read" in caplog.text
    sample = read_samples(tmp_path / "out")["scan_0"]
    assert (sample.labels.size, sample.text) == (0, "Clear.\nNone.")
    assert verify_folder(tmp_path / "out").findings == []


def test_converted_samples_take_what_their_tars_say_now(tmp_path: Path) -> None:
    voxels = chest_phantom((60, 56, 40), SPACING_MM)
    samples = {study: raw_sample(study, voxels, SPACING_MM, 0) for study in STUDIES[:2]}
    write_tar(tmp_path / "raw/shard-000000.tar", samples)
    convert_tars(tmp_path / "raw", tmp_path / "out", spec=COARSE_SPEC, device="cpu")
    before = read_samples(tmp_path / "out")
    samples[STUDIES[0]]["txt"] = b"as corrected"
    write_tar(tmp_path / "raw/shard-000000.tar", samples)
    report = relabel(tmp_path / "out")
    assert report.relabelled == [STUDIES[0]]
    after = read_samples(tmp_path / "out")
    assert after[STUDIES[0]].text == "as corrected"
    assert volumes_of(after) == volumes_of(before)
    # What was read for the conversion is what --delete-after holds the tars against.
    convert_tars(tmp_path / "raw", tmp_path / "out", device="cpu", delete_after=True)
    assert not list((tmp_path / "raw").glob("*.tar"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the counted calls are those of Linux")
def test_killed_anywhere_it_leaves_the_old_or_the_new_and_is_gone_on_with(
    tmp_path: Path, made: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A lease that was not written whole says nothing about its process: it is waited for.
    for name, seconds in {"beat_every_s": 0.04, "stale_after_s": 0.2}.items():
        monkeypatch.setitem(LeaseSession.__init__.__kwdefaults__, name, seconds)
    old = read_samples(made / "out")
    mend(source / LABELS, "valid_3_a_1", all_positive)
    mend(source / LABELS, "valid_4_a_1", all_positive)
    shutil.copytree(made / "out", tmp_path / "whole")
    relabel(tmp_path / "whole", source=source)
    new, tars = read_samples(tmp_path / "whole"), tar_bytes(tmp_path / "whole")
    log = os.open(os.devnull, os.O_WRONLY)
    calls = 0
    for at in range(1, 1000):
        out = Path(shutil.copytree(made / "out", tmp_path / f"killed-{at}"))
        child = os.fork()
        if child == 0:
            try:
                DeadlyOs(at, log).install()
                relabel(out, source=source)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
        calls += 1
        for key, sample in read_samples(out).items():
            known = {
                (s.volume, s.labels.tobytes(), s.text, json.dumps(s.metadata))
                for s in (old[key], new[key])
            }
            found = (
                *(sample.volume, sample.labels.tobytes(), sample.text),
                json.dumps(sample.metadata),
            )
            assert found in known
        # Either command goes on from there; the volumes are not needed for it.
        if at % 2:
            ctgpu.build(out, source=made / "source", device="cpu")
        relabel(out, source=source)
        assert tar_bytes(out) == tars
        assert [f for f in verify_folder(out).findings if f.damaged] == []
        shutil.rmtree(out)
    assert calls > 20


def test_a_sample_that_failed_is_still_retried_afterwards(
    tmp_path: Path, made: Path, out: Path, source: Path
) -> None:
    shutil.copytree(made / "source", tmp_path / "mended")
    good = next((tmp_path / "mended").rglob("valid_1_a_1.nii.gz"))
    shutil.copy(good, next((tmp_path / "mended").rglob("valid_2_a_1.nii.gz")))
    mend(source / LABELS, "valid_1_a_1", all_positive)
    relabel(out, source=source)
    options: dict[str, Any] = {"source": tmp_path / "mended", "device": "cpu"}
    report = ctgpu.build(out, retry_failed=True, **options)
    assert (report.exit_code, report.written) == (0, 1)
    assert read_samples(out)["valid_1_a_1"].labels.tolist() == [1.0] * 18


def test_no_room_for_a_shard_is_said_before_it_is_written(
    out: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend(source / LABELS, "valid_3_a_1", all_positive)
    before = sorted(path.name for path in out.iterdir())
    said = SimpleNamespace(total=10**9, used=10**9, free=10_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: said)
    with pytest.raises(StorageError, match=r"0\.0 GB free and shard 1 takes 0\.0 GB beside"):
        relabel(out, source=source)
    assert sorted(path.name for path in out.iterdir()) == before


def test_where_the_free_space_is_not_known_it_goes_on_with_one_warning(
    out: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for study in ("valid_1_a_1", "valid_3_a_1"):
        mend(source / LABELS, study, all_positive)
    # What some network file systems answer to statfs.
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=0))
    assert relabel(out, source=source).shards == 2
    assert caplog.text.count("does not say how much is free; shard 0 takes 0.0 GB beside") == 1
    assert caplog.text.count("how much is free") == 1


def test_what_a_stopped_command_left_is_named_where_nothing_is_to_be_rewritten(
    out: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (out / "shard-000001.tar.partial").write_bytes(b"half")
    assert relabel(out, source=source).shards == 0
    assert "shard-000001.tar.partial was left by a command that was stopped" in caplog.text
    mend(source / LABELS, "valid_3_a_1", all_positive)
    caplog.clear()
    assert relabel(out, source=source).shards == 1
    assert not list(out.glob("*.partial"))
    assert "was left" not in caplog.text


def test_its_report_has_a_short_repr(out: Path, source: Path) -> None:
    mend(source / LABELS, "valid_1_a_1", all_positive)
    assert repr(relabel(out, source=source)) == (
        f"RelabelReport({str(out)!r}: 1 of 4 samples relabelled, 1 shard rewritten, "
        "0 samples left as they are)"
    )
    keys = [f"valid_{number}_a_1" for number in range(5000)]
    full = RelabelReport(out, {"total_samples": 5000}, keys, 40, dict.fromkeys(keys, "no row"))
    assert len(repr(full)) < 150 + len(str(out))
