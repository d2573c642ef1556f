"""Sources that were mended, have grown or lost something since their build was planned."""

from __future__ import annotations

import logging
import shlex
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ctgpu
from built import read_samples, tar_bytes
from ctgpu.building.convert import convert_tars
from ctgpu.building.events import Event, SampleWritten
from ctgpu.checking.compare import compare_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import MismatchError, UsageError
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import ShardRecord
from ctgpu.testing.ctrate import chest_phantom, lay_out_ct_rate
from raw_tars import raw_sample, write_tar
from support.building import builds
from support.phantoms import COARSE_SPEC, SPACING_MM, chests, study_ids
from support.tables import LABELS, METADATA

STUDIES = study_ids(6)


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctgpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    volumes = chests(STUDIES, (60, 56, 40))
    lay_out_ct_rate(root, volumes)
    return root


@pytest.fixture
def source(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "source"))


def volume(source: Path, number: int) -> Path:
    (path,) = source.rglob(f"valid_{number}_a_1.nii.gz")
    return path


build = builds(spec=COARSE_SPEC, samples_per_shard=2)


def add_label_row(source: Path, study: str) -> None:
    with (source / LABELS).open("a") as table:
        table.write(f"{study}.nii.gz" + ",1" * 18 + "\n")


def all_positive(source: Path, study: str) -> None:
    lines = (source / LABELS).read_text().splitlines(keepends=True)
    (source / LABELS).write_text("".join(x for x in lines if not x.startswith(study)))
    add_label_row(source, study)


def as_of_before(plan: Plan) -> Plan:
    """As the plans of the versions were that recorded no tables."""
    from dataclasses import replace

    return replace(plan, source={k: v for k, v in plan.source.items() if k != "tables"})


