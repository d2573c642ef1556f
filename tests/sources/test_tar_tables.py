"""What the samples of a WebDataset say about themselves, as rows of tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tar_cases import VOXELS, facts, tar

from ctgpu.buffers import BufferPool
from ctgpu.errors import TableError
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.sources.tars import TarSource
from ctgpu.testing.ctrate import LABEL_NAMES


def test_a_sample_brings_its_own_tables(tmp_path: Path) -> None:
    labels = np.linspace(0, 1, 18, dtype="<f4")
    path = tar(
        tmp_path / "s/a.tar",
        {
            "x.y.bin": b"",  # the key ends at the first dot
            "one.bin": VOXELS.tobytes(),
            "one.json": facts(RescaleSlope="1", RescaleIntercept=-1024),
            "one.cls": np.zeros(18, "<f4").tobytes(),
            "one.labels": labels.tobytes(),
            "one.txt": "Befund: klar ü.".encode(),
        },
    )
    assert [sample.key for sample in samples_of_tar(path)] == ["x", "one"]
    one = tar(tmp_path / "s/b.tar", {"one" + n: c for n, c in _members(path, "one").items()})
    path.unlink()
    source = TarSource(one)
    (ref,) = source.list_volumes("valid")
    assert (ref.path, ref.key, ref.size_bytes) == ("b.tar/one.bin", "one", 48)
    assert source.identity()["kind"] == "tars"
    row = source.tables("valid").row("one")
    assert np.array_equal(row.labels, labels)
    assert row.report == {"Findings_EN": "Befund: klar ü."}
    assert row.spacing_mm == (0.7, 0.8, 1.5)
    assert row.rescale_pair == (1.0, -1024.0)
    pool = BufferPool()
    raw = source.fetch(ref, pool.acquire).decode(pool)
    assert np.array_equal(raw.voxels, VOXELS.reshape(2, 3, 4))
    raw.release()
    assert pool.lent_bytes == 0


def _members(path: Path, key: str) -> dict[str, bytes]:
    (sample,) = (s for s in samples_of_tar(path) if s.key == key)
    return {f".{extension}": sample.read(extension) for extension in sample.members}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"json": b"[1]"}, "not an object"),
        ({"json": b"{"}, "not readable"),
        ({"json": facts(XYSpacing="wide")}, "XYSpacing"),
        ({"json": facts(ZSpacing=None)}, "states no XYSpacing and ZSpacing"),
        ({"json": facts(), "cls": bytes(71)}, "71 bytes; wanted 18"),
        ({"json": facts(), "cls": bytes(76)}, "76 bytes; wanted 18"),
        ({"json": facts(), "cls": b""}, "0 bytes; wanted 18"),
    ],
)
def test_unusable_members_fail_the_sample_before_it_is_read(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    good = {"a.bin": VOXELS.tobytes(), "a.cls": bytes(72), "a.json": facts()}
    good |= {"b.bin": VOXELS.tobytes(), "b.cls": bytes(72), "b.json": facts()}
    bad = {"c.bin": VOXELS.tobytes()} | {f"c.{name}": c for name, c in members.items()}
    source = TarSource(tar(tmp_path / "a.tar", good | bad))
    source.list_volumes("valid")
    source.tables("valid").row("b")
    with pytest.raises(TableError, match=message):
        source.tables("valid").row("c")


def labelled(path: Path, **labels: bytes | None) -> TarSource:
    """Tars of one sample each, with these labels, listed."""
    for name, content in labels.items():
        members = {f"{name}.bin": VOXELS.tobytes(), f"{name}.json": facts()}
        tar(path / f"{name}.tar", members | ({} if content is None else {f"{name}.cls": content}))
    source = TarSource(path / "*.tar")
    source.list_volumes("valid")
    return source


def test_labels_are_as_many_as_the_manifest_beside_the_tars_names(tmp_path: Path) -> None:
    values = np.array([0, 1, np.nan], "<f4")
    source = labelled(tmp_path, a=values.tobytes(), b=None)
    (tmp_path / "manifest.json").write_text(json.dumps({"class_names": ["x", "y", "z"]}))
    tables = source.tables("valid")
    assert tables.class_names == ("x", "y", "z")
    assert np.array_equal(tables.row("a").labels, values, equal_nan=True)
    assert np.isnan(tables.row("b").labels).tolist() == [True] * 3


@pytest.mark.parametrize("content", [None, b""])
def test_tars_without_labels_have_no_classes(tmp_path: Path, content: bytes | None) -> None:
    tables = labelled(tmp_path, a=content).tables("valid")
    assert tables.class_names == ()
    assert tables.row("a").labels.shape == (0,)


def test_a_plan_that_has_ct_rates_classes_keeps_them_for_tars_without_labels(
    tmp_path: Path,
) -> None:
    tables = labelled(tmp_path, a=None).tables("valid", LABEL_NAMES)
    assert np.isnan(tables.row("a").labels).tolist() == [True] * 18


@pytest.mark.parametrize("value", [np.inf, 7e30, -0.5, 1.5])
def test_labels_that_are_no_labels_fail_their_sample(tmp_path: Path, value: float) -> None:
    labels = np.zeros(18, "<f4")
    labels[2], labels[3] = np.nan, value
    members = {"b.bin": VOXELS.tobytes(), "b.json": facts(), "b.cls": labels.tobytes()}
    source = TarSource(tar(tmp_path / "a.tar", members))
    source.list_volumes("valid")
    with pytest.raises(TableError, match=r"b\.cls has .* for Pericardial effusion; wanted"):
        source.tables("valid").row("b")
