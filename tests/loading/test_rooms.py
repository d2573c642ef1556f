"""Batches of compressed volumes: the very tensors of raw ones, on the host and through a GPU."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import STUDIES, flip_byte, studies

import ctgpu
from ctgpu.buffers import BufferPool
from ctgpu.codec.ctz import LANES, PLANES
from ctgpu.errors import DeviceError, FetchError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading import targets as targets_module
from ctgpu.loading.rooms import TileRooms, VoxelRooms, make_rooms
from ctgpu.loading.targets import CudaTarget, HostTarget
from ctgpu.shards.compressed import CompressedMember
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import checksum
from ctgpu.shards.writer import PackedSample
from ctgpu.spec import Spec
from support.compressed_folders import compress_folder
from support.host_decoder import in_place_of_a_gpu
from support.masks import rewritten

torch = pytest.importorskip("torch")

#: H, W, D: of the whole 44 x 36 x 24, one tile of D and W each, across their edges, one voxel.
BOXES: list[tuple[int, int, int]] = [(44, 36, 24), (9, 5, 8), (20, 30, 9), (1, 1, 1)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device that torch takes for one, whose decoder is the kernel on the host."""
    in_place_of_a_gpu(monkeypatch)
    return "cuda"


def assert_same_batches(found: Any, wanted: Any) -> None:
    """Both epochs, batch by batch, to the bit."""
    batches = 0
    for one, other in zip(found, wanted, strict=True):
        assert list(one) == list(other)
        for name in ("volume", "mask", "labels"):
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name].nan_to_num(7), other[name].nan_to_num(7)), name
        assert one["study_id"] == other["study_id"]
        assert one["report"] == other["report"]
        assert one["volume"].any()
        batches += 1
    assert batches


@pytest.mark.parametrize("copy", [True, False])
def test_whole_volumes_are_those_of_raw_shards(pair: tuple[Path, Path], copy: bool) -> None:
    raw, small = pair
    options: dict[str, Any] = {"shuffle": True, "seed": 2, "copy": copy}
    loader = make_loader(small, 4, **options)
    for _ in range(2):  # the second epoch verifies nothing
        assert_same_batches(loader, make_loader(raw, 4, **options))
        loader.set_epoch(0)
    (batch, *_) = loader
    assert batch["volume"].is_contiguous()  # whatever the layout in the shards
    assert batch["volume"].shape == batch["mask"].shape == (4, 1, 24, 44, 36)


@pytest.mark.parametrize(("box", "verify"), [*((box, "first") for box in BOXES), (BOXES[2], "off")])
def test_boxes_are_those_of_raw_shards(
    pair: tuple[Path, Path], box: tuple[int, int, int], verify: Any
) -> None:
    raw, small = (VolumeDataset(folder, verify=verify) for folder in pair)
    options: dict[str, Any] = {"random_crop_hwd": box, "seed": 9}
    assert_same_batches(make_loader(small, 3, **options), make_loader(raw, 3, **options))


@pytest.mark.parametrize(
    "options",
    [{"window": "mediastinum"}, {"windows": ["mediastinum", "soft_tissue", (-500.0, 300.0)]}],
)
def test_windows_are_mapped_from_what_is_decoded(
    pair: tuple[Path, Path], options: dict[str, Any]
) -> None:
    raw, small = pair
    for more in ({}, {"random_crop_hwd": (20, 9, 11)}):
        chosen = options | more
        assert_same_batches(make_loader(small, 2, **chosen), make_loader(raw, 2, **chosen))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_stored_type_comes_back(
    hwd: Path, tmp_path: Path, device: str, request: pytest.FixtureRequest
) -> None:
    """From the CPU's decoder, and from the one for a GPU."""
    if device == "cuda":
        request.getfixturevalue("gpu")
    # Fewer planes than a slab has, and fewer columns than a tile.
    spec = Spec(target_spacing_mm=(8.0, 8.0, 24.0), shape_hwd=(21, 18, 7))
    specs = {
        "grid": replace(spec, precision="2^-10"),
        "bfloat16": replace(spec, dtype="bfloat16", layout="DHW"),
        "int16": replace(spec, dtype="int16", hu_window=None),
        "uint8": replace(spec, dtype="uint8", layout="DHW"),
    }
    for name, own in specs.items():
        raw = tmp_path / "raw" / name
        ctgpu.build(raw, source=hwd.parent / "source", spec=own, limit=2, device="cpu")
        small = compress_folder(raw, tmp_path / "small" / name, "rice")
        (found,) = make_loader(small, 2, device=device)
        (wanted,) = make_loader(raw, 2)
        assert found["volume"].dtype == getattr(torch, own.dtype)
        assert torch.equal(found["volume"], wanted["volume"])
        assert len(found["volume"].unique()) > 20
        one, other = VolumeDataset(small)[1], VolumeDataset(raw)[1]
        assert one["volume"].dtype == other["volume"].dtype
        assert np.array_equal(one["volume"], other["volume"])


