"""Batches of raw volumes are those of the shards that a build makes of them."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from online_cases import CUT, NOT_HU, OPTIONS, SPEC, STUDIES, same, studies

import ctgpu
from ctgpu.errors import DecodeError, FetchError, IntensityError, MismatchError, UsageError
from ctgpu.loading import RawDataset, VolumeDataset, make_loader
from ctgpu.testing.faults import Faults
from ctgpu.testing.hub import LocalHub
from raw_tars import SPEC as TAR_SPEC
from raw_tars import lay_out, samples
from support.emulated_machine import in_this_process


def threads_of_ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("ctgpu-")]


def test_samples_are_those_of_the_shards(good_source: Path, good_shards: Path) -> None:
    raw, built = RawDataset(good_source, **OPTIONS), VolumeDataset(good_shards)
    assert (raw.spec, raw.class_names) == (built.spec, built.class_names)
    assert raw.study_ids == built.study_ids
    assert [e.labelled for e in raw.entries] == [e.labelled for e in built.entries]
    assert np.array_equal(raw.shard_of, built.shard_of)
    assert np.array_equal(raw.read_labels(), built.read_labels())
    assert len(raw) == 8
    assert repr(raw).startswith("RawDataset(")
    for key in (0, -1, "valid_5_a_1"):
        ours, theirs = raw[key], built[key]
        assert ours.keys() == theirs.keys()
        assert ours["volume"].tobytes() == theirs["volume"].tobytes()
        assert np.array_equal(ours["labels"], theirs["labels"])
        assert (ours["report"], ours["study_id"]) == (theirs["report"], theirs["study_id"])
        assert raw.metadata(key) == built.metadata(key)
    with pytest.raises(KeyError):
        raw["valid_9_a_1"]
    with pytest.raises(IndexError):
        raw[8]
    with pytest.raises(UsageError, match="give it an array of float16"):
        raw.read_into(0, np.empty(SPEC.stored_shape, np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": True, "seed": 4},
        {"shuffle": True, "seed": 4, "shuffle_window_bytes": 300_000},
        {"shuffle": True, "class_balanced": True},
        {"random_crop_hwd": (20, 17, 9), "shuffle": True},
        {"windows": ["mediastinum", (-200, 300)], "labelled_only": True},
        {"drop_last": True, "copy": False, "rank": 1, "world_size": 2},
    ],
)
def test_batches_and_states_are_those_of_the_shards(
    good_source: Path, good_shards: Path, options: dict[str, Any]
) -> None:
    raw = make_loader(RawDataset(good_source, **OPTIONS), 3, **options)
    built = make_loader(good_shards, 3, **options)
    assert len(raw) == len(built)
    for _ in range(2):
        for ours, theirs in zip(raw, built, strict=True):
            assert same(ours, theirs)
            assert raw.state_dict() == built.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "DHW", "dtype": "int16"},
        {"dtype": "bfloat16", "normalise": "zscore", "hu_window": None},
        {"layout": "DHW", "dtype": "uint8", "output_range": (0.0, 1.0), "orientation": "RAS"},
        {
            "normalise": "percentiles",
            "percentiles": (1.0, 99.0),
            "hu_window": None,
            "fit": "contain",
        },
        {"crop": "foreground", "grid": "origin"},
    ],
)
def test_every_contract_gives_the_bits_of_a_build(
    tmp_path: Path, good_source: Path, changes: dict[str, Any]
) -> None:
    options = dict(OPTIONS) | {"spec": replace(SPEC, **changes), "limit": 3}
    ctgpu.build(tmp_path / "built", source=good_source, **options)
    raw, built = RawDataset(good_source, **options), VolumeDataset(tmp_path / "built")
    boxes = {"random_crop_hwd": (21, 30, 7), "seed": 3}
    for more in ({}, boxes):
        ours, theirs = make_loader(raw, 3, **more), make_loader(built, 3, **more)
        for one, other in zip(ours, theirs, strict=True):
            assert same(one, other)


def test_a_failed_sample_is_a_hole_here_as_in_the_shards(source: Path, shards: Path) -> None:
    for options in ({"shuffle": True, "seed": 6}, {"random_crop_hwd": (9, 8, 7)}):
        raw = make_loader(RawDataset(source, **OPTIONS), 2, on_error="skip", **options)
        built = make_loader(shards, 2, **options)
        assert len(raw) == len(built) == 4
        for ours, theirs in zip(raw, built, strict=True):
            assert same(ours, theirs)
            assert raw.state_dict() == built.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_goes_on_from_raw_to_shards_and_back_at_every_step(
    source: Path, shards: Path, ranks: int
) -> None:
    raw = RawDataset(source, **OPTIONS)

    def make(of: str, rank: int = 0, world_size: int = 1) -> Any:
        return make_loader(
            raw if of == "raw" else shards,
            1,
            shuffle=True,
            seed=11,
            on_error="skip",
            rank=rank,
            world_size=world_size,
        )

    whole = studies(make("shards"))
    for before, after in (("raw", "shards"), ("shards", "raw")):
        for stop in range(len(whole)):
            first = make(before)
            batches = iter(first)
            for _ in range(stop):
                next(batches)
            state = json.loads(json.dumps(first.state_dict()))
            batches.close()  # type: ignore[attr-defined]
            rest = [make(after, rank, ranks) for rank in range(ranks)]
            for loader in rest:
                loader.load_state_dict(state)
            together = [s for step in zip(*rest, strict=True) for b in step for s in b["study_id"]]
            assert together[: len(whole) - stop] == whole[stop:]


def test_errors_are_those_that_a_build_would_note(source: Path) -> None:
    raw = RawDataset(source, **OPTIONS)
    with pytest.raises(DecodeError, match=CUT):
        raw[CUT]
    with pytest.raises(IntensityError):
        raw[NOT_HU]
    with pytest.raises(DecodeError, match=CUT):
        studies(make_loader(raw))


def test_a_source_that_changes_under_an_epoch_is_refused_by_name(own_source: Path) -> None:
    raw = RawDataset(own_source, **OPTIONS)
    (file,) = own_source.rglob("valid_3_a_1.nii.gz")
    file.write_bytes(file.read_bytes() + b"\0")
    loader = make_loader(raw, on_error="skip")
    with pytest.raises(FetchError, match=r"valid_3_a_1\.nii\.gz"):
        studies(loader)
    assert loader.state_dict()["position"] == 2
    file.unlink()
    with pytest.raises(FetchError, match=r"valid_3_a_1\.nii\.gz"):
        raw["valid_3_a_1"]


def test_a_loop_that_is_left_early_leaves_no_thread(good_source: Path) -> None:
    loader = make_loader(RawDataset(good_source, num_threads=5, **OPTIONS), 2)
    for _ in loader:
        assert threads_of_ours()
        break
    iter(loader)
    del _
    batches = iter(loader)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threads_of_ours() == []


def test_a_loader_reads_a_volume_ahead_for_each_thread(
    good_source: Path, good_shards: Path
) -> None:
    raw = RawDataset(good_source, num_threads=5, **OPTIONS)
    assert (raw.reader_threads, raw.samples_ahead) == (5, 5)
    assert VolumeDataset(good_shards).samples_ahead == 0
    batch_bytes = SPEC.size_bytes * 2
    loaders = [make_loader(of, 2) for of in (raw, good_shards)]
    held = []
    for loader in loaders:
        iterator = iter(loader)
        held.append((next(iterator), loader.buffer_bytes // batch_bytes))
        iterator.close()  # type: ignore[attr-defined]
    # Three batches for five threads, and the one that was handed out; of shards two.
    assert [batches for _, batches in held] == [4, 3]


def test_dali_refuses_what_is_no_shard(good_source: Path) -> None:
    pytest.importorskip("nvidia.dali")
    from ctgpu.loading.dali import pipeline

    with pytest.raises(UsageError, match="is made of raw volumes when it is read, and DALI"):
        pipeline(RawDataset(good_source, **OPTIONS), 2)


def test_selections_are_those_of_a_volume_dataset(good_source: Path, good_shards: Path) -> None:
    raw, built = RawDataset(good_source, **OPTIONS), VolumeDataset(good_shards)
    wanted = ["valid_7_a_1", "valid_2_a_1"]
    assert raw.select(wanted).study_ids == built.select(wanted).study_ids
    ours, theirs = raw.take([6, 1, 6]), built.take([6, 1, 6])
    assert repr(ours).startswith("RawDataset(")
    for one, other in zip(make_loader(ours, 2), make_loader(theirs, 2), strict=True):
        assert same(one, other)
    state = make_loader(raw.select(wanted), shuffle=True).state_dict()
    make_loader(built.select(wanted), shuffle=True).load_state_dict(state)


def _bits_of(dataset: RawDataset) -> bytes:
    return bytes(dataset[2]["volume"].tobytes())


@pytest.mark.slow
def test_copies_and_other_processes_make_the_same(good_source: Path) -> None:
    raw = RawDataset(good_source, **OPTIONS)
    bits = _bits_of(raw)
    assert _bits_of(copy.deepcopy(raw)) == bits
    assert _bits_of(pickle.loads(pickle.dumps(raw)).take([2, 2, 2])) == bits
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(_bits_of, (raw,)) == bits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
def test_a_torch_dataloader_with_workers_reads_it(good_source: Path, good_shards: Path) -> None:
    from torch.utils.data import DataLoader

    batches = DataLoader(RawDataset(good_source, **OPTIONS), 3, num_workers=2)  # type: ignore[arg-type,var-annotated]
    for ours, theirs in zip(batches, make_loader(good_shards, 3), strict=True):
        assert ours["volume"].equal(theirs["volume"])
        assert ours["study_id"] == theirs["study_id"]


@pytest.mark.slow
def test_the_hub_is_a_source_too(good_source: Path, good_shards: Path) -> None:
    busy = Faults(statuses={"resolve": [200, 429, 200, 429, 503]}, retry_after="0")
    with LocalHub(good_source, "someone/CT-RATE", page_size=3, faults=busy) as hub:
        raw = RawDataset(repo_id="someone/CT-RATE", endpoint=hub.url, **OPTIONS)
        assert raw.reader_threads >= 4
        for ours, theirs in zip(make_loader(raw, 3), make_loader(good_shards, 3), strict=True):
            assert same(ours, theirs)
    assert busy.statuses == {"resolve": []}


def test_raw_tars_are_a_source_too(tmp_path: Path) -> None:
    tars = lay_out(tmp_path / "tars", samples(0), samples(2)) / "shard-{000000..000001}.tar"
    ctgpu.convert_tars(tars, tmp_path / "shards", spec=TAR_SPEC, device="cpu")
    raw = RawDataset(tars, spec=TAR_SPEC, device="cpu")
    built = VolumeDataset(tmp_path / "shards")
    assert len(raw) == 4
    for ours, theirs in zip(make_loader(raw, 2), make_loader(built, 2), strict=True):
        assert same(ours, theirs)


def test_what_is_finished_in_a_folder_is_read_there(
    good_source: Path, own_source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    whole = list(make_loader(RawDataset(good_source, **OPTIONS), 2))
    ctgpu.build(folder, source=own_source, **OPTIONS, shards=range(1, 2))
    # What is not needed any more may go.
    for study in STUDIES[3:6]:
        next(own_source.rglob(f"{study}.nii.gz")).unlink()
    raw = RawDataset(own_source, shards=folder, **OPTIONS)
    assert [bool(raw.locate(n)[1].members) for n in range(8)] == [False] * 3 + [True] * 3 + [
        False
    ] * 2
    for ours, theirs in zip(make_loader(raw, 2), whole, strict=True):
        assert same(ours, theirs)
    assert raw.metadata(3)["study_id"] == STUDIES[3]
    with pytest.raises(MismatchError, match="does not hold the volumes that were planned"):
        RawDataset(own_source, plan=folder, **OPTIONS)


def test_a_shard_that_is_finished_during_an_epoch_is_read(
    own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctgpu.online.finished._LOOK_EVERY_S", 0.0)
    folder = tmp_path / "shards"
    raw = RawDataset(own_source, shards=folder, **OPTIONS)
    whole = list(make_loader(raw, 1))
    batches = iter(make_loader(raw, 1, prefetch_bytes=0, num_threads=1))
    assert same(next(batches), whole[0])
    ctgpu.build(folder, source=own_source, **OPTIONS)
    for file in own_source.rglob("*.nii.gz"):
        file.unlink()
    for number in range(2, 8):  # one is read ahead
        ours = next(batches) if number > 2 else (next(batches), next(batches))[1]
        assert same(ours, whole[number])
    # And all of it without the source.
    again = RawDataset(own_source, shards=folder, **OPTIONS)
    assert studies(make_loader(again, 2)) == STUDIES
    assert again.study_ids == VolumeDataset(folder).study_ids


def test_a_failure_that_a_finished_shard_knows_is_not_tried_again(
    source: Path, shards: Path
) -> None:
    raw = RawDataset(source, shards=shards, **OPTIONS)
    with pytest.raises(ctgpu.CtgpuError, match=rf"{CUT}.* failed when its shard was built"):
        raw[CUT]
    ours, theirs = make_loader(raw, 2, on_error="skip"), make_loader(shards, 2)
    for one, other in zip(ours, theirs, strict=True):
        assert same(one, other)
    assert ours.state_dict() == theirs.state_dict()


def test_what_is_no_request_is_refused(good_source: Path, good_shards: Path) -> None:
    for options, sentence in (
        ({"device": 3}, "device is 3"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"memory_limit": "16G"}, "memory_limit is '16G'"),
        ({"plan": good_source}, r"there is no plan\.json"),
        ({"split": "nonsense!"}, "split is"),
    ):
        with pytest.raises(UsageError, match=sentence):
            RawDataset(good_source, **(dict(OPTIONS) | options))
    for name in ("force", "memory_limit_bytes", "nonsense"):
        with pytest.raises(TypeError, match=name):
            RawDataset(good_source, **{name: True})
    other = dict(OPTIONS) | {"spec": replace(SPEC, layout="DHW")}
    with pytest.raises(MismatchError, match=r"spec\.layout"):
        RawDataset(good_source, shards=good_shards, **other)
    # Of a plan nothing has to be said again.
    assert len(RawDataset(plan=good_shards / "plan.json")) == 8


@pytest.mark.slow
def test_a_gpu_makes_the_same_batches(
    good_source: Path, good_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    raw = RawDataset(good_source, **dict(OPTIONS) | {"device": "cuda:0"}).take([1, 6])
    built = VolumeDataset(good_shards).take([1, 6])
    for options in ({}, {"random_crop_hwd": (20, 17, 9)}):
        for ours, theirs in zip(
            make_loader(raw, 2, **options), make_loader(built, 2, **options), strict=True
        ):
            assert same(ours, theirs)


@pytest.mark.slow
def test_real_scans_are_those_of_a_build(tmp_path: Path, real_ct: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "limit": 2}
    ctgpu.build(tmp_path / "shards", source=real_ct, **options)
    raw, built = RawDataset(real_ct, **options), VolumeDataset(tmp_path / "shards")
    for ours, theirs in zip(make_loader(raw), make_loader(built), strict=True):
        assert same(ours, theirs)
    crops = {"random_crop_hwd": (96, 112, 64), "seed": 2}
    for ours, theirs in zip(make_loader(raw, **crops), make_loader(built, **crops), strict=True):
        assert same(ours, theirs)
