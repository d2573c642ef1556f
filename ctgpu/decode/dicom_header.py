"""What one DICOM file says of its image: how it lies and how it is stored, and no more than that.

The file is read up to its pixels.  Of a multi-frame file (Enhanced CT) the functional groups are
read too, which say of each frame what the file itself says of a single one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from ctgpu.decode.dicom_quiet import quiet
from ctgpu.errors import DecodeError

if TYPE_CHECKING:
    from pydicom import Dataset

#: Along x, y and z, in DICOM's LPS+.
Position = tuple[float, float, float]

#: Bytes at which a file is known: a preamble, and ``DICM`` behind it.
MAGIC_BYTES = 132

#: ``SliceHeader.pixel_bytes`` of pixels that lie in fragments, compressed.
ENCAPSULATED = -1

# Functional groups for 2,000 frames are some 10 MB and 26,000 items, and take 300,000 reads where
# all sequences are of undefined length.  pydicom makes some 1.5 kB of every item.
_MOST_BYTES, _MOST_ITEMS, _MOST_READS = 1 << 26, 1 << 16, 1 << 19
_PIECE_BYTES = 1 << 12
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_UNDEFINED = 0xFFFFFFFF
_MOST = 1e9
# Of integers; of float and of double, which no CT has, the value is not noted.
_PIXEL_DATA, _OTHER_PIXEL_DATA = 0x7FE00010, (0x7FE00008, 0x7FE00009)

_TEXTS = {
    "series_uid": 0x0020000E,
    "study_uid": 0x0020000D,
    "sop_uid": 0x00080018,
    "modality": 0x00080060,
    "sop_class": 0x00080016,
    "photometric": 0x00280004,
}
_WHOLE = {
    "rows": 0x00280010,
    "columns": 0x00280011,
    "bits_allocated": 0x00280100,
    "bits_stored": 0x00280101,
    "high_bit": 0x00280102,
    "pixel_representation": 0x00280103,
    "samples_per_pixel": 0x00280002,
}
_IMAGE_TYPE, _FRAMES = 0x00080008, 0x00280008
_ACQUISITION_NUMBER, _INSTANCE_NUMBER = 0x00200012, 0x00200013
_POSITION, _ORIENTATION, _SPACING = 0x00200032, 0x00200037, 0x00280030
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_SHARED_GROUPS, _FRAME_GROUPS = 0x52009229, 0x52009230
# The functional group that holds each of them in a multi-frame file.
_GROUP_OF = {
    _POSITION: 0x00209113,
    _ORIENTATION: 0x00209116,
    _SPACING: 0x00289110,
    _SLOPE: 0x00289145,
    _INTERCEPT: 0x00289145,
}
_TAGS = [
    *_TEXTS.values(),
    *_WHOLE.values(),
    *(_IMAGE_TYPE, _FRAMES, _ACQUISITION_NUMBER, _INSTANCE_NUMBER),
    *_GROUP_OF,
    *(_SHARED_GROUPS, _FRAME_GROUPS),
]

_CT = frozenset(f"1.2.840.10008.5.1.4.1.1.2{part}" for part in ("", ".1", ".2"))
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_CAPTURES = frozenset({"SCREEN SAVE", "DOSE_INFO", "DOSE INFO"})


class SliceHeader(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One file of a series.

    What the file does not state is ``""``, 0 or None.  Where frames can differ there is one entry
    for all of them, or one a frame; none where some of them have none.

    Attributes
    ----------
    series_uid, study_uid, sop_uid : str
        They identify a patient to those who have the archive.
    modality, sop_class, transfer_syntax, photometric : str
        As the file has them.
    image_type : tuple of str
        Such as ``("ORIGINAL", "PRIMARY", "AXIAL")``.
    rows, columns, frames : int
        Of its image; 0 where there is none.
    positions : tuple of tuple of float
        Centre of the first voxel of each frame, LPS+ millimetres: one a frame.
    orientations : tuple of tuple of float
        Directions of a row and of a column, each x, y, z.
    pixel_spacings_mm : tuple of tuple of float
        Between rows, and between columns.
    slopes, intercepts : tuple of float
        From stored values to HU.
    bits_allocated, bits_stored, high_bit, pixel_representation, samples_per_pixel : int
        How a pixel is stored; representation 1 is signed.
    acquisition_number, instance_number : int or None
        As the file has them.
    pixel_offset, pixel_bytes : int
        Where the value of the pixel data begins in the file, and its length;
        :data:`ENCAPSULATED` where that is undefined, 0 where there is none.
    """

    series_uid: str
    study_uid: str
    sop_uid: str
    modality: str
    sop_class: str
    image_type: tuple[str, ...]
    transfer_syntax: str
    rows: int
    columns: int
    frames: int
    positions: tuple[Position, ...]
    orientations: tuple[tuple[float, ...], ...]
    pixel_spacings_mm: tuple[tuple[float, float], ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    samples_per_pixel: int
    photometric: str
    acquisition_number: int | None
    instance_number: int | None
    pixel_offset: int
    pixel_bytes: int


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is a DICOM file; :data:`MAGIC_BYTES` are looked at."""
    return head[MAGIC_BYTES - 4 : MAGIC_BYTES] == b"DICM"


def left_out(header: SliceHeader) -> str | None:
    """Why a file is no slice of a CT volume, as a category to count by; None where it is one."""
    if header.sop_class.startswith(_REPORTS):
        return "a report"
    if header.modality != "CT":
        return "of another modality"
    if header.sop_class.startswith(_SECONDARY_CAPTURE) or _CAPTURES & {*header.image_type}:
        return "a secondary capture"
    if "LOCALIZER" in header.image_type:
        return "a localizer"
    if header.sop_class not in _CT or not header.frames:
        return "without a CT image"
    return None


def read_header(file: BinaryIO | bytes, name: str) -> SliceHeader:
    """Read a file up to its pixels.

    Memory is bounded whatever the file holds, and nothing that it says gets into a message.

    Parameters
    ----------
    file : file object or bytes
        The whole file; a file object that can seek.
    name : str
        What messages call it.

    Raises
    ------
    DecodeError
        If it is no DICOM file, or is damaged before its pixels.
    EnvironmentFailure
        If pydicom is not installed.
    OSError
        If it cannot be read.
    """
    reader = _Reader(io.BytesIO(file) if isinstance(file, bytes) else file, name)
    if not is_dicom(reader.read(MAGIC_BYTES)):
        raise DecodeError(
            f"{name} does not begin as DICOM files do, with DICM at byte {MAGIC_BYTES - 4}: leave "
            "it out, or fetch it again"
        )
    reader.seek(0)
    damaged = f"{name} is a DICOM file that cannot be read up to its pixels: fetch it again"
    try:
        with quiet(damaged):
            return _header(reader)
    except DecodeError:
        # pydicom makes errors of its own of those that it meets.
        if reader.failure is not None:
            raise reader.failure from None
        raise


class _Reader:
    """A file as pydicom reads it, which it may not read without end.

    It has no name that pydicom could tell.  Whatever is made of the file costs reads, so these are
    counted too.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.failure: Exception | None = None
        self.bytes, self.items, self.reads = 0, 0, 0
        self._file, self._name = file, name
        self._size_bytes = file.seek(0, io.SEEK_END)
        self.tell = file.tell
        self.seek = file.seek
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            # Nothing but a file that is deflated as a whole is read to its end.
            return self._fail(
                "is deflated as a whole, which hides how large it is: convert it, with "
                "`gdcmconv --raw` for instance"
            )
        if size > _PIECE_BYTES:
            # A length that lies allocates no more than the file has.
            size = min(size, max(0, self._size_bytes - self._file.tell()))
        self.bytes, self.reads = self.bytes + size, self.reads + 1
        if self.bytes > _MOST_BYTES or self.items > _MOST_ITEMS or self.reads > _MOST_READS:
            return self._fail(
                f"has a header of more than {_MOST_BYTES:,} bytes, {_MOST_ITEMS:,} items or "
                f"{_MOST_READS:,} parts, as no CT has: leave it out"
            )
        try:
            data = self._file.read(size)
        except OSError as error:
            self.failure = error
            raise
        self.items += size == 8 and data.startswith(_ITEM_TAGS)
        return data

    def within(self, value: bytes) -> _Reader:
        """A part of the file, whose reads count too."""
        part = _Reader(io.BytesIO(value), self._name)
        part.bytes, part.items, part.reads = self.bytes - len(value), self.items, self.reads
        return part

    def count(self, part: _Reader) -> None:
        """What reading a part took."""
        self.bytes, self.items, self.reads = part.bytes, part.items, part.reads
        self.failure = self.failure or part.failure

    def _fail(self, found: str) -> bytes:
        self.failure = DecodeError(f"{self._name} {found}")
        raise self.failure


def _header(reader: _Reader) -> SliceHeader:
    from pydicom.filereader import read_partial

    pixels = (0, 0)

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        nonlocal pixels
        number = int(tag)  # pydicom's own are slow to compare
        if number == _PIXEL_DATA:
            pixels = reader.tell(), ENCAPSULATED if length == _UNDEFINED else length
        return number == _PIXEL_DATA or number in _OTHER_PIXEL_DATA

    file: Any = reader
    dataset = read_partial(file, at_pixels, specific_tags=list(_TAGS))
    top = _Elements(dataset, reader)
    whole = {key: top.whole(tag) for key, tag in _WHOLE.items()}
    is_image = whole["rows"] and whole["columns"] and pixels[1]
    frames = max(0, top.whole_text(_FRAMES) or 1) if is_image else 0
    texts = {key: top.text(tag) for key, tag in _TEXTS.items()}
    facts: dict[str, Any] = {**texts, **whole, **_of_frames(top, frames)}
    return SliceHeader(
        **facts,
        image_type=tuple(part.strip() for part in top.text(_IMAGE_TYPE).split("\\")),
        transfer_syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        frames=frames,
        acquisition_number=top.whole_text(_ACQUISITION_NUMBER),
        instance_number=top.whole_text(_INSTANCE_NUMBER),
        pixel_offset=pixels[0],
        pixel_bytes=pixels[1],
    )


def _of_frames(top: _Elements, frames: int) -> dict[str, Any]:
    """What the file says of each frame: in a group of the frame, of all frames, or by itself."""
    shared = [_Frame(item) for item in top.items(_SHARED_GROUPS)[:1]]
    of_each = [_Frame(item) for item in top.items(_FRAME_GROUPS)]

    def stated(tag: int, count: int) -> tuple[tuple[float, ...], ...]:
        of_all = shared[0].numbers(tag, count) if shared else None
        of_all = of_all or top.numbers(tag, count)
        if not of_each:
            return () if of_all is None else (of_all,)
        found = [numbers for frame in of_each if (numbers := frame.numbers(tag, count) or of_all)]
        return tuple(found) if len(of_each) == len(found) == frames else ()

    def stated_once(tag: int, count: int) -> tuple[tuple[float, ...], ...]:
        found = stated(tag, count)
        return found[:1] if len({*found}) == 1 else found

    positions = stated(_POSITION, 3)
    return {
        "positions": positions if len(positions) == frames else (),
        "orientations": stated_once(_ORIENTATION, 6),
        "pixel_spacings_mm": stated_once(_SPACING, 2),
        "slopes": tuple(slope for (slope,) in stated_once(_SLOPE, 1)),
        "intercepts": tuple(intercept for (intercept,) in stated_once(_INTERCEPT, 1)),
    }


class _Elements:
    """The elements of a data set, as bytes: nothing is interpreted but what is asked for."""

    def __init__(self, dataset: Dataset, reader: _Reader) -> None:
        self._dataset, self._reader = dataset, reader

    def bytes(self, tag: int) -> bytes:
        """Those of an element; none where it is missing or holds no plain value."""
        value = self._dataset.get_item(tag).value if tag in self._dataset else None
        return value if isinstance(value, bytes) else b""

    def text(self, tag: int) -> str:
        return self.bytes(tag).decode("ascii", "replace").strip(" \0")

    def whole(self, tag: int) -> int:
        """A number of 16 bits; 0 where there is none."""
        value = self.bytes(tag)[:2]
        if len(value) < 2:
            return 0
        element: Any = self._dataset.get_item(tag)
        return int.from_bytes(value, "little" if element.is_little_endian else "big")

    def whole_text(self, tag: int) -> int | None:
        """A whole number that is written as text; None where there is none."""
        numbers = self.numbers(tag, 1)
        return int(numbers[0]) if numbers else None

    def numbers(self, tag: int, count: int) -> tuple[float, ...] | None:
        """So many numbers that are written as text; None where these are not there.

        What is as large as no length or slope can be is none.
        """
        try:
            numbers = tuple(float(part) for part in self.text(tag).split("\\"))
        except ValueError:
            return None
        return numbers if len(numbers) == count and all(abs(n) < _MOST for n in numbers) else None

    def items(self, tag: int) -> Sequence[_Elements]:
        """Those of a sequence."""
        if tag not in self._dataset:
            return []
        element: Any = self._dataset.get_item(tag)
        value = element.value
        if isinstance(value, bytes):
            # Of a defined length, which pydicom has taken as it stands.
            from pydicom.filereader import read_sequence

            part: Any = self._reader.within(value)
            try:
                value = read_sequence(
                    part,
                    element.is_implicit_VR,
                    element.is_little_endian,
                    len(value),
                    "iso8859",
                )
            finally:
                self._reader.count(part)
        return [_Elements(item, self._reader) for item in value or ()]


class _Frame:
    """The functional groups of one frame, or of all."""

    def __init__(self, groups: _Elements) -> None:
        self._groups = groups
        self._read: dict[int, _Elements | None] = {}

    def numbers(self, tag: int, count: int) -> tuple[float, ...] | None:
        group = _GROUP_OF[tag]
        if group not in self._read:
            items = self._groups.items(group)
            self._read[group] = items[0] if items else None
        elements = self._read[group]
        return None if elements is None else elements.numbers(tag, count)
