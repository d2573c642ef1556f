"""Volumes whose header has a file to itself, in folders and on their own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import ctgpu
from ctgpu.buffers import BufferPool
from ctgpu.errors import DecodeError, FetchError
from ctgpu.sources.detached import size_of
from ctgpu.sources.folder import FolderSource
from ctgpu.spec import Spec
from ctgpu.volume.ref import SampleRef
from support.itk_images import marked, write_itk

VOXELS = marked((7, 5, 4), "int16")
SUFFIXES = {".mhd": ".raw", ".nhdr": ".raw"}


@pytest.fixture(params=SUFFIXES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "folder").mkdir()
    header = write_itk(tmp_path / "folder" / f"a{request.param}", VOXELS)
    return header, header.with_suffix(SUFFIXES[request.param])


def listed(header: Path) -> tuple[FolderSource, SampleRef]:
    source = FolderSource(header.parent)
    (ref,) = source.list_volumes("valid")
    return source, ref


def fetched(source: FolderSource, ref: SampleRef) -> np.ndarray:
    pool = BufferPool()
    try:
        volume = source.fetch(ref, pool.acquire).decode(pool)
        voxels = np.array(volume.voxels)
        volume.release()
        return voxels
    finally:
        assert pool.lent_bytes == 0


def test_both_files_are_one_volume(pair: tuple[Path, Path]) -> None:
    header, voxels = pair
    source, ref = listed(header)
    assert (ref.path, ref.key) == (header.name, "a")
    assert ref.size_bytes == header.stat().st_size + voxels.stat().st_size
    np.testing.assert_array_equal(fetched(source, ref), VOXELS)
    assert source.file_of(ref) == voxels


def test_either_file_that_changes_is_noticed(pair: tuple[Path, Path]) -> None:
    header, voxels = pair
    source, ref = listed(header)
    revision = source.identity()["revision"]
    for path in pair:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        with pytest.raises(FetchError, match="when it was listed"):
            fetched(source, ref)
        again, _ = listed(header)
        assert again.identity()["revision"] != revision
        path.write_bytes(content)
    assert voxels.exists()


def test_voxels_that_are_gone(pair: tuple[Path, Path]) -> None:
    header, voxels = pair
    source, ref = listed(header)
    voxels.unlink()
    with pytest.raises(FetchError, match=rf"{voxels.name} beside it, which cannot be read"):
        fetched(source, ref)
    assert size_of(header, 12) == 12
    assert source.file_of(ref).name in (header.name, voxels.name)


def test_a_damaged_header_fails_alone(pair: tuple[Path, Path]) -> None:
    header, _ = pair
    header.write_bytes(b"nothing")
    source, ref = listed(header)
    assert ref.size_bytes == 7
    with pytest.raises(DecodeError, match=header.name):
        fetched(source, ref)


def test_a_header_does_not_lead_out_of_its_folder(pair: tuple[Path, Path]) -> None:
    header, voxels = pair
    secret = header.parent.parent / voxels.name
    os.replace(voxels, secret)
    text = header.read_bytes()
    for elsewhere in (f"../{secret.name}", str(secret)):
        header.write_bytes(text.replace(voxels.name.encode(), elsewhere.encode()))
        source, ref = listed(header)
        with pytest.raises(DecodeError, match="beside it"):
            fetched(source, ref)


def test_one_file_on_its_own(pair: tuple[Path, Path]) -> None:
    header, voxels = pair
    spec = Spec(shape_hwd=(6, 6, 6), hu_window=(-60, 60))
    whole = write_itk(header.parent / "whole.mha", VOXELS)
    options = {"spec": spec, "hu_guard": "warn"}
    made = ctgpu.preprocess(header, **options)
    np.testing.assert_array_equal(made, ctgpu.preprocess(whole, **options))
    voxels.unlink()
    with pytest.raises(FetchError, match="bring it back"):
        ctgpu.preprocess(header, **options)
