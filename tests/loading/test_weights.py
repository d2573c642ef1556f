"""Samples drawn by weight: how often, in which order, and by which weights."""

from __future__ import annotations

import itertools
import json
import logging
import math
import pickle
import shutil
import unicodedata
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_cases import STUDIES, UNLABELLED, flip_byte, studies

import ctgpu
from ctgpu.errors import FetchError, MismatchError, StorageError, UsageError
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.loading.order import EpochOrder
from ctgpu.loading.weights import balanced_weights

torch = pytest.importorskip("torch")

WEIGHTS = [0, 1, 2, 3, 4, 0, 8, 1, 1, 2, 10]
DRAWN_3_0 = [6, 1, 6, 6, 4, 3, 6, 10, 6, 9, 6]
BY_HAND = ["valid_1_a_1", "valid_2_a_1", "valid_3_a_1", "valid_4_a_1", "valid_5_a_1"]


def weighted(source: Any, batch_size: int = 1, **options: Any) -> Any:
    options = {"shuffle": True, "seed": 9, "sample_weights": WEIGHTS} | options
    return make_loader(source, batch_size, **options)


def order(weights: Any, seed: int = 3) -> EpochOrder:
    weights = np.array(weights, np.float64)
    return EpochOrder([len(weights)], 100, True, seed, None, None, weights)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, _built: dict[str, Path]) -> Path:
    """Labels of five studies: two classes that vary, a blank, and a study without a row."""
    root = tmp_path_factory.mktemp("by-hand")
    source = shutil.copytree(_built["HWD"].parent / "source", root / "source")
    (table,) = source.rglob("*labels*.csv")
    header = table.read_text().splitlines()[0]
    first_two = {1: ("1", "1"), 2: ("0", "1"), 3: ("0", "0"), 4: ("0", "")}
    rows = [
        ",".join([f"valid_{n}_a_1.nii.gz", *labels, *["0"] * 16]) for n, labels in first_two.items()
    ]
    table.write_text("\n".join([header, *rows]) + "\n")
    report = ctgpu.build(
        root / "out",
        source=source,
        spec=VolumeDataset(_built["HWD"]).spec,
        limit=5,
        samples_per_shard=2,
        device="cpu",
    )
    assert report.exit_code == 0
    return root / "out"


def test_seed_and_epoch_decide_what_is_drawn_in_every_version() -> None:
    # Written down: a resumed run must find it again, whatever NumPy it has.
    first = order(WEIGHTS).of(0).tolist()
    assert first == DRAWN_3_0
    assert first not in (order(WEIGHTS).of(1).tolist(), order(WEIGHTS, seed=4).of(0).tolist())


@pytest.mark.parametrize("scale", [1.0, 2.0**1019, 2.0**-1070])
def test_draws_are_those_of_exact_arithmetic(scale: float) -> None:
    weights = [0, 1, 4, 2, 0, 8, 1, 0]  # over a power of two, so that no float is rounded
    ends = list(itertools.accumulate(map(Fraction, weights)))
    for epoch in range(50):
        raw = np.random.Philox(key=[3, epoch], counter=[0, 0, 2, 0]).random_raw(len(weights))
        places = [Fraction(int(draw) >> 11, 1 << 53) * ends[-1] for draw in raw]
        expected = [next(n for n, end in enumerate(ends) if place < end) for place in places]
        assert order([w * scale for w in weights]).of(epoch).tolist() == expected


def test_each_sample_is_drawn_as_often_as_its_weight_says() -> None:
    epochs, total = 2000, len(WEIGHTS)
    drawn = Counter(n for epoch in range(epochs) for n in order(WEIGHTS).of(epoch).tolist())
    assert sum(drawn.values()) == epochs * total
    for number, weight in enumerate(WEIGHTS):
        share = weight / sum(WEIGHTS)
        # Five standard deviations of a binomial: one seed in 100,000 would be outside in any of 11.
        bound = 5 * math.sqrt(epochs * total * share * (1 - share))
        assert abs(drawn[number] - epochs * total * share) <= bound


@pytest.mark.parametrize("weights", [[1e308] * 40, [0.0, 5e-324, 0.0], [1e-300, 1.0, 0.0]])
def test_no_weight_is_too_large_or_too_small(weights: list[float]) -> None:
    drawn = order(weights).of(0)
    assert len(drawn) == len(weights)
    assert all(weights[number] > 0 for number in drawn)


