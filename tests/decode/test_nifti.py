"""NIfTI against nibabel, which is the oracle."""

from __future__ import annotations

import gzip
import itertools
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctgpu.decode import inflated_size
from ctgpu.errors import DecodeError
from ctgpu.volume.raw import Rescale

DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def some_voxels(dtype: str = "i2", shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    values = np.random.default_rng(7).integers(0, 120, shape)
    return (values - 60 if dtype[0] != "u" else values).astype(dtype)


@pytest.mark.parametrize("compress", [False, True], ids=["nii", "nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_byte_order_and_version(
    dtype, order, version, compress, make_nifti, load, tmp_path
):
    voxels = some_voxels(dtype)
    data = make_nifti(voxels, order=order, version=version, compress=compress)
    name = "a.nii.gz" if compress else "a.nii"
    volume = load(name, data)

    assert volume.voxels.dtype == np.dtype(order + dtype)
    np.testing.assert_array_equal(volume.voxels, voxels)
    (tmp_path / name).write_bytes(data)
    oracle = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(volume.voxels, np.asanyarray(oracle.dataobj))
    np.testing.assert_array_equal(volume.affine, oracle.affine)
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.8, 1.5), rtol=1e-7)
    assert volume.format == "nifti"
    assert volume.header_rescale == Rescale()


def test_voxels_are_a_view_of_the_buffer(make_nifti, load):
    plain = load("a.nii", make_nifti(some_voxels()))
    inflated = load("a.nii.gz", make_nifti(some_voxels(), compress=True))
    for volume in (plain, inflated):
        assert volume.voxels.flags.f_contiguous
        assert np.shares_memory(volume.voxels, volume.buffer.bytes)


def test_the_first_bytes_tell_gzip_not_the_name(make_nifti, load):
    voxels = some_voxels()
    for name, compress in (("a.nii", True), ("a.nii.gz", False)):
        np.testing.assert_array_equal(
            load(name, make_nifti(voxels, compress=compress)).voxels, voxels
        )


@pytest.mark.parametrize(
    ("slope", "inter", "wanted"),
    [
        (2.5, -1024, Rescale(2.5, -1024, "header")),
        (1, -1024, Rescale(1, -1024, "header")),
        (1, 0, Rescale()),
        (0, 5, Rescale()),
        (np.nan, np.nan, Rescale()),
        (-1, 0, Rescale(-1, 0, "header")),
    ],
)
def test_scl_slope_and_inter(slope, inter, wanted, make_nifti, load):
    data = make_nifti(some_voxels(), scl_slope=slope, scl_inter=inter)
    assert load("a.nii", data).header_rescale == wanted


def test_qform_and_fallback_affine_as_nibabel_has_them(make_nifti, load, tmp_path):
    qform = make_nifti(
        some_voxels(), sform_code=0, qform_code=1, quatern_b=0.5, qoffset_x=-7, compress=True
    )
    neither = make_nifti(some_voxels(), sform_code=0, qform_code=0)
    for name, data in (("a.nii.gz", qform), ("a.nii", neither)):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(load(name, data).affine, nibabel.load(tmp_path / name).affine)


def test_an_extension_before_the_voxels_is_skipped(make_nifti, load):
    voxels = some_voxels()
    data = make_nifti(voxels, vox_offset=352 + 64, compress=True)
    np.testing.assert_array_equal(load("a.nii.gz", data).voxels, voxels)


@pytest.mark.parametrize("shape", [(5, 4, 3, 1), (5, 4, 3, 1, 1), (5, 4, 1), (1, 1, 1)])
def test_trailing_axes_of_one_are_dropped(shape, make_nifti, load):
    voxels = some_voxels(shape=shape)
    np.testing.assert_array_equal(
        load("a.nii", make_nifti(voxels)).voxels, voxels.reshape(shape[:3])
    )


def test_gzip_of_several_members_and_zero_padding(make_nifti, load):
    voxels = some_voxels(shape=(20, 20, 20))
    data = make_nifti(voxels)
    cuts = [0, 100, 352, 353, 9000, len(data)]
    members = [gzip.compress(data[a:b]) for a, b in itertools.pairwise(cuts)]
    for stream in (b"".join(members), bytes(9).join(members), b"".join(members) + bytes(512)):
        np.testing.assert_array_equal(load("a.nii.gz", stream).voxels, voxels)


