"""Hostile `.ctz` members: an error of one sentence, or voxels; and no memory that they ask for."""

from __future__ import annotations

import tracemalloc

import ctz_corpus
import numpy as np
import pytest

from ctgpu import _native
from ctgpu.codec import CtzError
from support import plain_ctz

MEMBERS = ctz_corpus.valid_members()
CRAFTED = dict(ctz_corpus.crafted())


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("hwd", [False, True])
def test_the_undamaged_members_decode(name: str, hwd: bool) -> None:
    wanted = ctz_corpus.true_voxels(name.partition("-")[0])  # type: ignore[arg-type]
    assert ctz_corpus.mended(MEMBERS[name]) == MEMBERS[name]
    for variant in _native.ctz_variants():
        found = ctz_corpus.decoded(MEMBERS[name], hwd=hwd, variant=variant)
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_members_are_refused(name: str) -> None:
    member = CRAFTED[name]
    tracemalloc.start()
    try:
        with pytest.raises(CtzError) as error:
            ctz_corpus.decoded(member)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert "\n" not in message
    assert 20 < len(message) < 200


@pytest.mark.parametrize("name", [name for name in MEMBERS if name.endswith("DHW")])
def test_damage_with_sound_checksums_is_the_same_to_every_variant(name: str) -> None:
    """What checksums cannot tell contradicts itself, or stands for other voxels."""
    sound = MEMBERS[name]
    begin = ctz_corpus.head_bytes(ctz_corpus.SHAPE_DHW)
    rng = np.random.default_rng(5)
    refused = 0
    for bit in rng.integers(8 * begin, 8 * len(sound), 60).tolist():
        member = bytearray(sound)
        member[bit // 8] ^= 1 << bit % 8
        mended = ctz_corpus.mended(bytes(member))
        outcomes: list[np.ndarray | None] = []
        for variant in _native.ctz_variants():
            try:
                outcomes.append(ctz_corpus.decoded(mended, variant=variant))
            except CtzError:
                outcomes.append(None)
        refused += outcomes[0] is None
        assert len({outcome is None for outcome in outcomes}) == 1
        if outcomes[0] is not None:
            wanted = plain_ctz.decode(mended).tobytes()
            assert all(np.asarray(outcome).tobytes() == wanted for outcome in outcomes)
    assert refused < 60
    assert refused > 0 or name.endswith("pack-DHW")
