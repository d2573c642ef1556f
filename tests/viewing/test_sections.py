"""What a page says beside its pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from view_cases import BROKEN, CLASSES, Parsed, members

from ctgpu.shards.ledger import LedgerEntry
from ctgpu.spec import Spec
from ctgpu.viewing import sections
from ctgpu.viewing.census import Census, take_census
from ctgpu.viewing.inventory import Inventory
from ctgpu.viewing.previews import BINS, Preview
from support.compressed_folders import compress_folder


@pytest.fixture(scope="module")
def inventory(made: Path) -> Inventory:
    return Inventory.of(made)


@pytest.fixture(scope="module")
def census(inventory: Inventory) -> Census:
    return take_census(inventory)


def text(*html: Any) -> str:
    """All text, with a space where an element begins."""
    return " ".join(Parsed("".join(filter(None, html)).replace("<", " <")).text.split())


def with_records(inventory: Inventory, **changes: Any) -> Inventory:
    """The same, its first record changed."""
    first, *others = inventory.shards
    changed = replace(first, record=replace(first.record, **changes))
    return replace(inventory, shards=[changed, *others])


def test_the_beginning_says_how_much_there_is(inventory: Inventory, census: Census) -> None:
    said = text(*sections.overview(inventory, census))
    assert "samples 5 of 6 failed 1 shards 3" in said
    assert f"fingerprint {inventory.card.fingerprint}" in said
    assert "20 × 9 × 6 HWD float16" in said
    assert "notice" not in "".join(sections.overview(inventory, census))


def test_what_is_missing_or_damaged_comes_first(inventory: Inventory, census: Census) -> None:
    spoilt = replace(census, read=2, damaged={"a": "<one> is bad", "b": "worse"})
    fewer = replace(inventory, shards=inventory.shards[:2])
    said = text(*sections.overview(fewer, spoilt))
    assert "holds 2 of 3 planned shards, and 4 of 6 planned samples" in said
    assert "Damaged: 2 samples, left out" in said
    assert "<one> is bad worse" in said
    assert "is of 2 of 5, evenly spaced" in said


def test_scans_by_spacing_shape_orientation_and_crop(census: Census) -> None:
    resized = census.resized.copy()
    resized[1] = (20, 9, 6)  # which takes neither
    census = replace(census, resized=resized)
    said = text(sections.geometry(census, Spec(shape_hwd=(20, 9, 6))))
    assert "Spacing along axis 0 3.5 mm 3 60.0% 4 mm 1 20.0% 4.5 mm 1 20.0%" in said
    assert "Voxels along axis 0 15 2 40.0% 17 3 60.0%" in said
    assert "Orientation LPS 4 80.0% RAS 1 20.0%" in said
    for axis, size in zip("HWD", (20, 9, 6), strict=True):
        resized = census.resized[:, "HWD".index(axis)]
        counts = [int((resized > size).sum()), int((resized == size).sum())]
        counts.append(5 - sum(counts))
        wanted = " ".join(
            f"{name} {count} {count / 5:.1%}"
            for name, count in zip(("cropped", "as it is", "padded"), counts, strict=True)
        )
        assert f"To {size} voxels along {axis} {wanted}" in said
    padded = 20 - census.resized[:, 0][census.resized[:, 0] < 20]
    assert f"Padded by {np.median(padded):g} voxels, the median" in said
    assert "Tilt" not in said
    tilted = replace(census, tilt_degrees=np.array([0, 3.0, np.nan, 0, 0]))
    assert "Tilt of the 1 that are tilted 3 °" in text(sections.geometry(tilted, Spec()))
    assert "of the box that was cut out first" in text(sections.geometry(census, Spec(crop="body")))


def test_columns_by_their_cells(census: Census) -> None:
    said = text(sections.columns(census))
    assert "maker Alpha 3 60.0% Beta 2 40.0%" in said
    assert "<b>kvp</b> 120 5 100.0%" in said
    assert sections.columns(replace(census, columns={})) is None
    many = {f"{age}": 2 for age in range(20, 80)}
    whole: Any = {"age": many, "full": {}, "word": many | {"x": 1}}
    said = text(sections.columns(replace(census, read=120, columns=_counters(whole))))
    assert "20 to 79, median 49.5" in said
    assert "More than 1,000 different cells." in said
    assert "49 others" in said


def test_of_many_cells_those_of_one_sample_alone_are_only_counted(census: Census) -> None:
    names = {f"patient {n}": 1 for n in range(30)} | {"unknown": 5}
    said = text(sections.columns(replace(census, columns=_counters({"name": names}))))
    assert "name unknown 5 100.0% 30 others 30" in said
    assert "patient" not in said


def _counters(columns: Any) -> Any:
    from collections import Counter

    return {name: Counter(cells) for name, cells in columns.items()}


def test_labels(inventory: Inventory, census: Census) -> None:
    said = text(sections.labels(inventory, census))
    assert "Samples of 5 in which a label is positive." in said
    assert "nodule 3 60.0% 1 not known effusion 2 40.0% 2 not known" in said
    without = replace(inventory, card=replace(inventory.card, class_names=()))
    assert sections.labels(without, census) is None
    assert inventory.card.class_names == CLASSES


def test_reports_by_their_length(made: Path, inventory: Inventory) -> None:
    said = text(sections.reports(inventory))
    lengths = [len(one["txt"]) for one in members(made).values()]
    assert "With a report: 4 samples; without: 1." in said
    assert f"{min(n for n in lengths if n)} to {max(lengths)} bytes" in said


def test_failures_by_kind_with_their_way_out(inventory: Inventory) -> None:
    said = text(sections.failures(inventory))
    (failure,) = inventory.failures
    assert f"1 in decode: {failure.error_class}" in said
    assert BROKEN in said
    assert failure.message in said
    assert "--retry-failed" in said
    others = [
        LedgerEntry(f"k{n}", "p", "geometry", "GeometryError", "<b>too flat</b>; leave it out")
        for n in range(5)
    ]
    said = text(sections.failures(with_records(inventory, failures=others)))
    assert said.index("5 in geometry") < said.index("1 in decode")
    assert "k2 : <b>too flat</b>; leave it out … and 2 more" in said
    none = replace(inventory, shards=inventory.shards[:2])
    assert "No sample failed." in text(sections.failures(none))


def test_sizes_add_up(made: Path, inventory: Inventory, tmp_path: Path) -> None:
    said = text(sections.sizes(inventory))
    total = sum(path.stat().st_size for path in made.glob("*.tar"))
    assert "in 3 shards" in said
    assert "times" not in said
    shares = [float(share) for share in re.findall(r"([\d.]+)%", said)]
    assert sum(shares) == pytest.approx(100, abs=0.05)
    volumes = 5 * inventory.card.spec.size_bytes
    assert f"volumes 10.8 kB {volumes / total:.2%}" in said
    compressed = Inventory.of(compress_folder(made, tmp_path / "out", "rice"))
    ratio = volumes / compressed.member_bytes()["ctz"]
    assert f"volumes compressed (rice) {ratio:.2f} times" in text(sections.sizes(compressed))


def test_where_the_time_went_is_said_by_the_longest_run(inventory: Inventory) -> None:
    stages = [
        {"name": "fetch", "threads": 4, "busy_s": 10.0, "waiting_s": 30.0},
        {"name": "write", "threads": 1, "busy_s": 3000.0, "waiting_s": 1000.0},
    ]
    run = {"ctgpu": "9.9", "engine": {"name": "cuda", "device": "H"}, "stages": stages}
    said = text(sections.times(with_records(inventory, run=run)))
    assert "that made shard-000000.tar, from its start" in said
    assert "fetch 4 10.0 30.0 25% write 1 3,000.0 1,000.0 75%" in said
    assert "ctgpu 9.9: cuda, device H 1 33.3%" in said
    for strange in ({}, {"stages": 3, "engine": "x"}):
        said = text(sections.times(with_records(inventory, run=strange)))
        assert "ctgpu ?: engine not known 1 33.3%" in said


def test_contract_and_provenance(inventory: Inventory) -> None:
    said = text(sections.provenance(inventory))
    for fact in (
        f"fingerprint {inventory.card.fingerprint}",
        "target_spacing_mm 4, 3.5, 6",
        "split all",
        "description study",
        f"source.revision {inventory.provenance['source']['revision']}",
    ):
        assert fact in said
    compressed = replace(inventory, card=replace(inventory.card, compression="rice"))
    assert "compression rice" in text(sections.provenance(compressed))


def test_hu_of_those_that_are_shown(census: Census) -> None:
    counts = np.zeros(BINS, np.int64)
    counts[3] = 7
    shown = [Preview("a", hu_counts=counts), Preview("b"), Preview("c", "bad")]
    html = sections.intensities([*shown, replace(shown[0], key="d")], census, Spec())
    assert "Voxels of the 2 samples shown" in text(html)
    assert ": 14</title>" in html
    assert "How voxels became HU stored as HU 5 100.0%" in text(html)
    assert "not like HU" not in html
    census.words["finding"]["shifted"] += 1
    assert "Taken although not like HU shifted 1" in text(sections.intensities([], census, Spec()))
    del census.words["finding"]["shifted"]
