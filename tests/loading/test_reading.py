"""Batches read ahead: their threads, their memory, and what damaged samples do to them."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import flip_byte, studies, volumes

from ctgpu.errors import FetchError, StorageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.order import EpochOrder, Share
from ctgpu.loading.reading import BatchReader
from ctgpu.loading.targets import HostTarget

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("prefetch_bytes", [0, 1 << 18, 1 << 30])
def test_a_batch_is_valid_until_the_next_but_one(hwd: Path, prefetch_bytes: int) -> None:
    expected = volumes(hwd)
    loader = make_loader(hwd, 2, prefetch_bytes=prefetch_bytes, copy=False)
    previous: Any = None
    for epoch in range(2):
        for batch in loader:
            for kept in (previous, batch):
                for row, study_id in enumerate(kept["study_id"] if kept else ()):
                    assert torch.equal(kept["volume"][row], expected[study_id]), epoch
            previous = batch


def test_views_share_buffers_and_copies_do_not(hwd: Path) -> None:
    expected = volumes(hwd)
    views = list(make_loader(hwd, prefetch_bytes=0, copy=False))
    assert len({batch["volume"].data_ptr() for batch in views}) < len(views)
    copies = list(make_loader(hwd, prefetch_bytes=0, copy=True))
    assert len({batch["volume"].data_ptr() for batch in copies}) == len(copies)
    for batch in copies:
        assert torch.equal(batch["volume"][0], expected[batch["study_id"][0]])


@pytest.mark.parametrize("options", [{}, {"prefetch_bytes": 0}, {"num_threads": 1}])
def test_whoever_collects_batches_has_the_right_ones(folder: Path, options: dict[str, Any]) -> None:
    expected = volumes(folder)
    loader = make_loader(folder, 2, shuffle=True, **options)
    kept = [*list(loader), *sorted(loader, key=lambda batch: batch["study_id"])]
    # Also parts, and other views of them, when all else of a batch is gone.
    rows = [(b["study_id"][1], b["volume"].numpy()[1]) for b in loader if len(b["study_id"]) > 1]
    next(iter(loader))
    assert len(kept) == 12
    for batch in kept:
        for row, study_id in enumerate(batch["study_id"]):
            assert torch.equal(batch["volume"][row], expected[study_id])
    for study_id, volume in rows:
        assert torch.equal(torch.from_numpy(volume), expected[study_id])


@pytest.mark.slow
def test_batches_that_are_kept_outlive_their_loader_and_may_be_written_to(hwd: Path) -> None:
    expected = volumes(hwd)
    loader = make_loader(hwd, 2)
    batches = iter(loader)
    first, second = next(batches), next(batches)
    first["volume"].zero_()
    del loader, batches
    gc.collect()
    assert not first["volume"].any()
    for row, study_id in enumerate(second["study_id"]):
        assert torch.equal(second["volume"][row], expected[study_id])


def test_memory_of_batches_that_are_dropped_is_read_into_again(hwd: Path) -> None:
    batch_bytes = 2 * VolumeDataset(hwd).spec.size_bytes
    loader = make_loader(hwd, 2, prefetch_bytes=2 * batch_bytes)
    ours = (2 + 2) * (batch_bytes + 4096)
    addresses = set()
    for _ in range(3):
        for batch in loader:
            addresses.add(batch["volume"].data_ptr())
            assert loader.buffer_bytes <= ours
        del batch
    assert len(addresses) == 4
    held = [*loader, *loader]
    assert loader.buffer_bytes >= len(held) * batch_bytes > ours
    del held
    assert loader.buffer_bytes <= ours


@pytest.mark.parametrize(
    "part",
    [
        lambda volume: volume,
        lambda volume: volume[0, 0, 3:5],
        lambda volume: volume.numpy()[:, :, 1],
        lambda volume: volume.transpose(2, 4).detach(),
    ],
)
def test_what_is_held_of_a_batch_is_not_read_into(part: Callable[..., Any], hwd: Path) -> None:
    loader = make_loader(hwd, 1, prefetch_bytes=0)
    expected = [part(batch["volume"].clone()) for batch in loader]
    for _ in range(3):
        held = [part(batch["volume"]) for batch in loader]
        for mine, right in zip(held, expected, strict=True):
            np.testing.assert_array_equal(mine, right)


def test_buffers_keep_to_the_budget_over_epochs(hwd: Path) -> None:
    batch_bytes = 3 * VolumeDataset(hwd).spec.size_bytes
    loader = make_loader(hwd, 3, shuffle=True, prefetch_bytes=2 * batch_bytes + 1, copy=False)
    taken = []
    for _ in range(3):
        for _batch in loader:
            taken.append(loader.buffer_bytes)
    pages = -(-batch_bytes // 4096) * 4096
    assert max(taken) == (2 + 2) * pages
    assert taken[4:] == [max(taken)] * len(taken[4:])


def test_readers_end_with_the_iteration(hwd: Path) -> None:
    def ours() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("ctgpu-")]

    batches = iter(make_loader(hwd, num_threads=3))
    next(batches)
    assert ours()
    del batches
    assert ours() == []


def test_a_bad_sample_raises_or_the_next_one_takes_its_place(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, entry = VolumeDataset(own).locate(4)
    flip_byte(own / "shard-000001.tar", entry.members["bin"].offset + 77)
    loader = make_loader(own, 2)
    batches = iter(loader)
    seen = next(batches)["study_id"] + next(batches)["study_id"]
    assert seen == [f"valid_{n}_a_1" for n in range(1, 5)]
    with pytest.raises(FetchError, match=r"valid_5_a_1\.bin does not have its checksum"):
        next(batches)
    with caplog.at_level(logging.WARNING):
        found = studies(make_loader(own, 2, on_error="skip"))
    assert found == [f"valid_{n}_a_1" for n in (1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11)]
    assert "valid_5_a_1" in caplog.text
    assert studies(make_loader(VolumeDataset(own, verify="off"), 2))[4] == "valid_5_a_1"


def test_where_no_sample_is_good_skipping_ends(own: Path) -> None:
    for tar in own.glob("*.tar"):
        tar.write_bytes(b"")
    with pytest.raises(FetchError, match="ends within"):
        studies(make_loader(own, on_error="skip"))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_shard_that_vanishes_within_an_epoch_is_a_clear_error(own: Path, on_error: Any) -> None:
    batches = iter(make_loader(own, 1, on_error=on_error, prefetch_bytes=0))
    next(batches)
    (own / "shard-000003.tar").unlink()
    with pytest.raises(StorageError, match=r"shard-000003\.tar cannot be opened.*put the shard"):
        list(batches)


def test_a_reader_gives_a_share_of_any_epoch_from_any_place_on(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)
    order = EpochOrder([len(dataset)], dataset.spec.size_bytes, True, 3, None)
    reader = BatchReader(
        dataset,
        order,
        HostTarget(dataset.spec, dataset.memory_layout, (), copy=False),
        batch_size=2,
        prefetch_batches=1,
        threads=2,
        skip_bad=False,
        box=None,
    )
    assert reader.total == 11
    assert reader.buffer_bytes == 0
    whole = [dataset.study_ids[number] for number in order.of(4)]
    shares = (whole[4:6] + whole[8:10], whole[6:8] + whole[10:] + whole[:1])
    for rank, wanted in enumerate(shares):
        seen = []
        for batch, buffer, _skipped in reader.read_ahead(Share(2, rank, 2, False), 4, 4):
            assert buffer is not None  # lent, and whoever took the batch gives it back
            seen += batch["study_id"]
            buffer.release()
        assert seen == wanted
    ahead = reader.read_ahead(Share(2, 0, 1, True), epoch=0, position=0)
    assert len(next(ahead)[0]["study_id"]) == 2
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ctgpu-")]
