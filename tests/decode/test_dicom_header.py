"""Headers against pydicom's own reading of what is written here, and against files that lie."""

from __future__ import annotations

import io
import logging
import struct
import traceback

import msgspec
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from ctgpu.decode.dicom_header import (
    ENCAPSULATED,
    MAGIC_BYTES,
    SliceHeader,
    is_dicom,
    left_out,
    read_header,
)
from ctgpu.errors import DecodeError
from support.dicom_series import SYNTAXES, datasets_of, file_bytes, plant, uid_of

HU = np.random.default_rng(3).integers(-1000, 1000, (36, 33, 4)).astype(np.int16)
AFFINE = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 80], [0, 0, 1.5, -30], [0, 0, 0, 1]])
MARKS = {"name": "Zzyzx^Quentin", "date": "19510417", "id": "PID-7731-QX"}


def slices(**form) -> list[Dataset]:
    return datasets_of(HU, AFFINE, **form)


def header_of(dataset: Dataset, transfer_syntax: str = "explicit") -> SliceHeader:
    return read_header(file_bytes(dataset, transfer_syntax), "a.dcm")


@pytest.mark.parametrize("transfer_syntax", SYNTAXES)
def test_a_single_frame(transfer_syntax):
    data = file_bytes(slices()[2], transfer_syntax)
    header = read_header(io.BytesIO(data), "a.dcm")
    assert (header.rows, header.columns, header.frames) == (33, 36, 1)
    assert header.positions == ((-90.0, -80.0, -27.0),)
    assert header.orientations == ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),)
    # Between rows, then between columns.
    assert header.pixel_spacings_mm == ((0.8, 0.7),)
    assert (header.slopes, header.intercepts) == ((1.0,), (-1024.0,))
    assert header.transfer_syntax == SYNTAXES[transfer_syntax]
    assert (header.series_uid, header.study_uid) == (uid_of("series"), uid_of("study"))
    assert (header.instance_number, header.acquisition_number) == (3, 1)
    assert (header.bits_allocated, header.bits_stored, header.high_bit) == (16, 16, 15)
    assert (header.pixel_representation, header.samples_per_pixel) == (0, 1)
    assert (header.modality, header.photometric) == ("CT", "MONOCHROME2")
    assert left_out(header) is None
    if SYNTAXES[transfer_syntax].is_compressed:
        assert header.pixel_bytes == ENCAPSULATED
        assert data[header.pixel_offset :][:4] == b"\xfe\xff\x00\xe0"
    else:
        assert header.pixel_bytes == 36 * 33 * 2
        assert header.pixel_offset + header.pixel_bytes == len(data)


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
@pytest.mark.parametrize("transfer_syntax", ["explicit", "implicit", "big"])
def test_a_multi_frame_file(transfer_syntax, undefined):
    (dataset,) = slices(form="enhanced")
    if undefined:
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            dataset[keyword].is_undefined_length = True
    header = header_of(dataset, transfer_syntax)
    assert header.frames == 4
    assert header.positions == tuple((-90.0, -80.0, z) for z in (-30.0, -28.5, -27.0, -25.5))
    assert header.orientations == ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),)
    assert header.pixel_spacings_mm == ((0.8, 0.7),)
    assert (header.slopes, header.intercepts) == ((1.0,), (-1024.0,))
    assert left_out(header) is None


def test_what_frames_state_outweighs_what_all_share():
    (dataset,) = slices(form="enhanced")
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence[:3]):
        one = Dataset()
        one.RescaleSlope, one.RescaleIntercept = str(k + 2), "-1000"
        group.PixelValueTransformationSequence = Sequence([one])
    header = header_of(dataset)
    assert header.slopes == (2.0, 3.0, 4.0, 1.0)
    assert header.intercepts == (-1000.0, -1000.0, -1000.0, -1024.0)


def test_frames_without_a_position_have_none_at_all():
    (dataset,) = slices(form="enhanced")
    del dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence
    assert header_of(dataset).positions == ()
    dataset.NumberOfFrames = 3
    assert header_of(dataset).positions == ()
    del dataset.PerFrameFunctionalGroupsSequence
    assert header_of(dataset).positions == ()


