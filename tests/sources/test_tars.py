"""The tars of a WebDataset as a source."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ctgpu
from ctgpu.buffers import BufferPool
from ctgpu.errors import DecodeError, FetchError, TableError, UsageError
from ctgpu.shards.patterns import expand_pattern
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.sources.tars import TarSource
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import LABEL_NAMES


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def facts(**others: Any) -> bytes:
    stated = {"volume_shape": [2, 3, 4], "volume_dtype": "int16", "XYSpacing": [0.7, 0.8]}
    return json.dumps(stated | {"ZSpacing": 1.5} | others).encode()


VOXELS = np.arange(24, dtype="<i2")


def test_patterns_are_expanded(tmp_path: Path) -> None:
    for name in ("a-9.tar", "a-10.tar", "b-1.tar", "c.txt"):
        (tmp_path / name).touch()

    def names(pattern: object) -> list[str]:
        return [path.name for path in expand_pattern(str(pattern))]

    assert names(tmp_path) == ["a-9.tar", "a-10.tar", "b-1.tar"]
    assert names(tmp_path / "a-*.tar") == ["a-9.tar", "a-10.tar"]
    assert names(tmp_path / "{a-9,b-1}.tar") == ["a-9.tar", "b-1.tar"]
    assert names(tmp_path / "x-{08..11}.tar") == [f"x-{n}.tar" for n in ("08", "09", "10", "11")]
    assert names(tmp_path / "{a,b}-{1..2}.tar") == ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]
    for pattern in ("x-{5..2}.tar", "x-{0..99999999}.tar"):
        with pytest.raises(UsageError, match="is no range"):
            expand_pattern(tmp_path / pattern)


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


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"volume_shape": [2, 3, 5]}, "takes 60"),
        ({"volume_shape": None}, "no volume_shape"),
        ({"volume_dtype": "object"}, "object"),
        ({"volume_dtype": "int33"}, "int33"),
    ],
)
def test_a_bare_array_that_is_not_as_described_is_refused(
    tmp_path: Path, stated: dict[str, Any], message: str
) -> None:
    members = {"b.bin": VOXELS.tobytes(), "b.json": facts(**stated)}
    source = TarSource(tar(tmp_path / "a.tar", members))
    (ref,) = source.list_volumes("valid")
    pool = BufferPool()
    with pytest.raises(DecodeError, match=message):
        source.fetch(ref, pool.acquire).decode(pool)
    assert pool.lent_bytes == 0


def test_a_tar_that_changes_between_fetching_and_decoding_fails_the_sample(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"b.bin": VOXELS.tobytes(), "b.json": facts()})
    source = TarSource(path)
    (ref,) = source.list_volumes("valid")
    pool = BufferPool()
    fetched = source.fetch(ref, pool.acquire)
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(DecodeError, match="changed after it had been listed"):
        fetched.decode(pool)
    assert pool.lent_bytes == 0


def test_what_is_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no volume for a, only txt"):
        TarSource(tar(tmp_path / "a.tar", {"a.txt": b"x"})).list_volumes("valid")
    with pytest.raises(UsageError, match="holds no sample"):
        TarSource(tar(tmp_path / "b.tar", {})).list_volumes("valid")
    double = tmp_path / "c.tar"
    with tarfile.open(double, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.bin"))
    with pytest.raises(DecodeError, match="twice"):
        samples_of_tar(double)


def test_a_tar_that_was_cut_fails_the_sample_alone(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"b.bin": VOXELS.tobytes(), "b.json": facts()})
    source = TarSource(path)
    (ref,) = source.list_volumes("valid")
    path.write_bytes(path.read_bytes()[:520])
    pool = BufferPool()
    with pytest.raises(FetchError, match=r"changed after it had been listed"):
        source.fetch(ref, pool.acquire)
    assert pool.lent_bytes == 0


def test_the_old_builders_scramble_is_told_from_good_volumes_on_real_ct(
    tmp_path: Path, real_ct: Path
) -> None:
    # Defect 1: (H, D, W) stored where (H, W, D) is claimed; isotropic, by defect 3.
    good = Spec(target_spacing_mm=(3.0, 3.0, 6.0), shape_hwd=(120, 120, 60))
    bad = Spec(target_spacing_mm=(6.0, 6.0, 6.0), shape_hwd=(120, 60, 120))
    members = {}
    for path in sorted(real_ct.glob("*.nii.gz")):
        for name, spec in (("good", good), ("bad", bad)):
            volume = ctgpu.preprocess(path, spec=spec, device="cpu")
            members[f"{path.name.partition('.')[0]}-{name}.bin"] = volume.tobytes()
    path = tar(tmp_path / "a.tar", members)
    card = {"preprocessed": True, "sample_shape": [120, 120, 60]}
    (tmp_path / "manifest.json").write_text(json.dumps(card))
    source = TarSource(path)
    told = {}
    pool = BufferPool()
    for ref in source.list_volumes("valid"):
        try:
            source.fetch(ref, pool.acquire).decode(pool).release()
            told[ref.key] = "good"
        except DecodeError as error:
            told[ref.key] = "bad" if "60 of 120 in-plane rows are gone" in str(error) else "?"
    assert len(told) == len(members) > 2
    assert all(key.endswith(verdict) for key, verdict in told.items())


def test_hidden_members_are_no_samples(tmp_path: Path) -> None:
    own = {"a.bin": VOXELS.tobytes(), "a.json": facts(), "sub/b.npz": b"x"}
    plain = TarSource(tar(tmp_path / "plain" / "x.tar", own).parent / "*.tar")
    members = {"._a.bin": b"AppleDouble", **own, "sub/._b.npz": b"AppleDouble", ".DS_Store": b""}
    hidden = TarSource(tar(tmp_path / "hidden" / "x.tar", members).parent / "*.tar")
    assert hidden.list_volumes("valid") == plain.list_volumes("valid")
    assert hidden.identity()["revision"] == plain.identity()["revision"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n" + b"oid " * 500, "git lfs pull"),
        (b"<html>" + b" " * 2000, "is an HTML page"),
        (b"", "is empty"),
    ],
)
def test_a_file_in_the_place_of_a_tar_is_called_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DecodeError, match=rf"x\.tar .*{message}"):
        samples_of_tar(tmp_path / "x.tar")


@pytest.mark.parametrize("value", [np.inf, 7e30, -0.5, 1.5])
def test_labels_that_are_no_labels_fail_their_sample(tmp_path: Path, value: float) -> None:
    labels = np.zeros(18, "<f4")
    labels[2], labels[3] = np.nan, value
    members = {"b.bin": VOXELS.tobytes(), "b.json": facts(), "b.cls": labels.tobytes()}
    source = TarSource(tar(tmp_path / "a.tar", members))
    source.list_volumes("valid")
    with pytest.raises(TableError, match=r"b\.cls has .* for Pericardial effusion; wanted"):
        source.tables("valid").row("b")
