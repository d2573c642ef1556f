"""What can go wrong, in one place.

::

    CtgpuError
    ├── UsageError           the request cannot be honoured              exit code 2
    │   ├── MismatchError    a folder belongs to another spec or source  exit code 2
    │   └── NewerFormatError a file was written by a newer ctgpu         exit code 2
    ├── EnvironmentFailure   token, network, space, device               exit code 3
    │   ├── AccessError      no token, or the repository is gated
    │   ├── SourceError      the source cannot be reached or listed
    │   ├── StorageError     the output folder cannot be written
    │   └── DeviceError      the engine asked for cannot run here
    └── SampleError          one sample can never succeed; the build goes on, exit code 1
        ├── FetchError       its bytes cannot be had, or fail their checksum
        ├── DecodeError      its bytes are not the volume they claim to be
        ├── TableError       its row in the CSVs is missing or unusable
        ├── GeometryError    its spacing, shape or orientation cannot be used
        └── IntensityError   its voxels cannot be Hounsfield units as asked

Every message is one sentence that says which file, what was found, what was wanted and the way
out.  The command line prints it without a traceback (``--debug`` shows one).

What Python and the system raise where the machine has no more to give becomes an
:class:`EnvironmentFailure` too, by :func:`shortage`.  Any other exception is a defect of this
package, and the command line exits with 70 (``EX_SOFTWARE`` of ``sysexits.h``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import ClassVar


class CtgpuError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(CtgpuError):
    """The request cannot be honoured as it was made."""

    exit_code = 2


class MismatchError(UsageError):
    """A folder was begun with another spec, source or selection than the one asked for."""


class NewerFormatError(UsageError):
    """A file says what only a newer ctgpu can understand; nothing is wrong with it."""


class EnvironmentFailure(CtgpuError):
    """The machine, the network or the account stands in the way, not the request."""

    exit_code = 3


class AccessError(EnvironmentFailure):
    """The source refuses this account: no token, a revoked one, or terms not accepted."""


class SourceError(EnvironmentFailure):
    """The source cannot be reached or listed."""


class StorageError(EnvironmentFailure):
    """The output folder cannot be written: full, read-only or gone."""


class DeviceError(EnvironmentFailure):
    """The engine asked for cannot run on this machine."""


class SampleError(CtgpuError):
    """One sample can never succeed; it goes to the failure ledger and the build goes on."""

    stage: ClassVar[str] = "sample"


class FetchError(SampleError):
    """The bytes of a sample cannot be had, or do not match their checksum."""

    stage = "fetch"


class DecodeError(SampleError):
    """The bytes of a sample are not the volume they claim to be."""

    stage = "decode"


class TableError(SampleError):
    """The CSV row of a sample is missing, doubled or unusable."""

    stage = "tables"


class GeometryError(SampleError):
    """The shape, spacing or orientation of a sample cannot be used."""

    stage = "geometry"


class IntensityError(SampleError):
    """The voxels of a sample cannot be Hounsfield units under the chosen source."""

    stage = "intensity"


def reason_of(error: OSError) -> str:
    """What the system says of `error`; its message where a library raised it without a number."""
    return error.strerror or str(error) or type(error).__name__


_AGAIN = "then run the same command again: finished samples are kept"
_SHORT_OF = {
    errno.EMFILE: f"too many files are open; raise the limit with `ulimit -n`, {_AGAIN}",
    errno.ENFILE: f"too many files are open on this machine; close some, {_AGAIN}",
    errno.ENOSPC: f"no space is left; free some, {_AGAIN}",
    errno.EDQUOT: f"the quota is used up; free some space, {_AGAIN}",
}
_OUT_OF_MEMORY = (
    "memory ran out ({}): lower --memory-limit or --num-workers, or free some, and run the same "
    "command again, finished samples are kept"
)
_NO_MORE_THREADS = (
    "no more threads can be started here: lower --num-workers, or raise the limit (`ulimit -u` or "
    f"`-v`, pids.max of the control group), {_AGAIN}"
)
# Of Python's threads, of the standard library of C++.
_NO_THREAD = ("can't start new thread", "Resource temporarily unavailable")
# Of the loader of libraries, of torch.
_NO_MEMORY = ("failed to map segment", "annot allocate memory", "can't allocate memory")


def shortage(error: BaseException) -> EnvironmentFailure | None:
    """What the machine has run out of, where that is what `error` comes from.

    Threads, memory, open files, space: what meets it first, a sample or a command, is not to
    blame.  Also found behind an error that was raised from it.

    Returns
    -------
    EnvironmentFailure or None
        The sentence, caused by `error`; None where it is about something else, or has its own.
    """
    if isinstance(error, EnvironmentFailure | UsageError):
        return None
    for cause in _causes(error):
        if (sentence := _shortage_of(cause)) is not None:
            failure = EnvironmentFailure(sentence)
            failure.__cause__ = error
            return failure
    return None


def _shortage_of(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, OSError) and error.errno in _SHORT_OF:
        where = f"{error.filename}: " if error.filename is not None else ""
        return where + _SHORT_OF[error.errno]
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return _OUT_OF_MEMORY.format(text or type(error).__name__)
    if isinstance(error, RuntimeError | ImportError) and any(words in text for words in _NO_MEMORY):
        return _OUT_OF_MEMORY.format(text)
    if isinstance(error, RuntimeError) and any(words in text for words in _NO_THREAD):
        return _NO_MORE_THREADS
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it was raised from, as a traceback shows it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
