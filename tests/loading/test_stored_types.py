"""Batches of every type that is stored, against what NumPy makes of the bytes in the tars."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ctgpu
from built import read_samples
from ctgpu.errors import MismatchError, UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.dali import pipeline
from ctgpu.loading.region import random_start, stored_order
from ctgpu.loading.webdataset import decoder
from ctgpu.shards.reader import ShardReader
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate
from ctgpu.volume.stored import numbers_of
from support.phantoms import study_ids

torch = pytest.importorskip("torch")

Numbers = npt.NDArray[Any]
SPACING_MM = (7.0, 6.0, 10.0)
STUDIES = study_ids(5)
SHAPE_HWD = (20, 18, 14)
BOX_HWD = (9, 7, 5)


@dataclass(frozen=True)
class Contract:
    """Fields of a Spec, how NumPy reads its numbers, and what they are in HU."""

    fields: dict[str, Any]
    itemsize: int
    read: Callable[[bytes], Numbers]
    hu: Callable[[Numbers], Numbers]

    @property
    def dtype(self) -> str:
        return str(self.fields.get("dtype", "float16"))


CONTRACTS = {
    "float16": Contract(
        {"output_range": (0.0, 1.0)},
        2,
        lambda data: np.frombuffer(data, "<f2"),
        lambda x: 2000 * x - 1000,
    ),
    "bfloat16": Contract(
        {
            "dtype": "bfloat16",
            "hu_window": (-1200.0, 800.0),
            "output_range": (0.0, 255.0),
            "standardise": (110.0, 60.0),
        },
        2,
        lambda data: np.frombuffer(
            b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2)), "<f4"
        ),
        lambda x: (60 * x + 110) / 255 * 2000 - 1200,
    ),
    "int16": Contract(
        {"dtype": "int16", "hu_window": None},
        2,
        lambda data: np.frombuffer(data, "<i2"),
        lambda x: x,
    ),
    "int16-clipped": Contract(
        {"dtype": "int16", "hu_window": (-900.0, 700.0)},
        2,
        lambda data: np.frombuffer(data, "<i2"),
        lambda x: x,
    ),
    "uint8": Contract(
        {"dtype": "uint8", "hu_window": (-1350.0, 150.0), "output_range": (0.0, 1.0)},
        1,
        lambda data: np.frombuffer(data, "u1"),
        lambda x: 1500 / 255 * x - 1350,
    ),
}


@dataclass(frozen=True)
class Stored:
    """A folder, what it was built to, and its numbers (D, H, W) in float64 by study id."""

    folder: Path
    contract: Contract
    spec: Spec
    numbers: dict[str, Numbers]

    def box(self, study_id: str, box_hwd: tuple[int, int, int] | None) -> Numbers:
        """Numbers of the volume, or of the first epoch's random box of it."""
        numbers = self.numbers[study_id]
        if box_hwd is None:
            return numbers
        box = stored_order(box_hwd, self.spec.layout)
        start = random_start(
            self.spec.stored_shape, box, seed=0, epoch=0, index=STUDIES.index(study_id)
        )
        part = [slice(a, a + n) for a, n in zip(start, box, strict=True)]
        h, w, d = part if self.spec.layout == "HWD" else (*part[1:], part[0])
        return numbers[d, h, w]


