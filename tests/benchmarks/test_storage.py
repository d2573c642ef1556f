"""Storage as benchmarks make it: out of the page cache, or simulated."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

import ctgpu
from benchmarks.harness.storage import evict, throttled
from ctgpu.loading import VolumeDataset, make_loader
from ctgpu.shards.disk import write_all
from ctgpu.shards.untrusted import read_exactly
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.phantoms import COARSE_SPEC, chests, study_ids


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("benchmarks.harness.storage.time", made)
    return made


def test_what_is_read_and_written_waits_its_turn(tmp_path: Path, clock: Clock) -> None:
    path, real = tmp_path / "file", (os.preadv, os.pwrite)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        with throttled("pwrite", 1e6):
            write_all(fd, bytes(500_000), 0)
        assert clock.now_s == pytest.approx(100.5, abs=0.01)
        room = memoryview(bytearray(100_000))
        with throttled("preadv", 1e6):
            for _ in range(4):
                read_exactly(fd, room, 0)
            assert clock.now_s == pytest.approx(100.9, abs=0.01)
            # What was not used of a pause is gone.
            clock.now_s = 200.0
            read_exactly(fd, room, 0)
        assert clock.now_s == pytest.approx(200.1, abs=0.01)
        read_exactly(fd, room, 0)
        assert clock.now_s == pytest.approx(200.1, abs=0.01)
    finally:
        os.close(fd)
    assert (os.preadv, os.pwrite) == real


def test_the_time_of_the_call_itself_is_a_part_of_its_turn(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pread_in_30_ms(*arguments: object) -> int:
        clock.sleep(0.03)
        return 100_000

    monkeypatch.setattr("os.preadv", pread_in_30_ms)
    with throttled("preadv", 1e6):
        assert os.preadv(0, [bytearray(100_000)], 0) == 100_000
    assert clock.now_s == pytest.approx(100.1, abs=0.01)
    with throttled("preadv", 1e7):  # slower than it is held to
        os.preadv(0, [bytearray(100_000)], 0)
    assert clock.now_s == pytest.approx(100.13, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("compress", ["none", "pack"])
def test_what_a_build_writes_and_a_loader_reads_waits_too(
    compress: str, tmp_path: Path, clock: Clock
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    lay_out_ct_rate(source, chests(study_ids(2), shape_hwd=(40, 36, 30)))
    how: dict[str, Any] = {"source": source, "spec": COARSE_SPEC, "device": "cpu"}
    with throttled("pwrite", 1e6):
        assert ctgpu.build(out, **how, compress=compress).exit_code == 0
    dataset = VolumeDataset(out, verify="off")
    stored_s = sum(entry.payload_bytes for entry in dataset.entries) / 1e6
    written_s = clock.now_s - 100
    assert written_s > 0.9 * stored_s > 0
    clock.now_s = 200.0
    loader = make_loader(dataset, num_threads=1)
    with throttled("preadv", math.inf):
        assert len([batch["volume"] for batch in loader]) == 2
    assert clock.now_s == 200.0
    with throttled("preadv", 1e6):
        assert len([batch["volume"] for batch in loader]) == 2
    assert 0.9 * stored_s < clock.now_s - 200 < 1.2 * stored_s


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no posix_fadvise")
def test_how_much_of_a_file_is_left_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    left_bytes = evict(path)
    assert 0 <= left_bytes <= 1 << 20
    assert path.read_bytes() == bytes(1 << 20)
