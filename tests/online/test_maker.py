"""Single samples, in the threads that ask for them, within a budget of bytes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from online_cases import OPTIONS, SPEC

from ctgpu.building.request import Request
from ctgpu.engines import Engine, Job, open_engine
from ctgpu.errors import EnvironmentFailure, FetchError, SampleError
from ctgpu.online.maker import SampleMaker
from ctgpu.online.settling import settle
from ctgpu.sources.folder import FolderSource
from ctgpu.spec import Spec
from ctgpu.volume.stored import numpy_dtype


class Watched(Engine):
    """The CPU engine, with a gate, that notes the threads of each volume."""

    def __init__(self) -> None:
        self._cpu = open_engine("cpu")
        self.threads: list[int] = []
        self.volumes = 0
        self.gate = threading.Barrier(1)
        self.error: BaseException | None = None

    @property
    def name(self) -> str:
        return "watched"

    @property
    def concurrency(self) -> int:
        return 4

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        self.gate.wait(20)
        self.threads.append(threads)
        if self.error is not None:
            raise self.error
        self.volumes += len(jobs)
        self._cpu.run(jobs, threads=1)

    def describe(self) -> dict[str, Any]:
        return {}


def maker_of(
    source: Path, engine: Engine | None = None, limit_bytes: int = 1 << 30, spec: Spec = SPEC
) -> tuple[SampleMaker, Any]:
    settled = settle(Request(source=source, **dict(OPTIONS) | {"spec": spec}), None)
    assert settled.source is not None
    maker = SampleMaker(
        settled.plan,
        settled.source,
        engine or open_engine("cpu"),
        memory_limit_bytes=limit_bytes,
        cores=6,
    )
    return maker, settled.plan


@pytest.mark.parametrize("layout", ["HWD", "DHW"])
@pytest.mark.parametrize("dtype", ["float16", "int16"])
def test_a_box_is_what_the_whole_has_there_also_where_it_is_padding(
    good_source: Path, layout: Any, dtype: Any
) -> None:
    # Padded by far on one axis, cropped on another.
    spec = replace(SPEC, shape_hwd=(90, 24, 23), layout=layout, dtype=dtype)
    maker, plan = maker_of(good_source, spec=spec)
    whole = np.empty(spec.stored_shape, numpy_dtype(dtype))
    maker.make(plan.samples[0], whole, (0, 0, 0))
    turned = whole if layout == "HWD" else whole.transpose(1, 2, 0)
    box = (12, 11, 10)
    paddings = 0
    for start in itertools.product((0, 13, 39, 70, 78), (0, 13), (0, 7, 13)):
        stored = box if layout == "HWD" else (10, 12, 11)
        out = np.empty(stored, whole.dtype)
        maker.make(plan.samples[0], out, start)
        found = out if layout == "HWD" else out.transpose(1, 2, 0)
        expected = turned[tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))]
        assert found.tobytes() == expected.tobytes(), start
        paddings += bool((expected == turned[0, 0, 0]).all())
    assert paddings  # boxes of padding alone were among them


def test_threads_of_a_volume_are_the_cores_that_no_volume_of_its_own_has(
    good_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Watched()
    maker, plan = maker_of(good_source, engine)
    out = [np.empty(SPEC.stored_shape, np.float16) for _ in range(3)]
    maker.make(plan.samples[0], out[0], (0, 0, 0))
    # All are in flight before one is computed, and until the last one is begun.
    engine.gate, fetching = threading.Barrier(3), threading.Barrier(3)
    fetch = FolderSource.fetch

    def fetch_together(*args: Any) -> Any:
        fetching.wait(20)
        return fetch(*args)

    monkeypatch.setattr(FolderSource, "fetch", fetch_together)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(maker.make, plan.samples[:3], out, [(0, 0, 0)] * 3))
    assert engine.threads == [6, 2, 2, 2]


def test_volumes_in_flight_keep_to_the_budget_or_are_alone(good_source: Path) -> None:
    engine = Watched()
    maker, plan = maker_of(good_source, engine, limit_bytes=1)
    outs = [np.empty(SPEC.stored_shape, np.float16) for _ in plan.samples]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(maker.make, plan.samples, outs, [(0, 0, 0)] * 8))
    assert engine.threads == [6] * 8  # one at a time
    assert maker.peak_bytes > 1
    roomy, _ = maker_of(good_source)
    expected = np.empty(SPEC.stored_shape, np.float16)
    for ref, out in zip(plan.samples, outs, strict=True):
        roomy.make(ref, expected, (0, 0, 0))
        assert out.tobytes() == expected.tobytes()


def test_what_fails_gives_its_memory_back_and_is_named(
    good_source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Watched()
    maker, plan = maker_of(good_source, engine, limit_bytes=1)
    out = np.empty(SPEC.stored_shape, np.float16)
    ref = plan.samples[0]
    for error, kind, sentence in (
        (ZeroDivisionError("of a defect"), SampleError, r"valid_1_a_1.*ZeroDivisionError"),
        (MemoryError(), EnvironmentFailure, "memory ran out"),
    ):
        engine.error = error
        with pytest.raises(kind, match=sentence):
            maker.make(ref, out, (0, 0, 0))
    engine.error = None
    with pytest.raises(FetchError, match="at most"):
        maker.make(replace(ref, size_bytes=1 << 60), out, (0, 0, 0))
    with pytest.raises(FetchError):
        maker.make(replace(ref, path="gone.nii.gz"), out, (0, 0, 0))
    # With a budget of one byte, what one of them kept would keep this one out.
    labels, report = maker.make(ref, out, (0, 0, 0))
    assert labels.flags.writeable
    assert report
    assert "unexpected error" in caplog.text
    assert engine.volumes == 1
