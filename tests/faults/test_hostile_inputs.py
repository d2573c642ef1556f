"""The hostile corpus against the decoders: an error of one sentence, or the true voxels."""

from __future__ import annotations

import tracemalloc

import corpus
import numpy as np
import pytest

from ctgpu.buffers import BufferPool, Bytes, allocate_pages
from ctgpu.decode import decode, inflated_size
from ctgpu.decode.inflate import MAX_RATIO
from ctgpu.errors import DecodeError, IntensityError
from ctgpu.volume.intensity import check_hu, resolve_rescale

CRAFTED = list(corpus.crafted())


class Outcome(Exception):
    """Not an error of the package: how a hostile file was wrongly received."""


def judge(hostile: corpus.Hostile) -> str:
    """Decode as the pipeline does; "refused" or "true", and anything else is raised."""
    largest = MAX_RATIO * len(hostile.data) + (4 << 20)

    def allocate(size_bytes: int) -> Bytes:
        if size_bytes > largest:
            raise Outcome(f"{size_bytes} bytes were allocated for {len(hostile.data)}")
        return allocate_pages(size_bytes)

    pool = BufferPool(allocate=allocate)
    buffer = pool.acquire(len(hostile.data))
    buffer.bytes[:] = np.frombuffer(hostile.data, np.uint8)
    assert inflated_size(hostile.file_name, buffer.bytes) <= largest
    tracemalloc.start()
    try:
        volume = decode(hostile.file_name, buffer, pool)
        try:
            check_hu(volume.voxels, resolve_rescale(volume, intensity="auto"))
            if not np.array_equal(volume.voxels, corpus.true_voxels()):
                raise Outcome("other voxels were accepted")
        finally:
            volume.release()
        return "true"
    except (DecodeError, IntensityError) as error:
        message = str(error)
        if "\n" in message or not 20 < len(message) < 500:
            raise Outcome(f"the message is not one sentence: {message!r}") from error
        return "refused"
    finally:
        # Pooled memory is not traced; what is left are directories, headers and messages.
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
        tracemalloc.stop()
        assert pool.lent_bytes == 0


@pytest.mark.parametrize("name", corpus.valid_files())
def test_the_undamaged_files_decode(name):
    assert judge(corpus.Hostile(name, corpus.valid_files()[name])) == "true"


@pytest.mark.slow
@pytest.mark.parametrize("hostile", CRAFTED, ids=[h.file_name for h in CRAFTED])
def test_crafted_files_are_refused(hostile):
    assert judge(hostile) == "refused"


@pytest.mark.parametrize("hostile", list(corpus.surplus()), ids=lambda hostile: hostile.file_name)
def test_what_lies_behind_the_voxels_does_not_change_them(hostile):
    assert judge(hostile) == "true"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_damaged_files(seed):
    outcomes = [judge(hostile) for hostile in corpus.damaged(200, seed)]
    assert outcomes.count("refused") > 150


@pytest.mark.slow
def test_every_file_cut_short_is_refused():
    for name, data in corpus.valid_files().items():
        for size in range(0, len(data), 97):
            assert judge(corpus.Hostile(name, data[:size])) == "refused"
