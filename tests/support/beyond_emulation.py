"""Plugin of pytest for a run on the emulated GPU: skips by name what it cannot do.

python -m pytest -p support.beyond_emulation
"""

from __future__ import annotations

import pytest

#: Tests, and why.
BEYOND = {
    "test_beside_torch_on_its_stream": "needs torch's CUDA",
    "test_batches_on_the_gpu_are_those_of_the_host": "needs torch's CUDA",
    "test_the_usual_kernel_spills_nothing": "needs what a driver compiles",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them, visibly, and what takes minutes."""
    for item in items:
        why = BEYOND.get(getattr(item, "originalname", item.name))
        if why is None and item.get_closest_marker("large"):
            why = "takes minutes on the emulated GPU"
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))
