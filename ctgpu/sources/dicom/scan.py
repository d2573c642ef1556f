"""What the files of a folder say, each looked into once and no further than its pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ctgpu.decode.dicom_header import MAGIC_BYTES, SliceHeader, is_dicom, read_header
from ctgpu.decode.dicom_header import left_out as no_slice
from ctgpu.errors import DecodeError, reason_of, shortage
from ctgpu.machine import usable_cores
from ctgpu.printable import counted
from ctgpu.shards.untrusted import open_regular
from ctgpu.sources.dicom.private import SeriesFile
from ctgpu.sources.dicom.walk import FoundFile
from ctgpu.volume.ref import DICOM_SUFFIXES

_log = logging.getLogger(__name__)

#: Why a file is none, beside what :func:`ctgpu.decode.dicom_header.left_out` says.
NO_DICOM = "no DICOM"
#: Of one that may be a slice, and nobody knows of what.
BROKEN = "not readable: "

# What waits for a network's disk needs more threads than cores.
_THREADS_A_CORE = 4
_MOST_THREADS = 32
_CHUNK = 64
# CT Image Storage, and Enhanced CT, also of what was converted to it.
_CT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.2{part}" for part in ("", ".1", ".2"))


def scan(
    root: Path, found: Iterable[FoundFile], known: Mapping[str, SeriesFile]
) -> list[SeriesFile]:
    """What files say.

    Parameters
    ----------
    root : Path
        What their paths are relative to.
    found : iterable of FoundFile
        The files as they are now.
    known : mapping of str to SeriesFile
        What they said before, by path; one that has not changed since is not opened.

    Returns
    -------
    list of SeriesFile
        In the order of `found`.

    Raises
    ------
    EnvironmentFailure
        If pydicom is not installed, or this machine has too little of something.
    """
    found = list(found)
    old = {path: file for path, file in known.items() if not file.left_out.startswith(BROKEN)}
    new = [file for file in found if not _is_known(file, old)]
    said: dict[str, SeriesFile] = {}
    if new:
        threads = min(_MOST_THREADS, _THREADS_A_CORE * usable_cores(), len(new))
        chunks = [new[place : place + _CHUNK] for place in range(0, len(new), _CHUNK)]
        _log.info("%s looked into, up to the pixels", counted(len(new), "file is", "files are"))
        with ThreadPoolExecutor(threads, "ctgpu-scan") as pool:
            try:
                for files in pool.map(partial(_look_into_all, root), chunks):
                    said |= {file.path: file for file in files}
            except BaseException:
                # Of a million files most are not begun.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [said.get(file.path) or old[file.path] for file in found]


def _is_known(file: FoundFile, known: Mapping[str, SeriesFile]) -> bool:
    before = known.get(file.path)
    return before is not None and (before.size_bytes, before.mtime_ns) == file[1:]


def _look_into_all(root: Path, files: Iterable[FoundFile]) -> list[SeriesFile]:
    return [_look_into(root, file) for file in files]


def _look_into(root: Path, file: FoundFile) -> SeriesFile:
    is_named_so = file.path.lower().endswith(DICOM_SUFFIXES)
    header, left_out = None, ""
    try:
        with os.fdopen(open_regular(root / file.path), "rb") as opened:
            if not is_named_so and not is_dicom(opened.read(MAGIC_BYTES)):
                left_out = NO_DICOM
                if not file.size_bytes:
                    # Of a copy that was stopped, and whatever it is called.
                    left_out = f"{BROKEN}it is empty"
            else:
                opened.seek(0)
                header = read_header(opened, "a DICOM file")
                left_out = _doubt(header) or no_slice(header) or ""
    except OSError as error:
        nameless = OSError(error.errno, reason_of(error))
        if (short := shortage(nameless)) is not None:
            raise short from None
        left_out = f"{BROKEN}{reason_of(error)}"
    except DecodeError as error:
        left_out = f"{BROKEN}{error}"
    return SeriesFile(*file, None if left_out else header, left_out)


def _doubt(header: SliceHeader) -> str | None:
    """Why a file that can be read may be a slice all the same: what is cut lacks its end."""
    if not header.modality:
        return f"{BROKEN}it does not say what it is"
    if header.sop_class in _CT_IMAGES and not header.frames:
        return f"{BROKEN}it has no pixels"
    if no_slice(header) is None and not header.series_uid:
        return f"{BROKEN}it has no SeriesInstanceUID"
    return None
