"""MetaImage against SimpleITK, which is the oracle."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from ctgpu.decode import decode, inflated_size
from ctgpu.errors import DecodeError
from support.itk_images import DIRECTIONS, DTYPES, ITK_AFFINES, marked, write_itk

HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = -10 -20 30
ElementSpacing = 0.7 0.8 1.5
DimSize = 5 4 3
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
VOXELS = marked((5, 4, 3), "int16")


def made(voxels: np.ndarray = VOXELS, **changes: str | None) -> bytes:
    """A file by hand, with lines of its header changed, added or (None) left out."""
    lines = dict(line.split(" = ") for line in HEADER.splitlines())
    last = lines.pop("ElementDataFile")
    lines |= {key: value for key, value in changes.items() if value is not None}
    for key, value in changes.items():
        if value is None:
            del lines[key]
    lines["ElementDataFile"] = changes.get("ElementDataFile") or last
    text = "".join(f"{key} = {value}\n" for key, value in sorted(lines.items(), key=_last))
    return text.encode() + voxels.tobytes("F")


def _last(line: tuple[str, str]) -> bool:
    return line[0] == "ElementDataFile"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "zlib"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_itk_writes(dtype, compress, direction, load, tmp_path):
    voxels = marked((7, 5, 4), dtype)
    path = write_itk(tmp_path / "a.mha", voxels, direction, compress=compress)
    volume = load("a.mha", path.read_bytes())
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.voxels.dtype == np.dtype(dtype)
    np.testing.assert_allclose(volume.affine, ITK_AFFINES[direction], atol=1e-12)
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.8, 1.5), rtol=1e-12)
    assert (volume.format, volume.header_rescale.is_identity) == ("metaimage", True)


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "zraw"])
def test_a_header_and_its_voxels_in_two_files(compress, pool, fill, tmp_path):
    voxels = marked((7, 5, 4), "int16")
    path = write_itk(tmp_path / "a.mhd", voxels, "LPS", compress=compress)
    payload = tmp_path / ("a.zraw" if compress else "a.raw")
    volume = decode("a.mhd", fill(payload.read_bytes()), pool, header=path.read_bytes())
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, ITK_AFFINES["LPS"], atol=1e-12)
    volume.release()


def test_voxels_are_used_where_they_lie(load):
    volume = load("a.mha", made())
    assert inflated_size("a.mha", np.frombuffer(made(), np.uint8)) == 0
    assert np.shares_memory(volume.voxels, volume.buffer.bytes)
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_either_byte_order(load):
    for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        data = made(VOXELS.astype(">i2"), **{"BinaryDataByteOrderMSB": "False", key: "True"})
        if key == "ElementByteOrderMSB":
            data = made(VOXELS.astype(">i2"), BinaryDataByteOrderMSB=None, **{key: "True"})
        volume = load("a.mha", data)
        assert volume.voxels.dtype == np.dtype(">i2")
        np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_without_a_matrix_nothing_says_how_the_scan_lies(load):
    volume = load("a.mha", made(TransformMatrix=None))
    assert volume.affine is None
    assert volume.spacing_mm == (0.7, 0.8, 1.5)


def test_without_a_spacing_the_size_of_an_element_is_taken_as_itk_does(load):
    data = made(ElementSpacing=None, ElementSize="1 2 3")
    assert load("a.mha", data).spacing_mm == (1, 2, 3)
    assert load("a.mha", made(ElementSpacing=None)).spacing_mm is None


def test_older_names_of_matrix_and_origin(load):
    data = made(TransformMatrix=None, Offset=None, Rotation="1 0 0 0 1 0 0 0 1", Position="1 2 3")
    assert load("a.mha", data).affine[:3, 3].tolist() == [-1, -2, 3]


def test_a_fourth_axis_of_one(load):
    data = made(
        DimSize="5 4 3 1",
        NDims="4",
        ElementSpacing="0.7 0.8 1.5 1",
        Offset="1 2 3 0",
        TransformMatrix="1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1",
    )
    volume = load("a.mha", data)
    assert volume.voxels.shape == (5, 4, 3)
    np.testing.assert_array_equal(np.diag(volume.affine), [-0.7, -0.8, 1.5, 1])


def test_bytes_before_the_voxels_of_a_file_of_their_own(pool, fill):
    for header_size, before in (("6", b"before"), ("-1", b"anything")):
        header = made(ElementDataFile="a.raw", HeaderSize=header_size)[: -VOXELS.nbytes]
        data = before + VOXELS.tobytes("F")
        volume = decode("a.mhd", fill(data), pool, header=header)
        np.testing.assert_array_equal(volume.voxels, VOXELS)
        volume.release()


def test_a_header_without_its_last_end_of_line(pool, fill):
    header = made(ElementDataFile="a.raw")[: -VOXELS.nbytes].rstrip(b"\n")
    volume = decode("a.mhd", fill(VOXELS.tobytes("F")), pool, header=header)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    volume.release()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ElementType": "MET_LONG"}, "ElementType MET_LONG; wanted one of MET_CHAR"),
        ({"ElementType": None}, "ElementType none"),
        ({"BinaryData": "False"}, "holds its voxels as text"),
        ({"ElementNumberOfChannels": "3"}, "has 3 channels; wanted 1"),
        ({"DimSize": "5 4"}, r"shape \(5, 4\); wanted three axes"),
        ({"DimSize": "5 4 x"}, "has DimSize '5 4 x'; wanted whole numbers"),
        ({"DimSize": "-5 4 3"}, "wanted three axes"),
        ({"DimSize": None}, "wanted three axes"),
        ({"DimSize": "5 4 300"}, "it is cut short"),
        ({"DimSize": "5 4 2"}, "goes on behind them for a slice"),
        ({"DimSize": "99999 99999 99999"}, "at most .* are accepted"),
        ({"HeaderSize": "-7"}, "HeaderSize -7"),
        ({"ElementSpacing": "0.7 nan 1"}, "ElementSpacing '0.7 nan 1'; wanted 3 finite numbers"),
        ({"ElementSpacing": "0 0 1"}, "an orientation that cannot be read"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "an orientation that cannot be read"),
        ({"TransformMatrix": "1 0 0"}, "TransformMatrix '1 0 0'; wanted 9 finite numbers"),
        ({"ElementDataFile": "LIST"}, "several files"),
        ({"ElementDataFile": "a%03d.raw 1 3 1"}, "several files"),
        ({"ElementDataFile": "a.raw"}, "is a header alone and its voxels lie in a.raw"),
        ({"CompressedData": "True"}, "zlib stream is damaged"),
    ],
)
def test_what_is_refused_and_why(changes, message, load):
    with pytest.raises(DecodeError, match=message):
        load("a.mha", made(**changes))


@pytest.mark.parametrize(
    "name", ["../a.raw", "/etc/passwd", "..", "", "sub/a.raw", "C:\\a.raw", "a\0.raw"]
)
def test_voxels_elsewhere_are_never_read(name, load):
    with pytest.raises(DecodeError, match=r"wanted the name of one file\s+beside it|no MetaImage"):
        load("a.mha", made().replace(b"LOCAL", name.encode()))


@pytest.mark.parametrize("data", [b"", b"\n", b"ObjectType", b"DimSize = 3\n" * 9, bytes(400)])
def test_what_is_no_metaimage(data, load):
    with pytest.raises(DecodeError, match=r"a\.mha"):
        load("a.mha", data)


def test_every_cut_of_a_compressed_file_is_noticed(load):
    packed = made(CompressedData="True")[: -VOXELS.nbytes] + zlib.compress(VOXELS.tobytes("F"))
    np.testing.assert_array_equal(load("a.mha", packed).voxels, VOXELS)
    for size_bytes in range(len(packed)):
        with pytest.raises(DecodeError):
            load("a.mha", packed[:size_bytes])


def test_every_bit_of_a_compressed_stream_is_under_its_checksum(load):
    head = made(CompressedData="True")[: -VOXELS.nbytes]
    packed = zlib.compress(VOXELS.tobytes("F"))
    for bit in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            volume = load("a.mha", head + bytes(damaged))
        except DecodeError:
            continue
        np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_a_stream_that_unfolds_without_end_is_refused_before_memory_is_taken(load):
    bomb = made(CompressedData="True", DimSize="5000 5000 300")[: -VOXELS.nbytes]
    with pytest.raises(DecodeError, match="cannot hold"):
        load("a.mha", bomb + zlib.compress(bytes(1 << 20)))
    longer = made(CompressedData="True")[: -VOXELS.nbytes] + zlib.compress(bytes(1 << 16))
    with pytest.raises(DecodeError, match="inflates to more than was declared"):
        load("a.mha", longer)


@pytest.mark.slow
def test_real_ct_reads_as_its_nifti_does(real_ct: Path, load, tmp_path):
    from support.itk_images import copy_by_itk

    path = sorted(real_ct.glob("*.nii.gz"))[0]
    nifti = load(path.name, path.read_bytes())
    for name in ("scan.mha", "packed.mha"):
        copy = copy_by_itk(path, tmp_path / name, compress=name == "packed.mha")
        volume = load(name, copy.read_bytes())
        np.testing.assert_array_equal(volume.voxels, nifti.voxels)
        np.testing.assert_allclose(volume.affine, nifti.affine, atol=1e-4)
