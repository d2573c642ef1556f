from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from shard_samples import MASKS, ODD, make_plan, write_shard

from ctgpu.errors import MismatchError, UsageError
from ctgpu.shards import disk
from ctgpu.shards import plan as plan_module
from ctgpu.shards.names import PLAN_NAME
from ctgpu.shards.plan import LEAST_EXPECTED_RATIO, Plan
from ctgpu.spec import Spec
from ctgpu.volume.masks import MaskFormat
from ctgpu.volume.ref import SampleRef


def test_round_trip_is_exact_and_deterministic(tmp_path: Path) -> None:
    plan = make_plan(9)
    assert Plan.create(tmp_path, plan) is plan
    assert Plan.load(tmp_path) == plan
    assert (tmp_path / PLAN_NAME).read_bytes() == Plan.load(tmp_path).to_json()
    assert os.listdir(tmp_path) == [PLAN_NAME]


def test_masks_are_in_the_plan_and_count_as_bytes(tmp_path: Path) -> None:
    plan = make_plan(masks=MASKS)
    Plan.create(tmp_path, plan)
    assert Plan.load(tmp_path) == plan
    assert (tmp_path / PLAN_NAME).read_bytes() == Plan.load(tmp_path).to_json()
    voxels = 6 * 7 * 15
    assert (plan.sample_bytes, make_plan().sample_bytes) == (4 * voxels, 2 * voxels)


@pytest.mark.parametrize("masks", [None, MASKS], ids=["volumes", "masks"])
def test_the_compression_is_in_the_plan_and_decides_no_voxel(
    tmp_path: Path, masks: MaskFormat | None
) -> None:
    raw = make_plan(masks=masks)
    plan = replace(raw, compression="rice")
    Plan.create(tmp_path, plan)
    assert Plan.load(tmp_path) == plan
    assert (tmp_path / PLAN_NAME).read_bytes() == Plan.load(tmp_path).to_json()
    assert (plan.version, plan.shard_version) == (5, 4)
    assert (plan.fingerprint, plan.sample_bytes) == (raw.fingerprint, raw.sample_bytes)
    assert raw.differences(plan) == ["compression: found 'none', wanted 'rice'"]
    assert raw.differences({"compression": "none"}) == []
    # The room of a volume that nothing can be made of, and what is assumed of all of them.
    assert all(
        a < b for a, b in zip(raw.payload_limits_bytes, plan.payload_limits_bytes, strict=True)
    )
    assert len(plan.payload_limits_bytes) == (1 if masks is None else 2)
    assert raw.expected_bytes == raw.sample_bytes
    assert plan.expected_bytes == int(raw.sample_bytes / LEAST_EXPECTED_RATIO) < raw.sample_bytes


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"rice"', b'"zip"', r"Invalid enum value 'zip' - at `\$\.compression`"),
        (b'"rice"', b"3", r"\$\.compression"),
        (b'"rice"', b"null", "states ctgpu-plan-5 and says what takes ctgpu-plan-1"),
        (b'"compression": "rice"', b'"other": 1', "states ctgpu-plan-5 and says what takes"),
        (b"ctgpu-plan-5", b"ctgpu-plan-4", "states ctgpu-plan-4 and says what takes ctgpu-plan-5"),
        (b"ctgpu-plan-5", b"ctgpu-plan-1", "states ctgpu-plan-1 and says what takes ctgpu-plan-5"),
    ],
)
def test_a_compression_that_is_none_is_one_sentence(
    old: bytes, new: bytes, said: str, tmp_path: Path
) -> None:
    Plan.create(tmp_path, replace(make_plan(), compression="rice"))
    text = (tmp_path / PLAN_NAME).read_bytes()
    assert old in text
    (tmp_path / PLAN_NAME).write_bytes(text.replace(old, new))
    with pytest.raises(UsageError, match=rf"plan\.json is damaged \(.*{said}") as caught:
        Plan.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_awkward_paths_survive(tmp_path: Path) -> None:
    sample = SampleRef("k", 'a"\\\u2028', "ordner/\udcff\u00fc\n.npz", 1, None, "v1")
    Plan.create(tmp_path, replace(make_plan(), samples=[sample]))
    assert Plan.load(tmp_path).samples == [sample]


def test_every_sample_is_in_one_shard() -> None:
    plan = make_plan(9)
    assert plan.shards == 3
    assert [s for i in range(3) for s in plan.samples_of(i)] == plan.samples
    assert [len(plan.samples_of(i)) for i in range(3)] == [4, 4, 1]
    assert make_plan(8).shards == 2
    assert make_plan(0).shards == 0
    with pytest.raises(UsageError, match="shards 0 to 2"):
        plan.samples_of(3)