def test_a_gzip_header_with_name_and_comment(make_nifti, load):
    voxels = some_voxels()
    body = gzip.compress(make_nifti(voxels))[10:]
    extra = b"\x04\x00abcd"
    header = b"\x1f\x8b\x08\x1c" + bytes(6) + extra + b"name\0" + b"comment\0"
    np.testing.assert_array_equal(load("a.nii.gz", header + body).voxels, voxels)


def test_inflated_size_is_what_decode_takes(make_nifti, load):
    voxels = some_voxels()
    data = np.frombuffer(make_nifti(voxels, compress=True), np.uint8)
    assert inflated_size("a.nii.gz", data) == 352 + voxels.nbytes
    assert inflated_size("a.nii", np.frombuffer(make_nifti(voxels), np.uint8)) == 0
    assert inflated_size("a.nii.gz", data[:40]) == 0


REFUSED = {
    "float128": ({"datatype": 1536}, "datatype 1536"),
    "complex": ({"datatype": 32}, "datatype 32"),
    "rgb": ({"datatype": 128}, "datatype 128"),
    "2-D": ({"dim": [2, 5, 4, 1, 1, 1, 1, 1]}, r"shape \(5, 4\)"),
    "4-D": ({"dim": [4, 5, 2, 3, 2, 1, 1, 1]}, r"shape \(5, 2, 3, 2\)"),
    "negative dim": ({"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, r"shape \(5, -4, 3\)"),
    "empty": ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, r"shape \(5, 0, 3\)"),
    "no dimensions": ({"dim": [0, 5, 4, 3, 1, 1, 1, 1]}, "0 dimensions"),
    "too many dimensions": ({"dim": [200, 5, 4, 3, 1, 1, 1, 1]}, "200 dimensions"),
    "huge": ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "at most"),
    "larger than the data": ({"dim": [3, 5, 4, 4, 1, 1, 1, 1]}, "wanted|declare"),
    "smaller than the data": ({"dim": [3, 5, 4, 2, 1, 1, 1, 1]}, "names too few slices"),
    "voxels in the header": ({"vox_offset": 100}, "byte 100"),
    "voxels at a fraction": ({"vox_offset": 352.5}, "byte 352.5"),
    "voxels nowhere": ({"vox_offset": np.nan}, "byte nan"),
    "image pair": ({"magic": b"ni1"}, "single file"),
    "intercept": ({"scl_slope": 2, "scl_inter": np.nan}, "scl_inter"),
    "affine": ({"srow_x": [np.nan] * 4}, "affine"),
    "qform": ({"sform_code": 0, "qform_code": 1, "quatern_b": 9}, "orientation"),
}


@pytest.mark.parametrize("compress", [False, True], ids=["nii", "nii.gz"])
@pytest.mark.parametrize("case", REFUSED)
def test_headers_that_are_refused(case, compress, make_nifti, load):
    fields, message = REFUSED[case]
    offset = fields.get("vox_offset", 352)
    data = bytearray(make_nifti(some_voxels(), **{**fields, "vox_offset": 352}))
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    header["vox_offset"] = offset
    data[:348] = header.binaryblock
    with pytest.raises(DecodeError, match=message) as caught:
        load("scan 1.nii.gz", gzip.compress(bytes(data)) if compress else bytes(data))
    assert "scan 1.nii.gz" in str(caught.value)


