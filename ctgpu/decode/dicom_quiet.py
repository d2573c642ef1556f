"""pydicom without its voice: its warnings, log lines and errors may quote what names a patient."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ctgpu.errors import CtgpuError, DecodeError, EnvironmentFailure, shortage
from ctgpu.installation import install_command

_LOGGERS = ("pydicom", "pydicom.pixels.decoders.base", "pydicom.pixels.utils", "openjpeg.decode")
_FILTER = ("ignore", None, Warning, re.compile(r"pydicom(\.|$)"), 0)
_lock = threading.Lock()
_asking = 0


@contextmanager
def quiet(sentence: str) -> Iterator[None]:
    """Run pydicom so that only a sentence of this package gets out, whatever goes wrong in it.

    Any thread may be in here at any time; while one is, warnings and log lines of pydicom are
    dropped in the whole process.

    Parameters
    ----------
    sentence : str
        What is wrong with the file where pydicom fails on it.

    Raises
    ------
    DecodeError
        With `sentence`, without the error behind it.
    EnvironmentFailure
        If pydicom is not installed, with the command that adds it.
    """
    _begin()
    try:
        yield
    except (CtgpuError, MemoryError):
        raise
    except ImportError as error:
        raise shortage(error) or EnvironmentFailure(
            f"DICOM is read by pydicom and its plugins, of which {error.name} is not installed "
            f"here: `{install_command('dicom')}`"
        ) from error
    except Exception as error:
        raise shortage(error) or DecodeError(sentence) from None
    finally:
        _end()


def _begin() -> None:
    global _asking
    with _lock:
        filters: Any = warnings.filters
        # Others may have put theirs before it since, or back, as warnings.catch_warnings does.
        if filters[:1] != [_FILTER]:
            filters.insert(0, _FILTER)
        if _asking == 0:
            for name in _LOGGERS:
                logging.getLogger(name).addFilter(_drop)
        _asking += 1


def _end() -> None:
    global _asking
    with _lock:
        _asking -= 1
        if _asking == 0:
            filters: Any = warnings.filters
            while _FILTER in filters:
                filters.remove(_FILTER)
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False
