"""The maker of samples that each process opens for itself."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import pytest
from online_cases import OPTIONS

from ctgpu.building.request import Request
from ctgpu.errors import MismatchError, SourceError, UsageError
from ctgpu.machine import usable_cores
from ctgpu.online.own_maker import OwnMaker
from ctgpu.online.settling import settle
from forking import Child


def own_maker(source: Path, **options: object) -> OwnMaker:
    request = Request(source=source, **dict(OPTIONS) | options)  # type: ignore[arg-type]
    return OwnMaker(settle(request, None).plan, request)


def test_it_is_opened_once_by_whoever_is_first(good_source: Path) -> None:
    own = own_maker(good_source)
    found = []
    threads = [threading.Thread(target=lambda: found.append(own.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    again = pickle.loads(pickle.dumps(own))
    assert again.get() is not own.get()


def test_a_forked_child_opens_its_own(good_source: Path) -> None:
    own = own_maker(good_source)
    there = own.get()
    child = Child(lambda: str(own.get() is there).encode())
    assert child.sees() == b"False"


def test_a_forked_child_is_refused_a_gpu(good_source: Path) -> None:
    own = own_maker(good_source, device="cuda:0")

    def look() -> bytes:
        with pytest.raises(UsageError, match="forked from one that opened it"):
            own.get()
        return b"refused"

    assert Child(look).sees() == b"refused"


def test_ranks_of_one_machine_share_its_cores(
    good_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctgpu.online.own_maker.usable_cores", lambda: 12)
    assert usable_cores() != 0
    own = own_maker(good_source)
    assert own.threads == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert own.threads == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "24")
    assert own.threads == 1


def test_ranks_of_one_machine_share_the_memory_limit(
    good_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    class Noted:
        def __init__(self, *args: object, memory_limit_bytes: int, cores: int) -> None:
            given.append(memory_limit_bytes)

    monkeypatch.setattr("ctgpu.online.own_maker.SampleMaker", Noted)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    own_maker(good_source, memory_limit_bytes=1000).get()
    assert given == [250]


def test_a_source_that_is_not_as_planned_is_refused(own_source: Path) -> None:
    own = own_maker(own_source)
    file = next(own_source.rglob("valid_2_a_1.nii.gz"))
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    with pytest.raises(MismatchError, match=r"another size \(.*valid_2_a_1\.nii\.gz\)"):
        own.get()
    file.write_bytes(content)
    assert own.get() is not None
    os.rename(own_source, own_source.with_name("moved"))
    with pytest.raises((SourceError, UsageError)):
        pickle.loads(pickle.dumps(own)).get()
