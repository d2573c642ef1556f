"""What a build costs, and what follows for this machine and for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctgpu.building.calibration import WAYS, Work, _drop_pages, calibrate_in
from ctgpu.building.events import ignore
from ctgpu.building.feeding import Reading, Training
from ctgpu.building.projection import SampleCosts
from ctgpu.building.request import Request
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import chest_phantom, lay_out_ct_rate
from ctgpu.testing.masks import lay_out_with_masks
from support.phantoms import chests, study_ids

SMALL = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(80, 72, 40))


def work(fetch_s: float, decode_s: float, device_s: float, write_s: float, **facts: Any) -> Work:
    """Of one sample, so that its seconds are those of the build."""
    costs = SampleCosts(1e6, 0.0, 1e6, 0.0, decode_s, device_s, write_s, fetch_wait_s=fetch_s)
    return Work(costs, 1, **{"device_threads": 8} | facts)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctgpu.building.calibration.usable_cores", lambda: 8)


@pytest.mark.usefixtures("eight_cores")
def test_workers_are_suggested_as_long_as_they_help() -> None:
    assert work(90.0, 10.0, 1.0, 10.0, device_threads=1, gpus=1).suggest() == 9
    assert work(1.0, 1.0, 1.0, 10.0, device_threads=1, gpus=1).suggest() == 1
    slow_inflate = work(1.0, 80.0, 80.0, 1.0)
    assert slow_inflate.cores_wall_s == pytest.approx(20.0)
    assert slow_inflate.suggest() == 4
    assert work(1.0, 80.0, 80.0, 1.0, gpus=1).cores_wall_s == pytest.approx(10.0)


@pytest.mark.usefixtures("eight_cores")
def test_a_stage_takes_what_its_threads_share() -> None:
    stages = {stage.name: stage for stage in work(90.0, 16.0, 8.0, 3.0).stages(9)}
    assert {name: stage.wall_s for name, stage in stages.items()} == pytest.approx(
        {"fetch": 10.0, "decode": 2.0, "device": 1.0, "write": 3.0}
    )


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("named", "bottleneck", "wall_s"),
    [
        # 8 + 4 core seconds.
        ({"cores": 2}, "cores", 6.0),
        ({"cores": 64}, "writer thread", 1.0),
        # 1 MB a volume.
        ({"cores": 64, "network_bytes_per_s": 1e5}, "network", 10.0),
        ({"cores": 2, "gpus": 1}, "cores", 4.0),
    ],
)
def test_a_named_machine_takes_what_its_scarcest_resource_allows(
    named: dict[str, float], bottleneck: str, wall_s: float
) -> None:
    found = work(1.0, 8.0, 4.0, 1.0).elsewhere(named, None, None)
    assert (found.bottleneck, found.wall_s) == (bottleneck, pytest.approx(wall_s))
    assert found.is_least == ("gpus" in named)
    assert json.loads(json.dumps(found.to_dict()))["limits"][bottleneck] > 0


@pytest.mark.usefixtures("eight_cores")
def test_more_gpus_are_as_many_times_the_measured_one() -> None:
    measured = work(1.0, 1.0, 12.0, 0.1, device_threads=3, gpus=1)
    one = measured.elsewhere({"cores": 64}, None, None)
    two = measured.elsewhere({"cores": 64, "gpus": 2}, None, None)
    assert (one.bottleneck, one.wall_s) == ("GPU", pytest.approx(4.0))
    assert (two.bottleneck, two.wall_s) == ("GPU", pytest.approx(2.0))
    assert not two.is_least


@pytest.mark.usefixtures("eight_cores")
def test_a_hub_grants_so_many_requests_wherever_it_is_asked_from() -> None:
    quick = work(0.001, 0.001, 0.001, 0.001)
    found = quick.elsewhere({"cores": 64}, None, 5000)
    assert (found.bottleneck, found.samples_per_s) == ("Hub requests", pytest.approx(15.0))


@pytest.mark.usefixtures("eight_cores")
def test_a_local_file_is_read_by_a_busy_core_and_a_download_is_waited_for() -> None:
    measured, training = work(1.0, 2.0, 1.0, 5.0), Training(1000.0)
    local = measured.feeding(training, {}, Reading(1e6, 0.1, 0.2), is_local=True)
    remote = measured.feeding(training, {}, Reading(1e6, 0.1, 0.2), is_local=False)
    assert (local.raw.core_s, remote.raw.core_s) == (4.0, 3.0)
    assert local.raw.limits["cores"] == pytest.approx(2.0)
    assert remote.raw.limits["fetching, as measured here"] == pytest.approx(2.0)
    named = measured.feeding(training, {"cores": 64}, Reading(1e6, 0.1, 0.2), is_local=True)
    assert (named.cores, named.raw.limits["cores"]) == (64, pytest.approx(16.0))


@pytest.mark.usefixtures("eight_cores")
def test_a_gpu_that_was_measured_takes_its_stage_off_the_cores() -> None:
    measured = work(1.0, 2.0, 3.0, 5.0, device_threads=3, gpus=1)
    fed = measured.feeding(Training(1000.0, gpus=4), {}, Reading(), is_local=True)
    assert fed.raw.core_s == 3.0
    assert fed.raw.limits["GPU"] == pytest.approx(4.0)


def test_a_few_samples_are_built_read_again_and_removed(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    home.mkdir()
    lay_out_ct_rate(source, chests(study_ids(3), first_seed=1))
    trial = Request(source=source, spec=SMALL, device="cpu", limit=2, num_workers=1)
    found = calibrate_in(home, trial, ignore)
    assert found.written == 2
    sizes = [path.stat().st_size for path in source.rglob("*.nii.gz")]
    assert min(sizes) < found.read_bytes < sum(sizes)
    assert found.busy.keys() == {"fetch", "decode", "device", "write"}
    assert list(found.readings) == list(WAYS)
    for reading in found.readings.values():
        assert reading.core_s > 0
        assert reading.thread_s > 0
        assert reading.disk_s > 0
    assert found.readings["none"].sample_bytes == SMALL.size_bytes
    assert found.readings["rice"].sample_bytes < SMALL.size_bytes
    assert list(home.iterdir()) == []


def test_masks_are_read_too(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    scan = chest_phantom((64, 56, 30), (5.0, 5.0, 8.0), 1)
    made = lay_out_with_masks(tmp_path / "source", {"one": scan}, (5.0, 5.0, 8.0))
    trial = Request(
        source=tmp_path / "source", dataset=made, spec=SMALL, device="cpu", limit=1, compress="pack"
    )
    readings = calibrate_in(home, trial, ignore).readings
    assert readings["none"].sample_bytes > SMALL.size_bytes
    assert readings["pack"].sample_bytes < readings["none"].sample_bytes


@pytest.mark.parametrize(
    ("answer", "from_disk"),
    [(BlockingIOError(), True), (OSError(95, "not supported"), False), (1, False)],
)
def test_it_says_whether_a_file_comes_from_its_disk(
    answer: object, from_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    monkeypatch.setattr("os.RWF_NOWAIT", 8, raising=False)
    monkeypatch.setattr("os.POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr("os.posix_fadvise", lambda *_: None, raising=False)

    def preadv(*_: object) -> object:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("os.preadv", preadv)
    assert _drop_pages(path) == from_disk


def test_without_a_way_to_drop_pages_files_come_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.posix_fadvise", raising=False)
    assert not _drop_pages(tmp_path / "never opened")
