"""What every engine is, and what it has of its own accord."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ctgpu.engines import Engine, Job
from ctgpu.engines.adopting import AdoptingEngine
from ctgpu.engines.cpu import CpuEngine
from ctgpu.engines.cuda import CudaEngine
from ctgpu.engines.reference import ReferenceEngine


class Least(Engine):
    """As little as an engine can be."""

    name = "least"
    concurrency = 2

    def run(self, jobs: Sequence[Job], *, threads: int = 1) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def test_an_engine_needs_a_name_a_number_of_callers_and_two_methods() -> None:
    for missing in ("name", "concurrency", "run", "describe"):
        kept = {name: value for name, value in vars(Least).items() if name != missing}
        with pytest.raises(TypeError, match=f"abstract.*{missing}"):
            type("Less", (Engine,), kept)()


def test_the_rest_it_has_of_its_own_accord() -> None:
    engine = Least()
    assert (engine.arithmetic, engine.takes_hu, engine.batch_size) == ("ctgpu", True, 1)
    memory = engine.allocate(5000)
    assert len(memory) >= 5000
    assert memory.ctypes.data % 4096 == 0
    engine.close()
    engine.close()


def test_engines_that_give_the_same_bits_say_so() -> None:
    arithmetic = {kind: kind.arithmetic for kind in (CpuEngine, CudaEngine, ReferenceEngine)}
    assert arithmetic[CpuEngine] == arithmetic[CudaEngine] == Engine.arithmetic
    assert len({*arithmetic.values(), AdoptingEngine.arithmetic}) == 3
    assert all(kind.takes_hu for kind in arithmetic)
