"""What a loader takes: data sets, their subsets, folders; and what it says of missing labels."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from loading_cases import UNLABELLED
from test_loader import studies, volumes

from ctgpu.errors import UsageError
from ctgpu.loading import VolumeDataset, make_loader

torch = pytest.importorskip("torch")


def test_studies_without_labels_are_named_in_one_warning(
    hwd: Path, part_labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loader = make_loader(part_labelled, 2)
        for _ in range(2):
            missing = [
                study_id
                for batch in loader
                for row, study_id in enumerate(batch["study_id"])
                if batch["labels"][row].isnan().all()
            ]
            assert missing == UNLABELLED
    (record,) = caplog.records
    assert record.getMessage().startswith("3 of 11 samples have no label row: their labels are NaN")
    assert "labelled_only=True" in record.getMessage()
    caplog.clear()
    make_loader(hwd)
    make_loader(part_labelled, labelled_only=True)
    assert caplog.records == []


def test_labelled_only_leaves_the_others_out_in_equal_steps(part_labelled: Path) -> None:
    labelled = [f"valid_{n}_a_1" for n in range(1, 12) if f"valid_{n}_a_1" not in UNLABELLED]
    loader = make_loader(part_labelled, 3, labelled_only=True)
    assert studies(loader) == labelled
    assert len(loader) == 3
    assert not any(batch["labels"].isnan().any() for batch in loader)
    for world_size in (2, 3, 5):
        ranks = [
            make_loader(
                part_labelled, 1, shuffle=True, labelled_only=True, rank=rank, world_size=world_size
            )
            for rank in range(world_size)
        ]
        assert {len(rank) for rank in ranks} == {-(-8 // world_size)}
        together = [s for step in zip(*ranks, strict=True) for b in step for s in b["study_id"]]
        assert sorted(together[:8]) == sorted(labelled)
        assert set(together) == set(labelled)


def test_labelled_only_of_what_has_no_labels_is_refused(part_labelled: Path) -> None:
    dataset = VolumeDataset(part_labelled).select(UNLABELLED)
    with pytest.raises(UsageError, match=r"3 samples .* has no labelled samples"):
        make_loader(dataset, labelled_only=True)
    assert studies(make_loader(dataset)) == UNLABELLED


def test_a_subset_is_read_in_the_order_of_its_indices(folder: Path) -> None:
    dataset = VolumeDataset(folder)
    expected = volumes(folder)
    subset = torch.utils.data.Subset(dataset, [7, 2, 2, -1, 0])
    wanted = [f"valid_{n}_a_1" for n in (8, 3, 3, 11, 1)]
    assert [sample["study_id"] for sample in subset] == wanted
    batches = list(make_loader(subset, 2))
    assert studies(batches) == wanted
    for batch in batches:
        for row, study_id in enumerate(batch["study_id"]):
            assert torch.equal(batch["volume"][row], expected[study_id])
    shuffled = make_loader(subset, 2, shuffle=True, shuffle_window_bytes=1)
    assert sorted(studies(shuffled)) == sorted(wanted)
    # A subset of one, and of a selection.
    assert studies(make_loader(torch.utils.data.Subset(subset, [3, 0]))) == [wanted[3], wanted[0]]
    part = torch.utils.data.Subset(dataset.select([4, 9]), torch.tensor([1]))
    assert studies(make_loader(part)) == ["valid_10_a_1"]


def test_the_parts_of_a_random_split_are_disjoint_and_whole(hwd: Path) -> None:
    parts = torch.utils.data.random_split(
        VolumeDataset(hwd), [0.7, 0.3], torch.Generator().manual_seed(1)
    )
    loaded = [studies(make_loader(part, 2, shuffle=True)) for part in parts]
    assert [len(part) for part in loaded] == [8, 3]
    assert sorted(itertools.chain(*loaded)) == sorted(f"valid_{n}_a_1" for n in range(1, 12))
    ranks = [make_loader(parts[0], 1, rank=rank, world_size=3) for rank in range(3)]
    assert {len(studies(rank)) for rank in ranks} == {3}


def test_what_make_loader_cannot_read_is_refused_with_what_it_can(hwd: Path) -> None:
    dataset = VolumeDataset(hwd)

    class Doubled(torch.utils.data.Subset):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(index)["volume"] * 2

        def __getitems__(self, indices: Any) -> Any:
            return [self[index] for index in indices]

    for source, message in (
        (Doubled(dataset, [0]), "Doubled changes the samples.*transform="),
        (torch.utils.data.Subset([1, 2], [0]), "neither a path nor a list"),  # type: ignore[arg-type]
        (torch.utils.data.ConcatDataset([dataset]), "ConcatDataset; it takes a VolumeDataset"),  # type: ignore[list-item]
        (torch.utils.data.Subset(dataset, []), "0 samples .* has no samples to load"),
        (dataset.select([]), "0 samples .* has no samples to load"),
        (torch.utils.data.Subset(dataset, [11]), "there is no sample 11"),
        ([dataset], "neither a path nor a list of paths"),
        (None, "a NoneType; it takes"),
    ):
        with pytest.raises(UsageError, match=message):
            make_loader(source)  # type: ignore[arg-type]


def test_several_folders_are_loaded_as_one(hwd: Path, own: Path) -> None:
    loader = make_loader([hwd, own], 2, shuffle=True, seed=3)
    found = studies(loader)
    assert len(found) == 22
    assert sorted(found) == sorted(2 * [f"valid_{n}_a_1" for n in range(1, 12)])


def test_labels_with_blanks_are_told_in_the_same_warning(
    blank_labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (batch,) = make_loader(blank_labelled, 6)
    unknown = batch["labels"].isnan().sum(dim=1).tolist()
    assert dict(zip(batch["study_id"], unknown, strict=True)) == {
        f"valid_{n}_a_1": {2: 3, 3: 18, 4: 18}.get(n, 0) for n in range(1, 7)
    }
    (message,) = caplog.messages
    assert message.startswith("2 of 6 samples have no label row: their labels are NaN; 1 of 6 ")
    assert "labelled_only=True" in message
    assert "not sample.partly_labelled" in message


def test_a_blank_row_is_no_label_and_one_with_blanks_is(
    blank_labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    labelled = [f"valid_{n}_a_1" for n in (1, 2, 5, 6)]
    assert studies(make_loader(blank_labelled, labelled_only=True)) == labelled
    (message,) = caplog.messages
    assert message.startswith("1 of 4 samples have a label row with blanks: these are NaN")
    assert "labelled_only" not in message
    caplog.clear()
    whole = VolumeDataset(blank_labelled).select(lambda s: s.labelled and not s.partly_labelled)
    loader = make_loader(whole, 2)
    assert studies(loader) == [f"valid_{n}_a_1" for n in (1, 5, 6)]
    assert not any(batch["labels"].isnan().any() for batch in loader)
    assert caplog.messages == []
    only_blank = VolumeDataset(blank_labelled).select(["valid_4_a_1"])
    with pytest.raises(UsageError, match="no labelled samples"):
        make_loader(only_blank, labelled_only=True)