def test_an_epoch_has_as_many_samples_as_there_are_and_epochs_differ(hwd: Path) -> None:
    loader = weighted(hwd, 4)
    first, second = studies(loader), studies(loader)
    assert len(first) == len(second) == 11
    assert first != second
    assert len(loader) == 3
    assert len(set(first)) < 11
    assert not {"valid_1_a_1", "valid_6_a_1"} & {*first, *second}  # of weight 0


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_have_what_one_rank_draws(hwd: Path, world_size: int) -> None:
    whole = studies(weighted(hwd))
    ranks = [weighted(hwd, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [s for step in zip(*ranks, strict=True) for b in step for s in b["study_id"]]
    assert together == whole + whole[: len(together) - 11]
    assert len(together) - 11 < world_size


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 3)])
def test_it_resumes_exactly_at_every_step(hwd: Path, before: int, after: int) -> None:
    loader = weighted(hwd)
    loader.set_epoch(1)
    whole, following = studies(loader), studies(loader)
    for stop in range(-(-11 // before) + 1):
        first = weighted(hwd, rank=before - 1, world_size=before)
        first.set_epoch(1)
        batches = iter(first)
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(first.state_dict()))
        batches.close()  # type: ignore[attr-defined]
        rest = [weighted(hwd, rank=rank, world_size=after) for rank in range(after)]
        for other in rest:
            other.load_state_dict(state)
        together = [s for step in zip(*rest, strict=True) for b in step for s in b["study_id"]]
        left = whole[min(stop * before, 11) :]
        assert together[: len(left)] == left
        assert len(together) - len(left) < after
        assert [studies(other)[0] for other in rest] == following[:after]


def test_the_state_of_other_weights_is_refused(hwd: Path) -> None:
    state = weighted(hwd).state_dict()
    unweighted = make_loader(hwd, shuffle=True, seed=9)
    others = [
        weighted(hwd, sample_weights=WEIGHTS[::-1]),
        weighted(hwd, sample_weights=None, class_balanced=True),
        unweighted,
    ]
    for other in others:
        with pytest.raises(MismatchError, match="sample_weights: found"):
            other.load_state_dict(state)
        with pytest.raises(MismatchError, match="sample_weights: found"):
            weighted(hwd).load_state_dict(other.state_dict())
    before = unweighted.state_dict()
    del before["sample_weights"]  # as it was written before there were weights
    unweighted.load_state_dict(before)
    with pytest.raises(MismatchError, match="sample_weights: found None"):
        weighted(hwd).load_state_dict(before)


@pytest.mark.parametrize(
    "weights",
    [
        tuple(WEIGHTS),
        np.array(WEIGHTS, np.uint8),
        torch.tensor(WEIGHTS, dtype=torch.bfloat16, requires_grad=True),
        dict(zip(STUDIES[::-1], WEIGHTS[::-1], strict=True)) | {"elsewhere": math.nan},
    ],
    ids=["tuple", "array", "tensor", "mapping"],
)
def test_weights_come_in_any_kind(hwd: Path, weights: Any) -> None:
    assert weighted(hwd, sample_weights=weights).state_dict() == weighted(hwd).state_dict()


def test_weights_follow_the_samples_into_a_part(hwd: Path, part_labelled: Path) -> None:
    dataset = VolumeDataset(hwd)
    by_study = dict(zip(STUDIES, WEIGHTS, strict=True))
    numbers = [6, 4, 4, 10, 0]
    subset = torch.utils.data.Subset(dataset, numbers)
    loader = weighted(subset, sample_weights=[0, 1, 0, 1, 0])
    assert set(studies(loader)) == {"valid_5_a_1", "valid_11_a_1"}
    expected = weighted(subset, sample_weights=[WEIGHTS[n] for n in numbers]).state_dict()
    assert weighted(dataset.take(numbers), sample_weights=by_study).state_dict() == expected
    # One for each sample that was opened, and those without labels take theirs along.
    labelled = [study_id for study_id in STUDIES if study_id not in UNLABELLED]
    only = weighted(part_labelled, labelled_only=True)
    state = only.state_dict()
    chosen = VolumeDataset(part_labelled).select(labelled)
    same = weighted(chosen, sample_weights=[by_study[study_id] for study_id in labelled])
    assert studies(only) == studies(same)
    assert weighted(chosen, sample_weights=by_study).state_dict() == state
    with pytest.raises(UsageError, match="0 for all 8 samples that are loaded"):
        weighted(
            part_labelled,
            labelled_only=True,
            sample_weights=[s in UNLABELLED and 1 for s in STUDIES],
        )


def test_the_good_one_after_a_damaged_one_takes_its_place(own: Path) -> None:
    drawn = studies(weighted(own))
    _, entry = VolumeDataset(own).locate(6)
    flip_byte(own / "shard-000002.tar", entry.members["bin"].offset + 77)
    assert "valid_7_a_1" in drawn
    with pytest.raises(FetchError, match="valid_7_a_1"):
        studies(weighted(own))
    expected = [
        next(s for s in drawn[place:] + drawn[:place] if s != "valid_7_a_1") for place in range(11)
    ]
    assert studies(weighted(own, on_error="skip")) == expected


def test_a_sample_that_is_drawn_again_has_another_crop(hwd: Path) -> None:
    crop: dict[str, Any] = {"random_crop_hwd": (9, 11, 5)}
    plain = {
        batch["study_id"][0]: batch["volume"]
        for batch in make_loader(hwd, shuffle=True, seed=9, **crop)
    }
    loader = weighted(hwd, **crop)
    whole = [(batch["study_id"][0], batch["volume"]) for batch in loader]
    seen: dict[str, list[Any]] = {}
    for study_id, volume in whole:
        seen.setdefault(study_id, []).append(volume)
    assert max(map(len, seen.values())) > 2
    for study_id, volumes in seen.items():
        assert torch.equal(volumes[0], plain[study_id])  # as without weights
        for one, other in itertools.combinations(volumes, 2):
            assert not torch.equal(one, other)
    for stop in range(11):
        rest = weighted(hwd, **crop)
        rest.load_state_dict(loader.state_dict() | {"epoch": 0, "position": stop})
        for batch, (study_id, volume) in zip(rest, whole[stop:], strict=True):
            assert batch["study_id"] == [study_id]
            assert torch.equal(batch["volume"], volume)


def test_labels_are_balanced_as_by_hand(by_hand: Path) -> None:
    dataset = VolumeDataset(by_hand)
    assert list(dataset.study_ids) == BY_HAND
    # First class: one 1 and three 0s.  Second: two 1s and one 0.  The others have 0 alone.
    rare, common = Fraction(4, 2 * 1), Fraction(4, 2 * 3)
    one, zero = Fraction(3, 2 * 2), Fraction(3, 2 * 1)
    expected = [
        (rare + one + 16) / 18,
        (common + one + 16) / 18,
        (common + zero + 16) / 18,
        (common + 16) / 17,  # its second label is blank
    ]
    expected.append(sum(expected) / 4)  # it has no row
    found = balanced_weights(dataset.read_labels())
    assert found.tolist() == pytest.approx([float(w) for w in expected], rel=1e-14)
    loader = make_loader(dataset, shuffle=True, seed=2, class_balanced=True)
    same = make_loader(by_hand, shuffle=True, seed=2, sample_weights=found)
    assert loader.state_dict() == same.state_dict()
    assert studies(loader) == studies(same)
    labelled = make_loader(
        dataset, shuffle=True, seed=2, class_balanced=True, labelled_only=True
    ).state_dict()
    assert (
        labelled == weighted(dataset.take(range(4)), seed=2, sample_weights=found[:4]).state_dict()
    )


def test_both_values_of_a_class_come_equally_often_and_more_values_too() -> None:
    nan = math.nan
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 2], [nan, nan]], np.float32)
    one_class = balanced_weights(labels[:, :1])
    assert one_class[0] == one_class[1:4].sum()
    graded = balanced_weights(labels[:, 1:])
    assert graded[:2].sum() == graded[2] == graded[3]
    assert (one_class[4], graded[4]) == (1, 1)
    assert balanced_weights(labels).tolist() == ((one_class + graded) / 2).tolist()