@pytest.fixture(scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("stored-types") / "source"
    lay_out_ct_rate(
        source,
        {
            study_id: Volume(chest_phantom((36, 34, 24), SPACING_MM, seed), SPACING_MM)
            for seed, study_id in enumerate(STUDIES)
        },
    )
    return source


@pytest.fixture(scope="module", params=itertools.product(CONTRACTS, ("HWD", "DHW")), ids="-".join)
def stored(request: pytest.FixtureRequest, _source: Path) -> Stored:
    name, layout = request.param
    contract = CONTRACTS[name]
    spec = Spec(
        target_spacing_mm=(12.0, 12.0, 16.0), shape_hwd=SHAPE_HWD, layout=layout, **contract.fields
    )
    folder = _source.parent / f"{name}-{layout}"
    report = ctgpu.build(folder, source=_source, spec=spec, samples_per_shard=2, device="reference")
    assert report.exit_code == 0
    h, w, d = SHAPE_HWD
    numbers = {}
    for study_id, sample in read_samples(folder).items():
        assert len(sample.volume) == contract.itemsize * h * w * d
        read = contract.read(sample.volume).astype(np.float64)
        numbers[study_id] = (
            read.reshape(h, w, d).transpose(2, 0, 1) if layout == "HWD" else read.reshape(d, h, w)
        )
        assert len(np.unique(numbers[study_id])) > 50
    return Stored(folder, contract, spec, numbers)


def test_samples_are_the_bits_that_are_stored(stored: Stored) -> None:
    dataset = VolumeDataset(stored.folder)
    dtype = stored.contract.dtype
    assert repr(dataset).endswith(f", {dtype} {stored.spec.layout} {stored.spec.stored_shape})")
    for study_id, expected in stored.numbers.items():
        volume = dataset[study_id]["volume"]
        assert volume.dtype == {"bfloat16": "<u2"}.get(dtype, dtype)
        assert volume.shape == (1, 14, 20, 18)
        assert np.array_equal(numbers_of(volume, dtype)[0], expected)  # type: ignore[arg-type]
        tensor = torch.from_numpy(volume)
        if dtype == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        assert tensor.dtype == getattr(torch, dtype)
        assert np.array_equal(tensor[0].double().numpy(), expected)


def test_the_stock_torch_loader_takes_them(stored: Stored) -> None:
    dataset: Any = VolumeDataset(stored.folder)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=2):
        volume = batch["volume"]
        if stored.contract.dtype == "bfloat16":
            volume = volume.view(torch.bfloat16)
        for row, study_id in enumerate(batch["study_id"]):
            assert np.array_equal(volume[row, 0].double().numpy(), stored.numbers[study_id])


