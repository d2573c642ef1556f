"""One sample of a WebDataset's tar, and the volume in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tar_cases import VOXELS, facts, tar

import ctgpu
from ctgpu.buffers import BufferPool
from ctgpu.errors import DecodeError
from ctgpu.sources.tar_samples import samples_of_tar
from ctgpu.sources.tars import TarSource
from ctgpu.spec import Spec


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


@pytest.mark.slow
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