def test_labels_are_read_once_and_go_with_a_selection(own: Path) -> None:
    dataset = VolumeDataset(own)
    expected = np.stack([dataset[n]["labels"] for n in range(11)])
    chosen = VolumeDataset(own).take([9, 0, 9])
    np.testing.assert_array_equal(chosen.read_labels(threads=1), expected[[9, 0, 9]])
    dataset.read_labels()[:] = 7  # the caller's own
    for tar in own.glob("*.tar"):
        tar.unlink()
    np.testing.assert_array_equal(dataset.read_labels(), expected)
    np.testing.assert_array_equal(dataset.take([4, 4, 1]).read_labels(), expected[[4, 4, 1]])
    with pytest.raises(StorageError, match="cannot be opened"):
        pickle.loads(pickle.dumps(dataset)).read_labels()


def test_labels_that_are_damaged_raise_or_are_not_known(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = VolumeDataset(own)
    expected = dataset.read_labels()
    expected[4] = math.nan
    _, entry = dataset.locate(4)
    flip_byte(own / "shard-000001.tar", entry.members["cls"].offset + 3)
    with pytest.raises(FetchError, match=r"valid_5_a_1\.cls does not have its checksum"):
        make_loader(own, shuffle=True, class_balanced=True)
    damaged = VolumeDataset(own)
    with caplog.at_level(logging.WARNING):
        loader = make_loader(damaged, shuffle=True, class_balanced=True, on_error="skip")
    assert "valid_5_a_1.cls" in caplog.text
    given = make_loader(own, shuffle=True, sample_weights=balanced_weights(expected))
    assert loader.state_dict() == given.state_dict()
    with pytest.raises(FetchError):
        damaged.read_labels()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_balanced": True}, "both say how often"),
        ({"shuffle": False}, "sample_weights draws .*shuffle=True"),
        ({"shuffle": False, "sample_weights": None, "class_balanced": True}, "class_balanced d"),
        ({"shuffle_window_bytes": 1 << 20}, "shuffle_window_bytes mixes a few shards"),
        ({"sample_weights": None, "class_balanced": "no"}, "class_balanced is 'no'"),
        ({"sample_weights": [1.0] * 10}, r"10 numbers, and VolumeDataset.* has 11 samples"),
        ({"sample_weights": []}, "0 numbers"),
        ({"sample_weights": [0] * 11}, "0 for all 11 samples"),
        ({"sample_weights": [1] * 8 + [-0.5, 1, 1]}, "has -0.5 for valid_9_a_1"),
        ({"sample_weights": [1] * 10 + [math.nan]}, "has nan for valid_11_a_1"),
        ({"sample_weights": [1] * 10 + [math.inf]}, "has inf for valid_11_a_1"),
        ({"sample_weights": np.ones((11, 1))}, "wanted one number for each sample"),
        ({"sample_weights": np.ones(11, bool)}, "wanted one number for each sample"),
        ({"sample_weights": ["1"] * 11}, "wanted one number for each sample"),
        ({"sample_weights": "balanced"}, "is 'balanced'; wanted one number"),
        ({"sample_weights": (1 for _ in range(11))}, "wanted one number for each sample"),
        ({"sample_weights": [[1], [1, 2]]}, "a list that NumPy cannot look at"),
        ({"sample_weights": dict.fromkeys(STUDIES[2:], 1)}, r"2 of the studies .*\(valid_1_a_1, v"),
        ({"sample_weights": {}}, "11 of the studies .*, …"),
        ({"sample_weights": dict.fromkeys(STUDIES, -1)}, "has -1.0 for valid_1_a_1"),
        ({"sample_weights": dict.fromkeys(range(11), 1)}, "the key 0; its keys are study ids"),
        ({"sample_weights": {unicodedata.normalize(form, "é"): form for form in ("NFC", "NFD")}},
         "two spellings"),
    ],
)  # fmt: skip
def test_weights_that_say_nothing_for_certain_are_refused(
    hwd: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        weighted(hwd, **options)
    assert "\n" not in str(refused.value)


def test_no_label_is_nothing_to_balance_by(part_labelled: Path) -> None:
    dataset = VolumeDataset(part_labelled).select(UNLABELLED)
    with pytest.raises(UsageError, match="no known label"):
        make_loader(dataset, shuffle=True, class_balanced=True)
    with pytest.raises(UsageError, match="no known label"):
        balanced_weights(np.empty((3, 0), np.float32))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning gives deprecation warnings of its own
def test_lightning_trains_on_what_is_drawn(hwd: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    from lightning_model import Model
    from test_lightning import trainer

    keep = lightning.callbacks.ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1
    )
    epochs = weighted(hwd, 2)
    whole = studies(epochs) + studies(epochs)
    model = Model()
    options: dict[str, Any] = {"enable_checkpointing": True, "callbacks": [keep]}
    trainer(tmp_path, **options).fit(model, weighted(hwd, 2))
    assert model.seen["train"] == whole
    rest = Model()
    trainer(tmp_path).fit(rest, weighted(hwd, 2), ckpt_path=tmp_path / "step=8.ckpt")
    assert rest.seen["train"] == whole[15:]
