"""Several windows as channels, against NumPy's float32 on what the tars hold."""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ctgpu
from built import read_samples
from ctgpu.errors import UsageError
from ctgpu.loading import WINDOWS, VolumeDataset, make_loader
from ctgpu.loading.window import Scaling, apply_scalings, rewindow, rewindow_each
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate
from ctgpu.volume.stored import numbers_of

torch = pytest.importorskip("torch")

Floats = npt.NDArray[np.float32]
SPACING_MM = (7.0, 6.0, 10.0)
STUDIES = [f"valid_{n}_a_1" for n in range(1, 6)]
SHAPE_HWD = (20, 18, 14)
BOX_HWD = (9, 7, 5)
#: In no order, overlapping, and one of them twice.
CHOSEN: list[Any] = ["mediastinum", (-1150, 350), "bone", (-720.5, 140.0), "mediastinum"]
FIELDS: dict[str, dict[str, Any]] = {
    "float16": {"hu_window": (-1200, 1100), "output_range": (0, 1)},
    "bfloat16": {"hu_window": (-1200, 1100), "standardise": (0.1, 0.5)},
    "int16": {"hu_window": None},
    "uint8": {"hu_window": (-1150, 1050), "output_range": (0, 1)},
}


@dataclass(frozen=True)
class Stored:
    """A folder, and the numbers (D, H, W) that its tars hold, by study id."""

    folder: Path
    spec: Spec
    numbers: dict[str, Floats]


@pytest.fixture(scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("windows") / "source"
    lay_out_ct_rate(
        source,
        {
            study_id: Volume(chest_phantom((36, 34, 24), SPACING_MM, seed), SPACING_MM)
            for seed, study_id in enumerate(STUDIES)
        },
    )
    return source


@pytest.fixture(scope="module", params=itertools.product(FIELDS, ("HWD", "DHW")), ids="-".join)
def stored(request: pytest.FixtureRequest, _source: Path) -> Stored:
    dtype, layout = request.param
    spec = Spec(
        target_spacing_mm=(12, 12, 16),
        shape_hwd=SHAPE_HWD,
        layout=layout,
        dtype=dtype,
        **FIELDS[dtype],
    )
    folder = _source.parent / f"{dtype}-{layout}"
    ctgpu.build(folder, source=_source, spec=spec, samples_per_shard=2, device="cpu")
    bits = {"float16": "<f2", "bfloat16": "<u2", "int16": "<i2", "uint8": "u1"}[dtype]
    numbers = {}
    for study_id, sample in read_samples(folder).items():
        array = np.frombuffer(sample.volume, bits).reshape(spec.stored_shape)
        numbers[study_id] = numbers_of(
            array.transpose(2, 0, 1) if layout == "HWD" else array, dtype
        )
    return Stored(folder, spec, numbers)


def by_numpy(numbers: Floats, scaling: Scaling) -> Floats:
    """In float32, rounded once to the nearest number of 16 bits, ties to even; as float32."""
    exact = np.clip(numbers * np.float32(scaling.scale) + np.float32(scaling.offset), -1, 1)
    assert exact.dtype == np.float32
    if scaling.dtype == "float16":
        return exact.astype(np.float16).astype(np.float32)
    bits = exact.view(np.uint32)
    rounded: Floats = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).view(np.float32)
    return rounded