def test_a_mended_volume_of_an_unfinished_sample_is_taken(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = volume(source, 5).read_bytes()
    volume(source, 5).write_bytes(b"nothing")
    build(tmp_path / "out", source, shards=range(1))
    volume(source, 5).write_bytes(good)
    assert build(tmp_path / "out").exit_code == 0
    assert "1 volume of another size than planned, taken as they are now" in caplog.text
    assert "valid_5_a_1.nii.gz" in caplog.text
    assert verify_folder(tmp_path / "out").findings == []
    caplog.clear()
    # It is known of which file the sample was made.
    build(tmp_path / "out", source)
    assert "stay as they are" not in caplog.text


def test_a_volume_that_changed_after_its_sample_was_finished_is_named_and_left(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "the patient's $HOME"
    build(folder, source, shards=range(1))
    first = tar_bytes(folder)
    shutil.copy(volume(source, 4), volume(source, 1))
    build(folder)
    assert "finished samples stay as they are" in caplog.text
    command = f"`ctgpu build --output-dir {shlex.quote(str(folder))} --force --shards 0`"
    assert f"valid_1_a_1; {command}" in caplog.text
    assert tar_bytes(folder)["shard-000000.tar"] == first["shard-000000.tar"]
    report = build(folder, force=True, shards=range(1))
    assert report.written == 2
    samples = read_samples(folder)
    assert samples["valid_1_a_1"].volume == samples["valid_4_a_1"].volume
    entry, other = ShardRecord.load(folder / "shard-000000.json").samples
    assert entry.source_bytes == volume(source, 1).stat().st_size
    assert other.source_bytes is None
    caplog.clear()
    build(folder, source)
    assert "stay as they are" not in caplog.text


def interrupt_after(count: int) -> Callable[[Event], None]:
    written: list[Event] = []

    def watch(event: Event) -> None:
        if isinstance(event, SampleWritten):
            written.append(event)
            if len(written) == count:
                raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize("force", [False, True])
def test_what_an_interrupted_run_made_of_what_was_mended_since_is_made_again(
    tmp_path: Path, source: Path, force: bool
) -> None:
    options: dict[str, Any] = {"num_workers": 1, "memory_limit_bytes": 1}
    if force:
        build(tmp_path / "out", source, samples_per_shard=6)
    with pytest.raises(KeyboardInterrupt):
        build(
            tmp_path / "out",
            source,
            force=force,
            watch=interrupt_after(4),
            **({} if force else {"samples_per_shard": 6}),
            **options,
        )
    shutil.copy(volume(source, 6), volume(source, 2))
    all_positive(source, "valid_3_a_1")
    report = build(tmp_path / "out", force=force, **options)
    assert (report.exit_code, report.written) == (0, 5)
    samples = read_samples(tmp_path / "out")
    assert samples["valid_2_a_1"].volume == samples["valid_6_a_1"].volume
    assert samples["valid_3_a_1"].labels.tolist() == [1.0] * 18
    assert verify_folder(tmp_path / "out").findings == []


def test_a_mended_table_is_named_and_taken_for_what_is_not_finished(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "out", source, shards=range(1))
    all_positive(source, "valid_1_a_1")
    all_positive(source, "valid_6_a_1")
    assert build(tmp_path / "out").exit_code == 0
    assert f"read as they are now: {LABELS}" in caplog.text
    assert (
        "1 finished sample whose labels or report are not what the tables say now: valid_1_a_1; "
        f"`ctgpu relabel {tmp_path / 'out'}`"
    ) in caplog.text
    assert read_samples(tmp_path / "out")["valid_6_a_1"].labels.tolist() == [1.0] * 18
    assert ctgpu.relabel(tmp_path / "out").relabelled == ["valid_1_a_1"]
    caplog.clear()
    assert build(tmp_path / "out", source).exit_code == 0
    assert "not what the tables say" not in caplog.text


def test_a_table_of_the_same_size_is_seen_to_have_changed(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "out", source, shards=range(1))
    text = (source / LABELS).read_text()
    (source / LABELS).write_text(text.replace(",0,0,1", ",0,1,0", 1))
    build(tmp_path / "out")
    assert f"read as they are now: {LABELS}" in caplog.text


def test_a_plan_of_before_names_the_samples_that_its_tables_say_otherwise(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "out", source, shards=range(1))
    plan = as_of_before(Plan.load(tmp_path / "out"))
    (tmp_path / "out/plan.json").write_bytes(plan.to_json())
    build(tmp_path / "out", shards=range(2))
    assert "tables" not in caplog.text
    with (source / METADATA).open("a") as table:
        table.write("\n")
    all_positive(source, "valid_2_a_1")
    assert build(tmp_path / "out").exit_code == 0
    assert "1 finished sample whose labels or report are not what the tables say" in caplog.text
    assert verify_folder(tmp_path / "out").findings == []


def test_a_volume_that_is_gone_and_not_finished_is_refused_by_name(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "out", source, shards=range(1))
    path = volume(source, 3)
    content = path.read_bytes()
    path.unlink()
    wanted = r"does not hold the volumes that were planned: of 6, 1 is gone"
    for options in ({}, {"retry_failed": True}, {"force": True}, {"shards": range(2, 3)}):
        with pytest.raises(
            MismatchError, match=rf"{wanted} \(.*valid_3_a_1.nii.gz\); bring them back"
        ):
            build(tmp_path / "out", **options)
    path.write_bytes(content)
    assert build(tmp_path / "out").exit_code == 0


def test_a_volume_that_is_gone_is_not_missed_once_its_sample_is_finished(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "out", source, shards=range(1))
    volume(source, 1).unlink()
    assert build(tmp_path / "out").exit_code == 0
    with pytest.raises(MismatchError, match="1 is gone"):
        build(tmp_path / "out", force=True)


def test_a_failed_sample_whose_volume_is_gone_fails_again(tmp_path: Path, source: Path) -> None:
    volume(source, 2).write_bytes(b"nothing")
    build(tmp_path / "out", source)
    volume(source, 2).unlink()
    report = build(tmp_path / "out", retry_failed=True)
    assert [(f["key"], f["attempts"]) for f in report.failures] == [("valid_2_a_1", 2)]


def test_new_scans_are_named_and_not_taken(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "out", source, shards=range(1))
    target = source / "dataset/valid_fixed/valid_7/valid_7_a/valid_7_a_1.nii.gz"
    target.parent.mkdir(parents=True)
    shutil.copy(volume(source, 1), target)
    for options in ({}, {"source": source}):
        caplog.clear()
        report = build(tmp_path / "out", **options)
        assert report.manifest["total_samples"] == 6
        assert "holds 1 file that this data set was planned without" in caplog.text
        assert "valid_7_a_1.nii.gz" in caplog.text
    build(tmp_path / "grown", source, spacing_fallback="header")
    assert len(read_samples(tmp_path / "grown")) == 7


@pytest.mark.parametrize(
    "options", [{"limit": 3}, {"recon": "first"}, {"order": "shuffled", "seed": 2}]
)
def test_what_the_selection_left_out_is_not_new(
    tmp_path: Path, source: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    second = volume(source, 1).with_name("valid_1_a_2.nii.gz")
    shutil.copy(volume(source, 2), second)
    metadata = (source / METADATA).read_text().splitlines(keepends=True)
    (row,) = [line for line in metadata if line.startswith("valid_1_a_1")]
    (source / METADATA).write_text("".join([*metadata, row.replace("a_1", "a_2")]))
    build(tmp_path / "out", source, shards=range(1), **options)
    build(tmp_path / "out", source)
    build(tmp_path / "out", source)
    assert "planned without" not in caplog.text


def test_another_copy_of_which_no_volume_is_the_planned_one_is_refused(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "out", source, shards=range(1))
    volumes = chests(STUDIES, (62, 56, 40))
    lay_out_ct_rate(tmp_path / "other", volumes)
    with pytest.raises(MismatchError, match="of 6, 6 have another size"):
        build(tmp_path / "out", tmp_path / "other")
    # One that was mended elsewhere and holds the rest is the same data set.
    shutil.copytree(source, tmp_path / "copy")
    shutil.copy(volume(source, 6), volume(tmp_path / "copy", 5))
    assert build(tmp_path / "out", tmp_path / "copy").exit_code == 0


def test_a_finished_data_set_does_without_its_source(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "out", source)
    shutil.rmtree(source)
    for options in ({}, {"source": source}):
        caplog.clear()
        assert build(tmp_path / "out", **options).exit_code == 0
        assert "was not looked at" in caplog.text
    with pytest.raises(UsageError, match="is not a folder"):
        build(tmp_path / "out", tmp_path / "elsewhere")


def test_new_tars_are_named_and_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    voxels = chest_phantom((60, 56, 40), SPACING_MM)
    for n in range(2):
        sample = raw_sample(STUDIES[n], voxels, SPACING_MM, 0)
        write_tar(tmp_path / f"raw/shard-{n:06d}.tar", {STUDIES[n]: sample})
        convert_tars(tmp_path / "raw", tmp_path / "out", spec=COARSE_SPEC, device="cpu")
    assert "holds 1 file that this data set was planned without" in caplog.text
    assert "shard-000001.tar" in caplog.text
    assert list(read_samples(tmp_path / "out")) == STUDIES[:1]


def test_a_comparison_says_which_samples_are_not_as_the_mended_source_has_them(
    tmp_path: Path, source: Path
) -> None:
    build(tmp_path / "out", source)
    shutil.copy(volume(source, 4), volume(source, 1))
    all_positive(source, "valid_2_a_1")
    volume(source, 3).unlink()
    found = {c.key: c.faults for c in compare_samples(tmp_path / "out", num_samples=None)}
    assert "of its voxels differ" in found["valid_1_a_1"][0]
    assert found["valid_2_a_1"] == ("the labels are not those of its original",)
    assert "no original" in found["valid_3_a_1"][0]
    assert found["valid_4_a_1"] == ()


def respelt(root: Path, copy: Path, form: str) -> Path:
    """A copy whose names are in another normal form, as one made by way of macOS."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            target = copy / unicodedata.normalize(form, str(path.relative_to(root)))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return copy


ACCENTED = tuple(unicodedata.normalize("NFC", name) for name in ("Ärzte/Müller", "Ärzte/Peña", "z"))


@pytest.fixture
def accented(tmp_path: Path, source: Path) -> Path:
    """Volumes below a folder, with names in NFC, and labels of them."""
    root = tmp_path / "accented"
    for number, name in enumerate(ACCENTED, 1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(volume(source, number), root / f"{name}.nii.gz")
    header = (source / LABELS).read_text().splitlines()[0]
    rows = [f"{Path(name).name}.nii.gz" + ",1" * 18 for name in ACCENTED]
    (root / "valid_predicted_labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_copy_with_names_in_another_normal_form_is_the_same_data_set(
    tmp_path: Path, accented: Path, caplog: pytest.LogCaptureFixture, forms: tuple[str, str]
) -> None:
    first, second = (respelt(accented, tmp_path / form, form) for form in forms)
    build(tmp_path / "whole", first, samples_per_shard=1)
    build(tmp_path / "out", first, samples_per_shard=1, shards=range(1))
    caplog.clear()
    assert build(tmp_path / "out", second).exit_code == 0
    assert not any(words in caplog.text for words in ("gone", "planned without", "changed since"))
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "whole")
    build(tmp_path / "out", second)
    assert "planned without" not in caplog.text
    # What is really new, mended or gone is still seen.
    shutil.copy(second / "z.nii.gz", second / unicodedata.normalize(forms[1], "Ärzte/Núñez.nii.gz"))
    shutil.copy(
        second / "z.nii.gz", second / unicodedata.normalize(forms[1], "Ärzte/Müller.nii.gz")
    )
    caplog.clear()
    build(tmp_path / "out", second)
    assert "holds 1 file that this data set was planned without" in caplog.text
    assert "finished samples stay as they are although their volumes have changed" in caplog.text
    (second / unicodedata.normalize(forms[1], "Ärzte/Peña.nii.gz")).unlink()
    with pytest.raises(MismatchError, match="1 is gone"):
        build(tmp_path / "out", second, force=True)


def test_tars_with_names_in_another_normal_form_are_the_same_data_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    voxels = chest_phantom((60, 56, 40), SPACING_MM)
    for n, form in enumerate(("NFC", "NFC")):
        name = unicodedata.normalize(form, f"März-{n}.tar")
        write_tar(
            tmp_path / "raw" / name, {STUDIES[n]: raw_sample(STUDIES[n], voxels, SPACING_MM, 0)}
        )
    options: dict[str, Any] = {"spec": COARSE_SPEC, "device": "cpu", "samples_per_shard": 1}
    convert_tars(tmp_path / "raw", tmp_path / "out", shards=range(1), **options)
    copy = respelt(tmp_path / "raw", tmp_path / "copy", "NFD")
    caplog.clear()
    assert convert_tars(copy, tmp_path / "out", device="cpu").exit_code == 0
    assert "planned without" not in caplog.text
    assert sorted(read_samples(tmp_path / "out")) == STUDIES[:2]


def test_a_folder_that_leads_nowhere_since_the_plan_is_named(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source / "dataset/valid_fixed/first").symlink_to("/gone/first")
    build(tmp_path / "out", source, shards=range(1))
    volume(source, 1).parent.parent.rename(tmp_path / "away")
    (source / "dataset/valid_fixed/valid_1").symlink_to("/gone/valid_1")
    caplog.clear()
    # Its sample is finished.
    assert build(tmp_path / "out").exit_code == 1
    (message,) = [text for text in caplog.messages if "cannot be looked at" in text]
    assert "dataset/valid_fixed/valid_1 (a link to /gone/valid_1); what they hold" in message
    with pytest.raises(MismatchError, match=r"1 is gone \(.*valid_1_a_1"):
        build(tmp_path / "out", force=True)
