"""What can go wrong, in one place.

::

    CtgpuError
    ├── UsageError           the request cannot be honoured              exit code 2
    │   └── MismatchError    a folder belongs to another spec or source  exit code 2
    ├── EnvironmentFailure   token, network, space, device               exit code 3
    │   ├── AccessError      no token, or the repository is gated
    │   ├── SourceError      the source cannot be reached or listed
    │   ├── StorageError     the output folder cannot be written
    │   └── DeviceError      the engine asked for cannot run here
    └── SampleError          one sample can never succeed; the build goes on, exit code 1
        ├── FetchError       its bytes cannot be had, or fail their checksum
        ├── DecodeError      its bytes are not the volume they claim to be
        ├── TableError       its row in the CSVs is missing or unusable
        ├── GeometryError    its spacing or shape cannot be used
        └── IntensityError   its voxels cannot be Hounsfield units as asked

Every message is one sentence that says which file, what was found, what was wanted and the way
out.  The command line prints it without a traceback (``--debug`` shows one).
"""

from __future__ import annotations

from typing import ClassVar


class CtgpuError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(CtgpuError):
    """The request cannot be honoured as it was made."""

    exit_code = 2


class MismatchError(UsageError):
    """A folder was begun with another spec, source or selection than the one asked for."""


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
    """The shape or spacing of a sample cannot be used."""

    stage = "geometry"


class IntensityError(SampleError):
    """The voxels of a sample cannot be Hounsfield units under the chosen source."""

    stage = "intensity"