@pytest.mark.parametrize("box", [(3, 18, 14), (5, 7, 14), (5, 7, 9)])
def test_a_box_reads_its_rows_alone(
    stored: Stored, box: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VolumeDataset(stored.folder, verify="first")
    shape = stored.spec.stored_shape
    k = tuple(min(wanted, n) for wanted, n in zip(box, shape, strict=True))
    start = tuple(min(2, n - wanted) for wanted, n in zip(k, shape, strict=True))
    dtype = dataset[3]["volume"].dtype  # which verifies it
    read_bytes = []
    read_part = ShardReader.read_part

    def counted(self: ShardReader, entry: Any, extension: str, at: int, out: memoryview) -> None:
        read_bytes.append(len(out) if extension == "bin" else 0)
        read_part(self, entry, extension, at, out)

    monkeypatch.setattr(ShardReader, "read_part", counted)
    box_numbers = []
    for index in (3, 4):  # the second is verified now, so it is read whole
        out = np.zeros(k, dtype)
        dataset.read_into(index, out, start)  # type: ignore[arg-type]
        whole = stored.numbers[STUDIES[index]]
        whole = whole.transpose(1, 2, 0) if stored.spec.layout == "HWD" else whole
        part = whole[tuple(slice(a, a + n) for a, n in zip(start, k, strict=True))]
        assert np.array_equal(stored.contract.read(out.tobytes()).reshape(k), part)
        box_numbers.append(sum(read_bytes))
        read_bytes.clear()
    rows = k[0] * ((k[1] - 1) * shape[2] + k[2])
    assert box_numbers == [stored.contract.itemsize * rows, stored.spec.size_bytes]


def test_memory_of_another_type_is_refused(stored: Stored) -> None:
    dataset = VolumeDataset(stored.folder)
    with pytest.raises(UsageError, match=rf"out is float32, and .* holds {stored.contract.dtype};"):
        dataset.read_into(0, np.empty(stored.spec.stored_shape, np.float32))


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("box_hwd", [None, BOX_HWD], ids=["whole", "crop"])
def test_batches_are_the_bits_that_are_stored(
    stored: Stored, box_hwd: tuple[int, int, int] | None, copy: bool
) -> None:
    loader = make_loader(
        VolumeDataset(stored.folder, verify="off"), 2, random_crop_hwd=box_hwd, copy=copy
    )
    seen = []
    for batches in kept(loader, copy=copy):
        for batch in batches:
            assert batch["volume"].dtype == getattr(torch, stored.contract.dtype)
            for row, study_id in enumerate(batch["study_id"]):
                expected = stored.box(study_id, box_hwd)
                assert np.array_equal(batch["volume"][row, 0].double().numpy(), expected)
                seen.append(study_id)
    assert set(seen) == set(STUDIES)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("box_hwd", [None, BOX_HWD], ids=["whole", "crop"])
def test_a_window_of_any_type_is_mapped_with_one_rounding(
    stored: Stored,
    box_hwd: tuple[int, int, int] | None,
    copy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctgpu.loading.window._PART_VOXELS", 1000)  # several, the last one short
    lo, hi = window = (-720.0, 140.0)
    result, half_step = (
        (torch.bfloat16, 2**-9) if stored.contract.dtype == "bfloat16" else (torch.float16, 2**-12)
    )
    loader = make_loader(stored.folder, 2, random_crop_hwd=box_hwd, window=window, copy=copy)
    seen = []
    for batches in kept(loader, copy=copy):
        for batch in batches:
            assert batch["volume"].dtype == result
            for row, study_id in enumerate(batch["study_id"]):
                hu = stored.contract.hu(stored.box(study_id, box_hwd))
                wanted = np.clip((hu - lo) / (hi - lo) * 2 - 1, -1, 1)
                apart = np.abs(batch["volume"][row, 0].double().numpy() - wanted).max()
                assert apart <= half_step + 3e-6
                seen.append(study_id)
    assert set(seen) == set(STUDIES)


def kept(loader: Any, *, copy: bool) -> Any:
    """Batches that are valid together: all of an epoch, or each with the one before it."""
    return [list(loader)] if copy else itertools.pairwise(loader)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("window", [None, "lung"])
def test_buffers_hold_the_wider_of_what_is_read_and_what_is_made(
    stored: Stored, window: Any, copy: bool
) -> None:
    itemsize = 2 if window else stored.contract.itemsize
    pages = -(-itemsize * 2 * 20 * 18 * 14 // 4096) * 4096
    loader = make_loader(stored.folder, 2, window=window, copy=copy, prefetch_bytes=2 * pages)
    addresses = set()
    for _ in range(3):
        for batch in loader:
            addresses.add(batch["volume"].data_ptr())
            assert loader.buffer_bytes <= (2 + 2) * pages
        del batch
    assert len(addresses) <= 4


def test_the_webdataset_decoder_gives_the_same(stored: Stored) -> None:
    dataset = VolumeDataset(stored.folder)
    for study_id, sample in read_samples(stored.folder).items():
        decoded = decoder(
            {
                "bin": sample.volume,
                "cls": sample.labels.tobytes(),
                "txt": sample.text.encode(),
                "json": json.dumps(sample.metadata).encode(),
            }
        )
        expected = dataset[study_id]["volume"]
        assert decoded["volume"].dtype == expected.dtype
        assert np.array_equal(decoded["volume"], expected)
        assert decoded["volume"].flags.writeable


def test_dali_gives_the_same(stored: Stored) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")
    dtype = stored.contract.dtype
    built = pipeline(stored.folder, 1)
    for study_id in STUDIES:
        volume = np.asarray(built.run()[0][0])
        assert volume.dtype == {"bfloat16": "int16"}.get(dtype, dtype)
        axes = (2, 0, 1) if stored.spec.layout == "HWD" else (0, 1, 2)
        tensor = torch.from_numpy(volume.copy())
        if dtype == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        assert np.array_equal(tensor.permute(axes).double().numpy(), stored.numbers[study_id])


def test_a_type_that_the_bytes_do_not_have_is_refused_when_opened(
    stored: Stored, tmp_path: Path
) -> None:
    folder = shutil.copytree(stored.folder, tmp_path / "shards")
    manifest = json.loads((folder / "manifest.json").read_text())
    other = "uint8" if stored.contract.itemsize == 2 else "float16"
    spec = Spec(shape_hwd=SHAPE_HWD, dtype=other)  # type: ignore[arg-type]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"spec": spec.to_dict()}))
    message = rf"has {stored.spec.size_bytes} bytes, and .* asks for {spec.size_bytes}"
    with pytest.raises(MismatchError, match=message):
        VolumeDataset(folder)
