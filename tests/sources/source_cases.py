"""What the tests of sources share."""

from __future__ import annotations

import random

from ctgpu.sources.transfer import Patience

#: Fails in fractions of a second what takes minutes in earnest.
QUICK = Patience(
    attempts=4,
    first_wait_s=0.001,
    longest_wait_s=0.01,
    connect_s=2.0,
    stall_s=0.15,
    slowest_bytes_per_s=1000.0,
)
FOLDER = "dataset/valid_fixed"
VOLUME_BYTES = 300_000


def random_bytes(name: str, size: int = VOLUME_BYTES) -> bytes:
    """Bytes that belong to a name."""
    return random.Random(name).randbytes(size)
