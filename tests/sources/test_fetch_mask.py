"""Files of masks, fetched from folders and from the Hub."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctgpu.buffers import BufferPool
from ctgpu.data_sets import Description, named
from ctgpu.decode import MAX_VOLUME_BYTES
from ctgpu.errors import FetchError, SourceError
from ctgpu.sources import open_source
from ctgpu.sources.base import Source
from ctgpu.sources.hub.source import HubSource
from ctgpu.sources.tars import TarSource
from ctgpu.testing.hub import LocalHub
from ctgpu.testing.masks import LABELS, labels_of, lay_out_with_masks
from support.data_set_copies import build, marked, write_npz
from support.phantoms import SPACING_MM


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source of two scans with a file for each label, and its description beside it."""
    scans = {name: marked(seed) for seed, name in enumerate("ab")}
    lay_out_with_masks(tmp_path / "source", scans, SPACING_MM, binary=True)
    return tmp_path / "source"


def described(root: Path) -> Description:
    return named(root.with_suffix(".toml"))


def fetched(source: Source) -> dict[str, dict[int | None, Any]]:
    """Voxels of every mask file, by scan and label."""
    pool = BufferPool()
    return {
        ref.key: {
            number: np.array(one.decode(pool).voxels)
            for number, one in source.fetch_mask(ref, pool.acquire)
        }
        for ref in source.list_volumes("train")
    }


def check(found: dict[str, dict[int | None, Any]]) -> None:
    assert list(found) == ["a", "b"]
    for seed, files in enumerate(found.values()):
        assert list(files) == sorted(LABELS.values())
        for number, voxels in files.items():
            assert np.array_equal(voxels, labels_of(marked(seed)) == number)


def test_of_a_folder(root: Path) -> None:
    check(fetched(open_source(source=root, data_set=described(root))))


def test_of_the_hub(root: Path, tmp_path: Path) -> None:
    with LocalHub(root, repo_id="someone/scans") as hub:
        source = HubSource("someone/scans", token=False, endpoint=hub.url, data_set=described(root))
        check(fetched(source))
        source.close()
    (root / "a" / "segmentations" / "lung.nii.gz").unlink()
    with LocalHub(root, repo_id="someone/scans") as hub:
        source = HubSource("someone/scans", token=False, endpoint=hub.url, data_set=described(root))
        with pytest.raises(FetchError, match=r"^a/segmentations/lung\.nii\.gz, of the mask of a/"):
            fetched(source)
        source.close()


def test_a_build_of_the_hub_is_that_of_its_files(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataset": root.with_suffix(".toml"), "split": "train"}
    build(tmp_path / "folder", root, **options)
    with LocalHub(root, repo_id="someone/scans") as hub:
        options |= {"repo_id": "someone/scans", "endpoint": hub.url}
        assert build(tmp_path / "hub", temp_dir=tmp_path, **options).exit_code == 0
    for name in ("a", "b"):
        mine, theirs = (member(tmp_path / f, f"{name}.seg") for f in ("folder", "hub"))
        assert mine == theirs


def member(folder: Path, name: str) -> bytes:
    import tarfile

    with tarfile.open(next(folder.glob("shard-*.tar"))) as archive:
        return archive.extractfile(name).read()  # type: ignore[union-attr]


def test_what_cannot_be_read(root: Path) -> None:
    source = open_source(source=root, data_set=described(root))
    ref = source.list_volumes("train")[1]
    allocate = BufferPool().acquire
    lung = root / "b" / "segmentations" / "lung.nii.gz"
    lung.unlink()
    lung.symlink_to("nowhere")
    with pytest.raises(FetchError, match=r"b/segmentations/lung\.nii\.gz is a link to nowhere"):
        source.fetch_mask(ref, allocate)
    lung.unlink()
    lung.mkdir()
    with pytest.raises(FetchError, match=r"^b/segmentations/lung\.nii\.gz "):
        source.fetch_mask(ref, allocate)
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(SourceError, match="is gone; mount it again"):
        source.fetch_mask(ref, allocate)


def test_tars_have_no_masks(tmp_path: Path) -> None:
    data_set = Description.of({"name": "x", "masks": {"files": "{name}.nii.gz"}})
    source = TarSource(tmp_path / "x.tar", data_set=data_set)
    from ctgpu.volume.ref import SampleRef

    with pytest.raises(FetchError, match="masks are only taken from folders and the Hub"):
        source.fetch_mask(SampleRef.of_file("x.tar/a.nii.gz", 1), BufferPool().acquire)


def test_a_bare_array_is_turned_as_the_volumes_are(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        hu = marked(seed)
        write_npz(tmp_path / "source" / f"{name}.npz", ct=hu.transpose(2, 0, 1))
        write_npz(tmp_path / "masks" / f"{name}.npz", organs=labels_of(hu).transpose(2, 0, 1))
    (tmp_path / "masks").rename(tmp_path / "source" / "masks")
    data_set = Description.of(
        {
            "name": "x",
            "volumes": {"paths": ["{key}.npz"]},
            "arrays": {"member": "ct", "axes": "DHW", "spacing_mm": [1, 2, 3]},
            "masks": {"files": "masks/{key}.npz"},
        }
    )
    found = fetched(open_source(source=tmp_path / "source", data_set=data_set))
    assert {name: list(files) for name, files in found.items()} == {"a": [None], "b": [None]}
    for seed, files in enumerate(found.values()):
        assert np.array_equal(files[None], labels_of(marked(seed)))


def test_no_name_of_a_plan_leads_out_of_the_source(tmp_path: Path) -> None:
    write_npz(tmp_path / "secret.npz", volume=labels_of(marked(0)))
    write_npz(tmp_path / "source" / "a.npz", volume=marked(0))
    data_set = Description.of({"name": "x", "masks": {"files": "{folder}/{key}.npz"}})
    source = open_source(source=tmp_path / "source", data_set=data_set)
    (ref,) = source.list_volumes("train")
    with pytest.raises(FetchError, match=r"secret\.npz leads out of the source"):
        source.fetch_mask(replace(ref, study_id="../secret"), BufferPool().acquire)


def test_a_file_that_is_too_large_to_be_a_mask_is_not_read(root: Path) -> None:
    source = open_source(source=root, data_set=described(root))
    ref = source.list_volumes("train")[0]
    bone = root / "a" / "segmentations" / "bone.nii.gz"
    source = open_source(source=root, data_set=described(root))
    os.truncate(bone, MAX_VOLUME_BYTES + 1)  # without a block of it on the disk
    with pytest.raises(FetchError, match=r"bone\.nii\.gz has .* are read of a mask"):
        source.fetch_mask(ref, BufferPool().acquire)
