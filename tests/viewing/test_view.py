"""A data set on one page."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from view_cases import HOSTILE, SCANS, SPEC, Parsed, build, damage

from ctgpu.checking.verify import verify_folder
from ctgpu.errors import StorageError, UsageError
from ctgpu.loading import VolumeDataset
from ctgpu.shards import disk
from ctgpu.shards.plan import Plan
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample
from ctgpu.viewing import view, write_view
from ctgpu.viewing.page import MARK
from ctgpu.viewing.view import LIMIT_BYTES, VIEW_NAME
from ctgpu.volume.masks import MaskFormat
from support.compressed_folders import compress_folder
from support.masks import replace_mask, rewritten, with_masks
from support.pages import python_blocks

pytest.importorskip("PIL.Image")

GOLDEN = Path(__file__).parent.parent / "golden"


def slices_of(path: Path) -> list[Any]:
    """The pictures of a page, by sample and plane."""
    (data,) = re.findall(r'id="slices">(.*?)</script>', path.read_text("utf-8"))
    found: list[Any] = json.loads(data)
    return found


def test_a_page_of_a_whole_data_set(folder: Path) -> None:
    viewed = write_view(folder)
    content = viewed.path.read_bytes()
    assert viewed.path == folder / VIEW_NAME
    assert viewed.size_bytes == len(content) < LIMIT_BYTES
    assert (viewed.samples, viewed.planned, viewed.read) == (5, 6, 5)
    assert (viewed.shown, viewed.asked, viewed.slices, viewed.damaged) == (4, 4, 20, 0)
    assert content.startswith(MARK)
    parsed = Parsed(content.decode())
    assert parsed.tags.count("article") == 4
    assert len(slices_of(viewed.path)) == 4
    assert parsed.tags.count("script") == 2
    assert "4 of 5, evenly spaced. Of each plane up to 20 slices are here" in parsed.text
    assert "Black is -1000 HU, white 1000 HU." in parsed.text
    assert "the patient's right (R) at the left, front (A) or head (S) at the top" in parsed.text
    assert "window.ran" not in content.decode()
    for path in folder.iterdir():
        assert not path.name.endswith(".ctgpu-tmp")


def test_the_same_data_set_gives_the_same_page(folder: Path, made: Path, tmp_path: Path) -> None:
    first = write_view(folder, reports=True).path.read_bytes()
    assert write_view(folder, reports=True).path.read_bytes() == first
    assert write_view(made, tmp_path / "x.html", reports=True).path.read_bytes() == first


def test_reports_are_in_it_only_where_they_are_asked_for(made: Path, tmp_path: Path) -> None:
    texts = [findings for *_, findings, _ in SCANS.values() if findings]
    for reports in (False, True):
        path = write_view(made, tmp_path / "x.html", num_samples=9, reports=reports).path
        parsed = Parsed(path.read_text("utf-8"))
        assert [text in parsed.text for text in texts] == [reports] * len(texts)
        assert parsed.tags.count("script") == 2
    assert HOSTILE in texts


def test_no_picture_needs_no_pillow(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UsageError("no Pillow")

    monkeypatch.setattr(view, "require_pillow", missing)
    viewed = write_view(made, tmp_path / "x.html", num_samples=0)
    assert (viewed.shown, viewed.asked, viewed.slices) == (0, 0, 0)
    assert slices_of(viewed.path) == []
    assert "None of 5 is shown; --num-samples says how many are." in viewed.path.read_text("utf-8")
    with pytest.raises(UsageError, match="no Pillow"):
        write_view(made, tmp_path / "x.html")


def test_slices_are_thinned_and_then_samples_until_the_page_is_below_its_limit(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_view(made, tmp_path / "whole.html", num_samples=5)
    bare = write_view(made, tmp_path / "x.html", num_samples=0)
    pictures = whole.size_bytes - bare.size_bytes
    shown, slices = [5], [_count(whole.path)]
    least = bare.size_bytes + view.RESERVE_BYTES
    for share in (0.9, 0.6, 0.3):
        monkeypatch.setattr(view, "LIMIT_BYTES", round(least + share * pictures))
        viewed = write_view(made, tmp_path / "x.html", num_samples=5)
        assert viewed.size_bytes <= view.LIMIT_BYTES
        shown.append(viewed.shown)
        slices.append(_count(viewed.path))
        assert max(len(p["pictures"]) for s in slices_of(viewed.path) for p in s) == viewed.slices
        text = viewed.path.read_text("utf-8")
        assert ("no room for the 5 that were asked for" in text) == (viewed.shown < 5)
    assert shown[1] == 5 > shown[3]
    assert slices == sorted(slices, reverse=True)
    assert slices[0] > slices[1] > 3 * 8 * 4 > slices[3]


def _count(path: Path) -> int:
    return sum(len(plane["pictures"]) for sample in slices_of(path) for plane in sample)


@pytest.mark.slow
def test_a_page_stays_below_five_million_bytes_whatever_is_shown(
    tmp_path: Path, source: Path
) -> None:
    """Noise, of which a slice takes the most."""
    spec = replace(SPEC, shape_hwd=(140, 140, 70))
    folder = build(tmp_path / "noise", source, spec=spec)
    rng = np.random.default_rng(1)

    def noisy(sample: PackedSample) -> PackedSample:
        voxels = rng.uniform(-1, 1, spec.shape_hwd).astype("<f2")
        volume = voxels.view(np.uint8).ravel()
        return replace(sample, volume=volume, volume_xxh3_128=checksum(volume))

    made = rewritten(folder, tmp_path / "made", noisy)
    viewed = write_view(made, num_samples=5, reports=True)
    assert 0.9 * LIMIT_BYTES < viewed.size_bytes < LIMIT_BYTES
    assert viewed.shown == 5
    assert 8 <= viewed.slices < 64


def test_masks_are_outlined_and_compressed_volumes_shown_alike(made: Path, tmp_path: Path) -> None:
    masked = with_masks(made, tmp_path / "masked")
    pages = [
        slices_of(write_view(folder).path)
        for folder in (masked, compress_folder(masked, tmp_path / "packed", "pack"))
    ]
    assert pages[0] == pages[1]
    assert all(any(plane["outlines"]) for sample in pages[0] for plane in sample)


def test_a_mask_of_117_labels(made: Path, tmp_path: Path) -> None:
    labels = {f"organ {number}": number for number in range(1, 118)}
    plan = replace(Plan.load(made), masks=MaskFormat("uint8", labels))

    def masked(sample: PackedSample) -> PackedSample:
        mask = (np.arange(sample.volume.size // 2) % 118).astype(np.uint8)
        return replace_mask(sample, mask, dtype="uint8")

    path = write_view(rewritten(made, tmp_path / "out", masked, plan), num_samples=1).path
    text = Parsed(path.read_text("utf-8")).text
    assert all(f"{name} " in text for name in labels)


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("shards/plan.json")), ids=str)
def test_what_earlier_versions_wrote_is_shown(path: Path, tmp_path: Path) -> None:
    viewed = write_view(path.parent, tmp_path / "x.html")
    assert viewed.damaged == 0
    assert viewed.shown == viewed.asked > 0
    assert viewed.read == viewed.samples
    assert not any(one["pictures"] == [] for sample in slices_of(viewed.path) for one in sample)


def test_a_data_set_with_nothing_finished(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source, shards=range(1))
    for path in [*folder.glob("shard-*"), folder / "manifest.json"]:
        path.unlink()
    viewed = write_view(folder)
    assert (viewed.samples, viewed.planned, viewed.shown) == (0, 6, 0)
    text = Parsed(viewed.path.read_text("utf-8")).text
    assert "None is finished yet." in text
    assert "holds 0 of 3 planned shards, and 0 of 6 planned samples" in text


def test_the_documented_call_writes_a_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/viewing.md").read_text("utf-8")
    (code,) = python_blocks(page)
    (folder.parent / "shards").mkdir()
    folder.rename(folder.parent / "shards/valid")
    monkeypatch.chdir(folder.parent)
    exec(code, {})
    assert capsys.readouterr().out == f"valid.html {Path('valid.html').stat().st_size}\n"


def test_damage_is_said_and_the_rest_shown(folder: Path) -> None:
    damage(folder, "s1", "bin")
    damage(folder, "s3", "json")
    viewed = write_view(folder, num_samples=9)
    assert (viewed.read, viewed.shown, viewed.damaged) == (4, 5, 2)
    text = Parsed(viewed.path.read_text("utf-8")).text
    assert "s1.bin does not have its checksum" in text
    assert "s3.json does not have its checksum" in text
    assert [bool(sample) for sample in slices_of(viewed.path)] == [True, False, True, False, True]


def test_an_earlier_page_is_replaced_and_no_other_file(folder: Path, tmp_path: Path) -> None:
    path = write_view(folder, num_samples=0).path
    before = path.read_bytes()
    assert write_view(folder, num_samples=1).path.read_bytes() != before
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html>\n")
    with pytest.raises(UsageError, match=r"mine\.html is there already, and is no page of"):
        write_view(folder, mine)
    assert mine.read_text() == "<!doctype html>\n"
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(StorageError, match=r"link\.html is there already and cannot be read"):
        write_view(folder, link)


def test_where_no_page_can_be_written_is_said_before_anything_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_yet(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(view, "take_census", not_yet)
    with pytest.raises(UsageError, match=r"no folder .*none; make it"):
        write_view(folder, tmp_path / "none" / "x.html")
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        write_view(folder, tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="may not write to"):
        write_view(folder)
    with pytest.raises(UsageError, match="num_samples is -1"):
        write_view(folder, num_samples=-1)


def test_a_page_is_written_whole_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_view(folder, num_samples=0).path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_all", full)
        with pytest.raises(StorageError, match=r"view\.html cannot be written: no space is left"):
            write_view(folder)
    assert (folder / VIEW_NAME).read_bytes() == before
    assert sorted(path.suffix for path in folder.iterdir() if "tmp" in path.name) == []


def test_a_page_is_no_part_of_the_data_set(folder: Path, tmp_path: Path) -> None:
    write_view(folder)
    assert verify_folder(folder).findings == []
    assert len(VolumeDataset(folder)) == 5
    shutil.copytree(folder, tmp_path / "copy")
    assert write_view(tmp_path / "copy").samples == 5
