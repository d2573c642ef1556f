"""Which engine a name opens, and what is said of those that cannot run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from ctgpu.engines import Engine, Job, arithmetic_of, available_engines, cupy_runtime, open_engine
from ctgpu.engines.cpu import CpuEngine
from ctgpu.engines.reference import ReferenceEngine
from ctgpu.errors import UsageError


@pytest.fixture
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an NVIDIA driver."""
    monkeypatch.setattr(cupy_runtime, "driver_cuda_version", lambda: None)


class Own(Engine):
    """A caller's own engine."""

    arithmetic = "own"
    name = "own"
    concurrency = 1

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {}


def test_auto_falls_back_with_one_log_line(
    without_driver: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ctgpu"):
        engine = open_engine("auto")
    assert engine.name == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "using the CPU engine: no NVIDIA driver was found (libcuda.so.1 cannot be loaded): install "
        "one, start the container with its GPU passed through, or use --device cpu"
    ]


@pytest.mark.parametrize(
    ("device", "kind", "arithmetic"),
    [("cpu", CpuEngine, "ctgpu"), ("reference", ReferenceEngine, "torch-reference")],
)
def test_an_engine_is_opened_by_its_name(device: str, kind: type[Engine], arithmetic: str) -> None:
    engine = open_engine(device)
    assert type(engine) is kind
    assert engine.name == device
    assert engine.arithmetic == arithmetic_of(device) == arithmetic_of(engine) == arithmetic
    engine.close()


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:3", "cuda:0,1"])
def test_the_arithmetic_of_an_engine_is_known_where_it_cannot_run(
    device: str, without_driver: None
) -> None:
    assert arithmetic_of(device) == "ctgpu"
    assert arithmetic_of(Own()) == "own"


@pytest.mark.parametrize("device", ["", "gpu", "CPU", "cpu:0x", "tpu:1", "cuda:x", "cuda:1,"])
def test_what_is_no_name_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(UsageError, match=r"device is .*; it takes auto, cpu, cuda, cuda:N"):
        open_engine(device)


@pytest.mark.parametrize("uuid", ["GPU-5d5ba0d6", "MIG-1c0f9f28-0c1c-5f8d"])
def test_a_gpu_or_a_slice_of_one_is_chosen_by_its_uuid_in_the_environment(uuid: str) -> None:
    with pytest.raises(UsageError, match=f"CUDA_VISIBLE_DEVICES={uuid} in the env.* cuda:0$"):
        open_engine(f"cuda:{uuid}")


@pytest.mark.parametrize("device", [None, 0, b"cpu"])
def test_what_is_no_text_is_refused_too(device: Any) -> None:
    for ask in (open_engine, arithmetic_of):
        with pytest.raises(
            UsageError, match=r"device is .*; wanted auto, cpu, cuda.* an open engine"
        ):
            ask(device)


@pytest.mark.parametrize("device", ["gpu", "reference:1", ""])
def test_what_is_no_name_has_no_arithmetic(device: str) -> None:
    with pytest.raises(UsageError, match="it takes auto"):
        arithmetic_of(device)


def test_what_cannot_run_here_says_why(
    without_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = available_engines()
    assert list(reasons) == ["cpu", "cuda", "reference"]
    assert reasons["cpu"] is None
    assert str(reasons["cuda"]).startswith("no NVIDIA driver was found")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install" in str(available_engines()["reference"])