def test_frames_in_one_place_have_a_position_each():
    (dataset,) = slices(form="enhanced")
    groups = dataset.PerFrameFunctionalGroupsSequence
    for group in groups:
        group.PlanePositionSequence = groups[0].PlanePositionSequence
    assert header_of(dataset).positions == ((-90.0, -80.0, -30.0),) * 4


@pytest.mark.parametrize("text", ["", "1\\2", "1\\2\\x", "1\\2\\nan", "1\\2\\inf", "1\\2\\1e300"])
def test_what_is_no_position_is_none(text):
    dataset = slices()[0]
    data = file_bytes(dataset).replace(b"-90\\-80\\-30 ", text.encode().ljust(12))
    assert len(data) == len(file_bytes(dataset))
    assert read_header(data, "a.dcm").positions == ()


def test_round_trip_as_json():
    for dataset in (*slices(), *slices(form="enhanced")):
        header = header_of(dataset)
        assert msgspec.json.decode(msgspec.json.encode(header), type=SliceHeader) == header


@pytest.mark.parametrize(
    ("changes", "category"),
    [
        ({"Modality": "MR"}, "of another modality"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "a secondary capture"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR"}, "a report"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66"}, "without a CT image"),
        ({"Rows": 0}, "without a CT image"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, None),
    ],
)
def test_what_is_left_out(changes, category):
    dataset = slices()[0]
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    assert left_out(header_of(dataset)) == category


def test_magic():
    data = file_bytes(slices()[0])
    assert is_dicom(data[:MAGIC_BYTES])
    assert not is_dicom(data[: MAGIC_BYTES - 1])
    for other in (b"", data[128:], bytes(400)):
        assert not is_dicom(other)
        with pytest.raises(DecodeError, match=r"^a\.dcm does not begin as DICOM"):
            read_header(other, "a.dcm")


def test_nothing_that_names_a_patient_is_read(caplog):
    dataset = slices()[0]
    plant(dataset, MARKS)
    with caplog.at_level(logging.DEBUG):
        header = header_of(dataset)
    assert not any(mark in repr(header) + caplog.text for mark in MARKS.values())


def test_errors_do_not_quote_the_file(caplog):
    (dataset,) = slices(form="enhanced")
    plant(dataset, MARKS)
    data = file_bytes(dataset)
    told = [sentence_of(data[:cut]) for cut in range(MAGIC_BYTES, len(data), 7)]
    # Without its sequences nothing could go wrong in them.
    assert len({*told}) > 1
    assert not any(mark in caplog.text + "".join(told) for mark in MARKS.values())


def sentence_of(data: bytes) -> str:
    """What is said of a file that cannot be read, with its traceback."""
    try:
        read_header(data, "a.dcm")
    except DecodeError as error:
        return "".join(traceback.format_exception(error))
    return ""


def test_a_length_that_lies_costs_no_memory():
    data = file_bytes(slices()[0])
    place = data.index(b"\x20\x00\x32\x00DS")
    # As a value of 32 bits of length, which is 3 GB.
    lying = data[:place] + b"\x20\x00\x32\x00UT\0\0" + struct.pack("<I", 3 << 30) + data[place:]
    header = read_header(lying, "a.dcm")
    assert header.pixel_bytes == 0
    assert left_out(header) == "without a CT image"


def test_what_is_deflated_as_a_whole_is_refused_unread():
    data = file_bytes(slices()[0])
    place = data.index(b"1.2.840.10008.1.2.1\0") - 2
    deflated = data[:place] + struct.pack("<H", 22) + b"1.2.840.10008.1.2.1.99" + data[place + 22 :]
    with pytest.raises(DecodeError, match=r"^a\.dcm is deflated as a whole.*gdcmconv --raw"):
        read_header(deflated, "a.dcm")


def test_a_file_that_cannot_be_read_is_an_error_of_the_system():
    class Failing(io.BytesIO):
        def read(self, size=-1, /):
            if self.tell() > 400:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output error"):
        read_header(Failing(file_bytes(slices()[0])), "a.dcm")