def test_damaged_gzip_is_refused(make_nifti, load):
    good = make_nifti(some_voxels(shape=(30, 20, 10)), compress=True)
    wrong_crc = good[:-8] + bytes(b ^ 1 for b in good[-8:-4]) + good[-4:]
    wrong_size = good[:-4] + bytes(4)
    for data in (good[:-9], good[: len(good) // 2], good[:5], wrong_crc, wrong_size):
        with pytest.raises(DecodeError, match=r"a\.nii\.gz"):
            load("a.nii.gz", data)
    whole_and_half = good + good[: len(good) // 2]
    with pytest.raises(DecodeError, match=r"too few slices|damaged"):
        load("a.nii.gz", whole_and_half)


@pytest.mark.parametrize("behind", [b"trailing rubbish", bytes(512), bytes(9) + b"\x1f<html>"])
def test_what_follows_a_gzip_stream_and_is_no_member_is_ignored(behind, make_nifti, load, tmp_path):
    for shape in ((30, 20, 10), (2, 2, 2)):
        voxels = some_voxels(shape=shape)
        data = make_nifti(voxels, compress=True) + behind
        np.testing.assert_array_equal(load("a.nii.gz", data).voxels, voxels)


@pytest.mark.parametrize("compress", [False, True], ids=["nii", "nii.gz"])
@pytest.mark.parametrize("behind", [b"\0", bytes(39), b"rubbish"])
def test_less_than_a_slice_behind_the_voxels_is_padding(
    behind, compress, make_nifti, load, tmp_path
):
    voxels = some_voxels()  # a slice of 40 bytes
    data = make_nifti(voxels) + behind
    data = gzip.compress(data) if compress else data
    name = "a.nii.gz" if compress else "a.nii"
    np.testing.assert_array_equal(load(name, data).voxels, voxels)
    (tmp_path / name).write_bytes(data)
    np.testing.assert_array_equal(voxels, np.asanyarray(nibabel.load(tmp_path / name).dataobj))


@pytest.mark.parametrize("compress", [False, True], ids=["nii", "nii.gz"])
def test_a_slice_behind_the_voxels_is_counted_and_not_called_damage(compress, make_nifti, load):
    data = make_nifti(some_voxels()) + bytes(40)
    with pytest.raises(DecodeError, match=r"declares 472 bytes .* \(40 bytes\)") as caught:
        load("a.nii.gz", gzip.compress(data) if compress else data)
    assert "fetch it again" not in str(caught.value)


def test_a_surplus_is_held_against_its_checksum_too(make_nifti, load):
    stream = gzip.compress(make_nifti(some_voxels()) + b"padding")
    damaged = stream[:-8] + bytes([stream[-8] ^ 1]) + stream[-7:]
    with pytest.raises(DecodeError, match="damaged"):
        load("a.nii.gz", damaged)


def test_a_volume_that_was_gzipped_twice_is_read(make_nifti, load, fill):
    voxels = some_voxels(shape=(70, 60, 50))
    once = make_nifti(voxels, compress=True)
    for twice in (gzip.compress(once), gzip.compress(once + bytes(100), 1)):
        np.testing.assert_array_equal(load("a.nii.gz", twice).voxels, voxels)
    needed = inflated_size("a.nii.gz", np.frombuffer(gzip.compress(once), np.uint8))
    assert needed == 352 + voxels.nbytes + len(once)


def test_damage_within_two_streams_is_found(make_nifti, load):
    once = make_nifti(some_voxels(shape=(70, 60, 50)), compress=True)
    wrong_inner = once[:-8] + bytes(b ^ 1 for b in once[-8:-4]) + once[-4:]
    good = gzip.compress(once)
    wrong_size = good[:-4] + (len(once) - 1).to_bytes(4, "little")
    for data in (gzip.compress(wrong_inner), good[:-9], good[:200], wrong_size, good + bytes(4)):
        with pytest.raises(DecodeError, match=r"a\.nii\.gz"):
            load("a.nii.gz", data)
    bomb = gzip.compress(gzip.compress(make_nifti(some_voxels()) + bytes(1 << 20)))
    with pytest.raises(DecodeError, match="too few slices"):
        load("a.nii.gz", bomb)


@pytest.mark.slow
def test_a_bomb_stops_at_the_declared_size(make_nifti, load, pool):
    data = make_nifti(some_voxels()) + bytes(200 << 20)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = squeeze.compress(data) + squeeze.flush()
    with pytest.raises(DecodeError, match="goes on behind them"):
        load("a.nii.gz", bomb)
    assert pool.idle_bytes < 8 << 20


def test_a_size_no_stream_can_hold_is_refused_before_it_is_allocated(make_nifti, load, pool):
    data = make_nifti(some_voxels(), dim=[3, 1024, 1024, 1024, 1, 1, 1, 1], compress=True)
    with pytest.raises(DecodeError, match="cannot hold"):
        load("a.nii.gz", data)
    assert pool.idle_bytes < 1 << 20


def test_the_callers_limit_holds(make_nifti, load):
    data = make_nifti(some_voxels(), compress=True)
    with pytest.raises(DecodeError, match="at most 100 are accepted"):
        load("a.nii.gz", data, limit_bytes=100)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b", bytes(400), b"PK\x03\x04" * 100])
def test_rubbish_is_refused(data, load):
    with pytest.raises(DecodeError, match=r"a\.nii\.gz"):
        load("a.nii.gz", data)


@pytest.mark.slow
def test_real_volumes_equal_nibabels(real_ct: Path, load):
    for path in sorted(real_ct.glob("*.nii.gz")):
        oracle = nibabel.load(path)
        volume = load(path.name, path.read_bytes())
        np.testing.assert_array_equal(volume.voxels, np.asanyarray(oracle.dataobj))
        np.testing.assert_array_equal(volume.affine, oracle.affine)
        assert volume.spacing_mm == tuple(float(z) for z in oracle.header.get_zooms())
