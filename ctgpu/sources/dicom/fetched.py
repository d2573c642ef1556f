"""The bytes of one series: its files one after the other, with their headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctgpu.buffers import Allocate, BufferPool, Bytes
from ctgpu.decode import MAX_VOLUME_BYTES
from ctgpu.decode.dicom_header import SliceHeader
from ctgpu.decode.dicom_pixels import decode_series, memory_bytes
from ctgpu.errors import FetchError, reason_of
from ctgpu.shards.untrusted import FileChanged, read_unchanged_into
from ctgpu.sources.dicom.private import Series
from ctgpu.sources.fetched import Fetched
from ctgpu.volume.raw import RawVolume

_NOTHING = Series("", "", ())


@dataclass(frozen=True, slots=True)
class FetchedSeries(Fetched):
    """One series as its files store it.

    Attributes
    ----------
    series : Series
        Which files lie in the buffer, and what their headers say.
    """

    series: Series = _NOTHING

    @property
    def inflated_bytes(self) -> int:
        return memory_bytes(self._headers)

    def decode(self, pool: BufferPool, *, limit_bytes: int = MAX_VOLUME_BYTES) -> RawVolume:
        with self.buffer.released_on_error():
            volume = decode_series(
                self.path, self._files(), self._headers, pool, limit_bytes=limit_bytes
            )
        self.buffer.release()
        return volume

    @property
    def _headers(self) -> list[SliceHeader]:
        return [file.header for file in self.series.files if file.header is not None]

    def _files(self) -> list[Bytes]:
        files, begin = [], 0
        for file in self.series.files:
            files.append(self.buffer.bytes[begin : begin + file.size_bytes])
            begin += file.size_bytes
        return files


def fetch_series(root: Path, path: str, series: Series, allocate: Allocate) -> FetchedSeries:
    """The files of a series, read one after the other into one buffer.

    Parameters
    ----------
    root : Path
        The source.
    path : str
        What messages call the series.
    series : Series
        Its files.
    allocate : callable
        Lends a buffer of so many bytes; it has been released if anything is raised.

    Raises
    ------
    FetchError
        If a file is gone, is not as it was listed, or cannot be read; it is not named.
    """
    buffer = allocate(series.size_bytes)
    with buffer.released_on_error():
        begin = 0
        for number, file in enumerate(series.files, 1):
            end = begin + file.size_bytes
            failed = _read(root / file.path, buffer.bytes[begin:end])
            if failed is not None:
                raise FetchError(
                    f"{path}: file {number} of its {len(series.files)} (private/series.json names "
                    f"it) cannot be read: {reason_of(failed)}"
                    f"{', then' if isinstance(failed, FileChanged) else '; mend that, then'} "
                    "use --retry-failed"
                ) from failed
            begin = end
    return FetchedSeries(path, buffer, series=series)


def _read(path: Path, out: Bytes) -> OSError | None:
    """Fill `out` with a file, or say why not without its name: a traceback would show it."""
    try:
        read_unchanged_into(path, out)
    except FileChanged as error:
        return FileChanged(error.errno, reason_of(error))
    except OSError as error:
        return OSError(error.errno, reason_of(error))
    return None