@pytest.mark.parametrize("hard_links", [True, False], ids=["link", "no_link"])
def test_of_many_creators_one_wins(
    hard_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not hard_links:
        monkeypatch.setattr(disk.os, "link", refuse)
    plans = [make_plan(4 + i) for i in range(6)]
    start = threading.Barrier(len(plans))
    results: list[Plan] = []

    def create(plan: Plan) -> None:
        start.wait()
        results.append(Plan.create(tmp_path, plan))

    threads = [threading.Thread(target=create, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(plans)
    assert all(result == results[0] for result in results)
    assert results[0] in plans
    assert os.listdir(tmp_path) == [PLAN_NAME]


def test_a_creator_that_comes_back_late_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links a lease decides; its holder stands still just before it renames."""

    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(disk.os, "link", refuse)
    usual = os.rename
    others = [make_plan(5)]

    def rename(old: object, new: object) -> None:
        if others:
            # Another process takes the lease over, and creates its plan.
            with monkeypatch.context() as patch:
                patch.setattr(plan_module, "plan_lock", lambda folder: contextlib.nullcontext())
                assert Plan.create(tmp_path, other := others.pop()) is other
        usual(old, new)  # type: ignore[arg-type]

    monkeypatch.setattr(disk.os, "rename", rename)
    assert Plan.create(tmp_path, make_plan(4)) == make_plan(5)
    assert Plan.load(tmp_path) == make_plan(5)
    assert os.listdir(tmp_path) == [PLAN_NAME]


def test_an_existing_plan_is_never_replaced(tmp_path: Path) -> None:
    Plan.create(tmp_path, make_plan(4))
    assert Plan.create(tmp_path, make_plan(5)) == make_plan(4)
    assert Plan.load(tmp_path) == make_plan(4)


def test_differences_name_every_field() -> None:
    plan = make_plan()
    other = replace(
        plan,
        split="train",
        spec=Spec(shape_hwd=ODD.shape_hwd, layout="DHW"),
        source={"kind": "hub"},
    )
    found = plan.differences(other)
    assert "spec.layout: found 'HWD', wanted 'DHW'" in found
    assert "split: found 'valid', wanted 'train'" in found
    assert "source.kind: found 'folder', wanted 'hub'" in found
    assert "source.revision: found '1', wanted None" in found
    assert len(found) == 5
    assert plan.differences(plan) == []


def test_other_samples_are_a_difference() -> None:
    plan = make_plan()
    other = replace(plan, samples=[replace(s, size_bytes=1) for s in plan.samples])
    assert len(plan.differences(other)) == 1


def test_what_is_not_given_is_adopted(tmp_path: Path) -> None:
    plan = make_plan()
    plan.require(tmp_path, {})
    plan.require(tmp_path, {"split": "valid", "spec": {"layout": "HWD"}, "selection": {"seed": 0}})
    plan.require(tmp_path, {"compression": "none"})
    plan.require(tmp_path, {"spec.shape_hwd": ODD.shape_hwd, "class_names": plan.class_names})
    with pytest.raises(MismatchError, match=r"selection\.seed: found 0, wanted 3") as caught:
        plan.require(tmp_path, {"split": "valid", "selection": {"seed": 3}})
    assert str(tmp_path) in str(caught.value)
    assert "split" not in str(caught.value)


def test_shared_keys_are_refused_by_path(tmp_path: Path) -> None:
    samples = [
        SampleRef("a_b", "a.b", "x/a.b.npz", 1),
        SampleRef("a_b", "a_b", "a_b.npz", 1),
    ]
    with pytest.raises(UsageError, match=r"x/a\.b\.npz and a_b\.npz would share"):
        Plan.create(tmp_path, replace(make_plan(), samples=samples))
    assert os.listdir(tmp_path) == []


def test_limits_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for plan in (
        replace(make_plan(), spec=Spec(shape_hwd=(65535, 65535, 2))),
        make_plan(spec=Spec(shape_hwd=(65535, 65535, 2), dtype="uint8"), masks=MASKS),
        replace(make_plan(), samples_per_shard=0),
        replace(make_plan(), samples=[SampleRef("x" * 96, "x", "long.npz", 1)]),
    ):
        with pytest.raises(UsageError):
            Plan.create(tmp_path, plan)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(b"ctgpu-plan-1", b"ctgpu-plan-2"),
        lambda text: text.replace(b"ctgpu-plan-1", b"ctgpu-plan-01"),
        lambda text: text.replace(b"ctgpu-plan-1", b"ctgpu-shard-1"),
        lambda text: text.replace(b'"samples": [', b'"samples": 3, "x": ['),
        lambda text: text.replace(b'"samples_per_shard": 4', b'"samples_per_shard": 0'),
        lambda text: text.replace(b'"HWD"', b'"WHD"'),
        lambda text: b"\xff\xfe\x00",
        lambda text: b"[" * 100_000,
        lambda text: b"[]",
    ],
)
def test_a_damaged_plan_is_one_sentence(damage: object, tmp_path: Path) -> None:
    Plan.create(tmp_path, make_plan())
    path = tmp_path / PLAN_NAME
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"plan\.json is damaged"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"ctgpu-plan-4", b"ctgpu-plan-3"),
        (b'"uint16"', b'"float16"'),
        (b'"lung": 1', b'"lung": 0'),
        (b'"lung": 1', b'"lung": 300'),
        (b'"masks": {', b'"others": {'),
    ],
)
def test_damaged_masks_are_one_sentence(old: bytes, new: bytes, tmp_path: Path) -> None:
    Plan.create(tmp_path, make_plan(masks=MASKS))
    text = (tmp_path / PLAN_NAME).read_bytes()
    assert old in text
    (tmp_path / PLAN_NAME).write_bytes(text.replace(old, new))
    with pytest.raises(UsageError, match=r"plan\.json is damaged"):
        Plan.load(tmp_path)


def test_a_folder_without_a_plan_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no plan\.json"):
        Plan.load(tmp_path)


def test_a_plan_and_a_record_of_many_samples_have_short_reprs(tmp_path: Path) -> None:
    plan = make_plan(5000)
    assert repr(plan) == (
        f"Plan('phantoms' valid: 5000 samples in 1250 shards, fingerprint {plan.fingerprint})"
    )
    record = write_shard(tmp_path, make_plan(4), failing=("scan_2",))
    assert repr(record) == f"ShardRecord(0: 3 samples, 1 failed, {record.size_bytes} bytes)"