def in_hu(numbers: Floats, spec: Spec) -> npt.NDArray[np.float64]:
    """What stored numbers stand for, by the contract."""
    if spec.dtype == "int16":
        return numbers.astype(np.float64)
    low, high = spec.output_range if spec.dtype != "uint8" else (0, 255)
    mean, std = spec.standardise or (0, 1)
    assert spec.hu_window is not None
    lo, hi = spec.hu_window
    hu: npt.NDArray[np.float64] = (numbers.astype(np.float64) * std + mean - low) / (high - low)
    return hu * (hi - lo) + lo


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("box_hwd", [None, BOX_HWD], ids=["whole", "crop"])
def test_each_channel_is_a_window_of_what_is_stored_rounded_once(
    stored: Stored,
    box_hwd: tuple[int, int, int] | None,
    copy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctgpu.loading.window._PART_VOXELS", 1000)  # several, the last one short
    dtype = "bfloat16" if stored.spec.dtype == "bfloat16" else "float16"
    options: dict[str, Any] = {"random_crop_hwd": box_hwd, "shuffle": True, "seed": 4}
    plain = make_loader(stored.folder, 2, **options)
    loader = make_loader(stored.folder, 2, windows=CHOSEN, copy=copy, **options)
    seen = []
    for _ in range(2):
        for before, batch in zip(plain, loader, strict=True):
            volume = batch["volume"]
            rows = len(batch["study_id"])
            d, h, w = before["volume"].shape[2:]
            assert volume.shape == (rows, len(CHOSEN), d, h, w)
            assert volume.dtype == getattr(torch, dtype)
            assert batch["study_id"] == before["study_id"]
            numbers = before["volume"][:, 0].float().numpy()
            if box_hwd is None:
                for row, study_id in enumerate(batch["study_id"]):
                    assert np.array_equal(numbers[row], stored.numbers[study_id])
            for channel, one in enumerate(CHOSEN):
                found = volume[:, channel].float().numpy()
                assert np.array_equal(found, by_numpy(numbers, rewindow(stored.spec, one)))
                lo, hi = WINDOWS[one] if isinstance(one, str) else one
                exact = np.clip((in_hu(numbers, stored.spec) - lo) / (hi - lo) * 2 - 1, -1, 1)
                half_step = 2**-9 if dtype == "bfloat16" else 2**-12
                assert np.abs(found - exact).max() <= half_step + 6e-6
            seen += batch["study_id"]
    assert sorted(seen) == sorted(STUDIES * 2)


def test_channels_are_contiguous_where_the_stored_axes_are(stored: Stored) -> None:
    volume = next(iter(make_loader(stored.folder, 2, windows=CHOSEN)))["volume"]
    if stored.spec.layout == "HWD":
        volume = volume.permute(0, 1, 3, 4, 2)
    assert volume.is_contiguous()


def test_one_window_is_one_channel_the_same_as_by_window(stored: Stored) -> None:
    by_window = make_loader(stored.folder, 2, window="bone")
    for one, other in zip(by_window, make_loader(stored.folder, 2, windows=("bone",)), strict=True):
        assert other["volume"].shape[1] == 1
        assert torch.equal(one["volume"], other["volume"])


def test_batches_that_are_kept_stay_what_they_are(stored: Stored) -> None:
    loader = make_loader(stored.folder, 1, windows=CHOSEN)
    batches = list(loader)
    for batch in batches:
        numbers = stored.numbers[batch["study_id"][0]]
        for channel, scaling in enumerate(rewindow_each(stored.spec, CHOSEN)):
            found = batch["volume"][0, channel].float().numpy()
            assert np.array_equal(found, by_numpy(numbers, scaling))


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("prefetched", [1, 2])
def test_memory_is_that_of_all_channels(stored: Stored, prefetched: int, copy: bool) -> None:
    batch_bytes = 2 * 2 * 3 * 20 * 18 * 14
    pages = -(-batch_bytes // 4096) * 4096
    loader = make_loader(
        stored.folder, 2, windows=CHOSEN[:3], copy=copy, prefetch_bytes=prefetched * batch_bytes
    )
    addresses = set()
    for _ in range(3):
        for batch in loader:
            addresses.add(batch["volume"].data_ptr())
            assert loader.buffer_bytes <= (prefetched + 2) * pages
            assert loader.buffer_bytes % pages == 0
        del batch
    assert len(addresses) <= prefetched + 2


def test_a_state_goes_on_with_other_windows_and_other_ranks(stored: Stored) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 7}
    loader = make_loader(stored.folder, 1, windows=CHOSEN, **options)
    batches = iter(loader)
    first = [next(batches)["study_id"][0] for _ in range(2)]
    state = loader.state_dict()
    whole = make_loader(stored.folder, 1, **options)
    assert whole.state_dict().keys() == state.keys()
    rest = []
    ranks = [
        make_loader(
            stored.folder, 1, windows=["bone"], rank=rank, world_size=2, drop_last=True, **options
        )
        for rank in range(2)
    ]
    for one in (whole, *ranks):
        one.load_state_dict(state)
    for step in zip(*ranks, strict=True):
        rest += [batch["study_id"][0] for batch in step]
    left = [batch["study_id"][0] for batch in whole]
    assert sorted(first + left) == STUDIES
    assert rest == left[:2]


def test_the_next_good_sample_takes_the_place_of_a_damaged_one(
    stored: Stored, tmp_path: Path
) -> None:
    folder = shutil.copytree(stored.folder, tmp_path / "own")
    shard, _ = VolumeDataset(folder).locate(1)
    data, volume = shard.path.read_bytes(), read_samples(folder)[STUDIES[1]].volume
    assert data.count(volume) == 1
    shard.path.write_bytes(data.replace(volume, bytes(len(volume))))
    loader = make_loader(folder, 5, windows=CHOSEN, on_error="skip")
    (batch,) = list(loader)
    assert batch["study_id"] == [STUDIES[n] for n in (0, 2, 2, 3, 4)]
    for row, study_id in enumerate(batch["study_id"]):
        for channel, scaling in enumerate(rewindow_each(stored.spec, CHOSEN)):
            found = batch["volume"][row, channel].float().numpy()
            assert np.array_equal(found, by_numpy(stored.numbers[study_id], scaling))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize(("samples", "voxels"), [(1, 1), (1, 1001), (2, 1), (3, 257), (5, 2)])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("part_voxels", [1, 7, 1 << 18])
def test_what_is_read_into_the_end_of_the_room_is_used_before_it_is_written_over(
    dtype: str,
    samples: int,
    voxels: int,
    channels: int,
    part_voxels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctgpu.loading.window._PART_VOXELS", part_voxels)
    numbers = np.random.default_rng(voxels).integers(0, 256, (samples, voxels)).astype(dtype)
    room = torch.zeros((samples, channels, voxels), dtype=torch.float16)
    read = room.view(-1).view(getattr(torch, dtype))[-numbers.size :].view(samples, voxels)
    read.copy_(torch.from_numpy(numbers))
    scalings = [Scaling((1 + c) / 255, -0.3 * c, "float16") for c in range(channels)]
    apply_scalings(read, scalings, room)
    for channel, scaling in enumerate(scalings):
        expected = by_numpy(numbers.astype(np.float32), scaling)
        assert np.array_equal(room[:, channel].float().numpy(), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": []}, "windows is []; it takes a list of windows, a channel each, such as"),
        ({"windows": ()}, "windows is (); it takes a list of windows"),
        ({"windows": "lung"}, "windows is 'lung'; it takes a list of windows"),
        ({"windows": (-1150, 350)}, "windows is (-1150, 350); it takes a list of windows"),
        ({"windows": {"bone", "lung"}}, "it takes a list of windows"),
        ({"windows": [None]}, "windows is [None]; it takes a list of windows"),
        ({"windows": 3}, "windows is 3; it takes a list of windows"),
        ({"windows": ["bone", "liver"]}, "windows has 'liver'; it is one of lung, soft_tissue, "),
        ({"windows": ["bone", (5, 5)]}, "(5.0, 5.0); the first must be below the second"),
        ({"windows": ["bone", (1, 2, 3)]}, "(1, 2, 3); it takes 2 finite numbers"),
        (
            {"windows": ["bone"], "window": "bone"},
            "window is 'bone' and windows is ['bone']; give one of them",
        ),
        (
            {"windows": ["mediastinum", "lung", (-500, 2000)]},
            "windows has 'lung', which is -1350 to 150 HU, and the data set holds -1000 to 1000 HU "
            "only; choose windows within, or build with --hu-window -1350,2000, or with --dtype "
            "int16 --hu-window none",
        ),
        (
            {"windows": [(-1000, 1000.5)]},
            "windows has (-1000, 1000.5), which is -1000 to 1000.5 HU, and the data set holds "
            "-1000 to 1000 HU only; choose windows within, or build with --hu-window -1000,1000.5",
        ),
    ],
)
def test_what_is_no_list_of_stored_windows_is_refused(
    hwd: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_loader(hwd, **options)


def test_the_whole_stored_window_is_covered(hwd: Path) -> None:
    for before, batch in zip(
        make_loader(hwd, 2), make_loader(hwd, 2, windows=[(-1000, 1000)]), strict=True
    ):
        assert torch.equal(before["volume"], batch["volume"])


def test_int16_holds_the_window_that_it_was_clipped_to() -> None:
    assert rewindow_each(Spec(dtype="int16", hu_window=None), [(-3000, 20_000)])
    with pytest.raises(UsageError, match=r"holds -900 to 700 HU only.*--hu-window -1150,700, or"):
        rewindow_each(Spec(dtype="int16", hu_window=(-900, 700)), [(-1150, 350)])


@pytest.mark.parametrize("normalise", ["minmax", "zscore"])
def test_volumes_with_scales_of_their_own_have_no_windows(normalise: Any) -> None:
    message = (
        f"windows is ['lung'], and the data set was built with normalise='{normalise}', so each "
        "volume has a scale of its own; build with dtype='int16' to choose windows when loading, "
        "or leave windows out"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        rewindow_each(Spec(normalise=normalise), ["lung"])