def test_folders_of_any_compression_join(plain: Path, rice: Path, pack: Path) -> None:
    """Then batches lie as they are stored, for what is raw is read as it is."""
    joined = VolumeDataset([plain, rice, pack])
    assert not joined.is_compressed
    assert joined.memory_layout == "HWD"
    whole, boxes = {}, {}
    for options, found in (({}, whole), ({"random_crop_hwd": (20, 30, 9)}, boxes)):
        for batch in make_loader(joined, 6, shuffle=True, **options):  # type: ignore[arg-type]
            for row, study_id in enumerate(batch["study_id"]):
                found.setdefault(study_id, []).append((batch["volume"][row], batch["mask"][row]))
    assert set(whole) == set(boxes) == set(STUDIES)
    for copies in whole.values():
        (volume, mask), *others = copies
        assert volume.stride()[1:] == (1, 36 * 24, 24)
        assert all(torch.equal(volume, v) and torch.equal(mask, m) for v, m in others)
        assert len(others) == 2
    assert VolumeDataset([rice, pack]).is_compressed
    assert joined.select(range(11, 33)).memory_layout == "DHW"
    for number in range(11):
        for other in (11, 22):
            assert np.array_equal(joined[number]["mask"], joined[number + other]["mask"])


@pytest.mark.parametrize(("box", "verify"), [*((box, "first") for box in BOXES), (BOXES[2], "off")])
def test_a_box_reads_the_tiles_that_it_meets_and_no_others(
    rice: Path, box: tuple[int, int, int], verify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(rice, verify=verify)
    shard, entry = dataset.locate(3)
    with shard.open() as reader:
        member = CompressedMember(reader, entry, "ctz", (24, 44, 36), "float16")
    sizes = member.head.table["size"].tolist()
    assert len(sizes) == 3 * 2
    read = []
    read_part = ShardReader.read_part

    def counted(self: ShardReader, entry: Any, extension: str, at: int, out: memoryview) -> None:
        if extension == "ctz":
            read.append((at, len(out)))
        read_part(self, entry, extension, at, out)

    monkeypatch.setattr(ShardReader, "read_part", counted)
    stored = dataset.spec.stored_shape
    for start in [(0, 0, 0), tuple(n - k for n, k in zip(stored, box, strict=True))]:
        read.clear()
        out = np.empty(box, np.float16)
        dataset.read_into(3, out, start)  # type: ignore[arg-type]
        (head, *tiles) = read
        assert head == (0, 64 + 24 * len(sizes))
        wanted = []
        for slab in range(start[2] // PLANES, (start[2] + box[2] - 1) // PLANES + 1):
            of_slab = sizes[2 * slab : 2 * slab + 2]
            met = slice(start[1] // LANES, (start[1] + box[1] - 1) // LANES + 1)
            before = sum(sizes[: 2 * slab]) + sum(of_slab[: met.start])
            wanted.append((head[1] + before, sum(of_slab[met])))
        assert tiles == wanted  # a read for each slab of planes


def test_a_box_decodes_into_any_memory(rice: Path, plain: Path) -> None:
    wanted = VolumeDataset(plain)[5]["volume"][0]
    room = np.zeros((50, 40, 60), np.float16)
    out = room[3:12, ::-1, 5:45:2][:, :21, :11]
    VolumeDataset(rice).read_into(5, out, (31, 14, 13))
    found = out.transpose(2, 0, 1)
    assert np.array_equal(found, wanted[13:24, 31:40, 14:35])
    out[...] = 0
    assert not room.any()


def test_a_gpu_gets_tiles_and_decodes_the_very_batches(
    pair: tuple[Path, Path], gpu: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw, small = pair
    for options in (
        {"shuffle": True},
        {"random_crop_hwd": (9, 20, 9), "seed": 4},
        {"windows": ["mediastinum", "soft_tissue"], "random_crop_hwd": (44, 2, 24)},
    ):
        loader = make_loader(small, 4, device=gpu, **options)  # type: ignore[arg-type]
        for _ in range(2):
            assert_same_batches(loader, make_loader(raw, 4, **options))  # type: ignore[arg-type]
            loader.set_epoch(0)
        assert all(batch["volume"].is_contiguous() for batch in loader)
    assert caplog.text == ""


@pytest.mark.parametrize("extension", ["ctz", "segz"])
@pytest.mark.parametrize("verify", ["first", "off"])
def test_what_is_damaged_is_skipped_before_a_gpu_sees_it(
    rice: Path, tmp_path: Path, gpu: str, verify: Any, extension: str
) -> None:
    own = shutil.copytree(rice, tmp_path / "own")
    shard, entry = VolumeDataset(own).locate(4)
    member = entry.members[extension]
    flip_byte(shard.path, member.offset + member.size_bytes - 20)  # in its last tile
    dataset = VolumeDataset(own, verify=verify)
    wanted = [f"valid_{n}_a_1" for n in (1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11)]
    assert studies(make_loader(dataset, 2, device=gpu, on_error="skip")) == wanted
    if verify == "first":
        match = rf"valid_5_a_1\.{extension} cannot be decoded: its tile 5 does not have its"
        with pytest.raises(FetchError, match=match):
            studies(make_loader(dataset, 2, device=gpu))


def test_a_fault_that_the_gpu_finds_names_the_sample(rice: Path, tmp_path: Path, gpu: str) -> None:
    own = shutil.copytree(rice, tmp_path / "own")
    shard, entry = VolumeDataset(own).locate(2)
    with shard.path.open("r+b") as tar:
        tar.seek(entry.members["ctz"].offset + 64 + 6 * 24)
        tar.write(b"\xff" * 40)
    loader = make_loader(VolumeDataset(own, verify="off"), 2, device=gpu)
    with pytest.raises(FetchError, match=r"valid_3_a_1\.ctz: its tile 0: its .*; the tar has"):
        studies(loader)


def test_rows_have_room_for_the_largest_sample(hwd: Path, tmp_path: Path, gpu: str) -> None:
    def with_noise(sample: PackedSample) -> PackedSample:
        if sample.key != "valid_7_a_1":
            return sample
        noise = np.random.default_rng(1).normal(0, 0.5, sample.volume.size // 2)
        volume = noise.astype("<f2").view(np.uint8)
        return replace(sample, volume=volume, volume_xxh3_128=checksum(volume))

    noisy = rewritten(hwd, tmp_path / "noisy", with_noise)
    dataset = VolumeDataset(compress_folder(noisy, tmp_path / "small", "rice"))
    sizes = [entry.members["ctz"].size_bytes for entry in dataset.entries]
    assert sizes[6] > 1.3 * max(sizes[:6])
    target = CudaTarget(torch.device("cuda"), dataset.spec, dataset.memory_layout, ())
    rooms = make_rooms(dataset, target, 2, None, verify=False)
    assert isinstance(rooms, TileRooms)
    assert 2 * sizes[6] <= rooms.size_bytes + 2 * 4096
    assert rooms.size_bytes <= 2 * (sizes[6] + 4096)
    assert make_rooms(dataset, target, 2, (9, 1, 1), verify=False).size_bytes < sizes[6]
    # In a batch that is not full, the largest in the place of a smaller one; and beside one.
    for numbers in ([0, 6], [6, 0]):
        with BufferPool().acquire(rooms.size_bytes) as buffer:
            room = rooms.open(buffer, 1)
            room.read(0, numbers[0], (0, 0, 0))
            labels, _ = room.read(0, numbers[1], (0, 0, 0))
            batch = room.place(labels[None])
        assert np.array_equal(batch["volume"][0].numpy(), dataset[numbers[1]]["volume"])
    for batch in make_loader(dataset, 4, device=gpu, shuffle=True):
        for volume, study_id in zip(batch["volume"], batch["study_id"], strict=True):
            assert np.array_equal(volume.numpy(), dataset[study_id]["volume"])


def test_a_gpu_is_sent_what_was_verified_once(rice: Path, gpu: str) -> None:
    dataset = VolumeDataset(rice)
    studies(make_loader(dataset, 4, device=gpu, random_crop_hwd=(44, 36, 23)))
    assert all(map(dataset.is_due, range(11)))  # of which some tiles may not have been read
    studies(make_loader(dataset, 4, device=gpu))
    assert not any(map(dataset.is_due, range(11)))


def test_the_kind_of_room_is_that_of_samples_and_device(
    rice: Path,
    plain: Path,
    gpu: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def kind(folders: Any, target: Any) -> type:
        return type(make_rooms(VolumeDataset(folders), target, 1, None, verify=True))

    spec = VolumeDataset(rice).spec
    device = CudaTarget(torch.device("cuda"), spec, "DHW", ())
    host = HostTarget(spec, "DHW", (), copy=True)
    assert kind(rice, device) is TileRooms
    assert kind(rice, host) is kind(plain, device) is kind([rice, plain], device) is VoxelRooms
    assert caplog.text == ""

    def refuse(ordinal: int) -> None:
        raise DeviceError("there is no CuPy: install it")

    monkeypatch.setattr(targets_module, "CtzDecoder", refuse)
    with caplog.at_level(logging.WARNING):
        assert kind(rice, device) is VoxelRooms
    assert "there is no CuPy: install it; until then compressed volumes are decoded on" in (
        caplog.text
    )
    assert_same_batches(make_loader(rice, 3, device=gpu), make_loader(plain, 3))
