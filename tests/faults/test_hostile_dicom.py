"""The hostile series against what decodes them: an error of one sentence, or the true voxels."""

from __future__ import annotations

import traceback
import tracemalloc

import dicom_corpus
import numpy as np
import pytest

from ctgpu.buffers import BufferPool, Bytes, allocate_pages
from ctgpu.decode.dicom_header import left_out, read_header
from ctgpu.decode.dicom_pixels import decode_series, memory_bytes
from ctgpu.decode.inflate import MAX_RATIO
from ctgpu.errors import DecodeError, GeometryError

CRAFTED = list(dicom_corpus.crafted())


class Outcome(Exception):
    """Not an error of the package: how a hostile series was wrongly received."""


def judge(hostile: dicom_corpus.HostileSeries) -> str:
    """Read and decode as a source does: "refused", "true", or "other" for other voxels."""
    largest = MAX_RATIO * sum(map(len, hostile.files)) + (4 << 20)

    def allocate(size_bytes: int) -> Bytes:
        if size_bytes > largest:
            raise Outcome(f"{size_bytes} bytes were allocated")
        return allocate_pages(size_bytes)

    pool = BufferPool(allocate=allocate)
    tracemalloc.start()
    try:
        headers = [read_header(data, "a.dcm") for data in hostile.files]
        if any(left_out(header) for header in headers):
            return "refused"
        memory_bytes(headers)
        files = [np.frombuffer(data, np.uint8) for data in hostile.files]
        volume = decode_series("key-of-it", files, headers, pool)
        hu = volume.header_rescale.hu_of(volume.voxels)
        volume.release()
        return "true" if np.array_equal(hu, dicom_corpus.true_voxels()) else "other"
    except (DecodeError, GeometryError) as error:
        message, told = str(error), "".join(traceback.format_exception(error))
        if "\n" in message or not 20 < len(message) < 500:
            raise Outcome(f"the message is not one sentence: {message!r}") from error
        if any(mark in told for mark in dicom_corpus.MARKS.values()):
            raise Outcome(f"the message names a patient: {message!r}") from error
        return "refused"
    finally:
        # Pooled memory is not traced; what is left are headers, frames and messages.
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 128 << 20
        assert pool.lent_bytes == 0


@pytest.mark.parametrize("name", dicom_corpus.valid_series())
def test_the_undamaged_series_decode(name):
    files = dicom_corpus.valid_series()[name]
    assert judge(dicom_corpus.HostileSeries(name, files)) == "true"


@pytest.mark.slow
@pytest.mark.parametrize("hostile", CRAFTED, ids=[h.name for h in CRAFTED])
def test_crafted_series_are_refused(hostile):
    assert judge(hostile) == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_damaged_series(seed):
    # Pixels that are not compressed have no checksum, and no numeral of a header has one.
    outcomes = [judge(hostile) for hostile in dicom_corpus.damaged(200, seed)]
    assert outcomes.count("refused") > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", dicom_corpus.valid_series())
def test_every_series_with_a_file_cut_short_is_refused(name):
    *others, last = dicom_corpus.valid_series()[name]
    for size in range(0, len(last), 97):
        files = [*others, last[:size]]
        assert judge(dicom_corpus.HostileSeries(name, files)) == "refused"


def test_a_file_with_the_wrong_transfer_syntax_that_pydicom_sees_through():
    *others, last = dicom_corpus.valid_series()["explicit-single"]
    implicit = last.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    assert judge(dicom_corpus.HostileSeries("implicit", [*others, implicit])) == "true"
