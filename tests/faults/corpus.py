"""Hostile files, made by code from a seed: every one differs, and all can be made again.

The harmful ones come from real mistakes and from attacks: files cut short, bits flipped in storage
or on the way, headers that promise what the data does not hold, streams that unfold without end,
objects that would run code when unpickled, voxels that are no numbers.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import pickle
import shutil
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

SHAPE = (40, 36, 12)


class Hostile(NamedTuple):
    """One file.

    Attributes
    ----------
    file_name : str
        Names the case too.
    data : bytes
        What is in it.
    """

    file_name: str
    data: bytes


def true_voxels() -> np.ndarray:
    """The volume that every valid file of the corpus holds: int16 HU, shape `SHAPE`."""
    rng = np.random.default_rng(11)
    voxels = rng.normal(40, 30, SHAPE)
    voxels[10:30, 8:28] = rng.normal(-850, 60, (20, 20, 12))
    return voxels.astype(np.int16)


def nifti_bytes(voxels: np.ndarray, **fields: object) -> bytes:
    """An uncompressed NIfTI-1 file, with header fields overwritten."""
    image = nibabel.Nifti1Image(voxels, np.diag([0.7, 0.7, 1.5, 1]))
    header = image.header
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + voxels.tobytes("F")


def npz_bytes(compress: bool = True, **arrays: np.ndarray) -> bytes:
    """An ``.npz`` with fixed time stamps."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=True)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = method
            archive.writestr(info, member.getvalue())
    return file.getvalue()


def mha_bytes(voxels: np.ndarray, payload: bytes | None = None, **fields: str) -> bytes:
    """A MetaImage, deflated unless a payload is given, with header fields overwritten."""
    packed = payload is None
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(packed),
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "0.7 0.7 1.5",
        "DimSize": " ".join(map(str, voxels.shape)),
        "ElementType": "MET_SHORT",
    } | fields
    header["ElementDataFile"] = header.pop("ElementDataFile", "LOCAL")
    text = "".join(f"{key} = {value}\n" for key, value in header.items())
    return text.encode() + (zlib.compress(voxels.tobytes("F")) if payload is None else payload)


def nrrd_bytes(voxels: np.ndarray, payload: bytes | None = None, **fields: str) -> bytes:
    """An NRRD file, in gzip unless a payload is given, with header fields overwritten."""
    header = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, voxels.shape)),
        "space_directions": "(0.7,0,0) (0,0.7,0) (0,0,1.5)",
        "endian": "little",
        "encoding": "gzip" if payload is None else "raw",
        "space_origin": "(0,0,0)",
    } | fields
    lines = [f"{key.replace('_', ' ')}: {value}" for key, value in header.items()]
    text = "\n".join(["NRRD0004", *lines, "", ""])
    packed = gzip.compress(voxels.tobytes("F"), 6, mtime=0)
    return text.encode() + (packed if payload is None else payload)


def valid_files() -> dict[str, bytes]:
    """Files that decode to :func:`true_voxels`, all of them with a checksum over the voxels."""
    voxels = true_voxels()
    return {
        "deflated.npz": npz_bytes(volume=voxels),
        "stored.npz": npz_bytes(compress=False, arr_0=np.asfortranarray(voxels)),
        "gzip.nii.gz": gzip.compress(nifti_bytes(voxels), 6, mtime=0),
        "zlib.mha": mha_bytes(voxels),
        "gzip.nrrd": nrrd_bytes(voxels),
    }


def surplus() -> Iterator[Hostile]:
    """Whole volumes with something behind them that readers pass over."""
    packed, plain = valid_files()["gzip.nii.gz"], nifti_bytes(true_voxels())
    yield Hostile("rubbish-behind.nii.gz", packed + b"rubbish")
    yield Hostile("rubbish-in-a-member.nii.gz", packed + gzip.compress(b"more voxels"))
    yield Hostile("rubbish-behind.nii", plain + b"rubbish")


def damaged(count: int, seed: int, suffixes: tuple[str, ...] = ("",)) -> Iterator[Hostile]:
    """`count` valid files, each damaged in one of many ways.

    Some damage does no harm (a time stamp); such a file still decodes to :func:`true_voxels`.

    Parameters
    ----------
    count : int
        How many.
    seed : int
        Other seeds damage other places.
    suffixes : tuple of str
        Of the files to damage.
    """
    rng = np.random.default_rng(seed)
    files = [file for file in valid_files().items() if file[0].endswith(suffixes)]
    for k in range(count):
        name, data = files[k % len(files)]
        damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
        # Directory and headers are a small part of a file and the most worth attacking.
        near_an_end = rng.random() < 0.5
        at = int(rng.integers(len(data)))
        if near_an_end:
            at = int(rng.integers(400)) if rng.random() < 0.5 else len(data) - 1 - at % 200
        yield Hostile(f"{damage.__name__}-{k}-{name}", damage(data, at, rng))


def _flip_one_bit(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def _cut_short(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at]


def _lose_a_piece(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at] + data[at + int(rng.integers(1, 2000)) :]


def _double_a_piece(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[: at + int(rng.integers(1, 2000))] + data[at:]


def _overwrite(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    noise = rng.bytes(int(rng.integers(1, 64)))
    return data[:at] + noise + data[at + len(noise) :]


def _zero_a_page(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]


def _set_a_field(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    value = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
    return data[:at] + struct.pack("<I", int(value)) + data[at + 4 :]


DAMAGES: list[Callable[[bytes, int, np.random.Generator], bytes]] = [
    _flip_one_bit,
    _cut_short,
    _lose_a_piece,
    _double_a_piece,
    _overwrite,
    _zero_a_page,
    _set_a_field,
]


def crafted() -> Iterator[Hostile]:
    """Files that are hostile by design; none of them may be accepted."""
    return itertools.chain(_crafted_npz(), _crafted_nifti(), _crafted_text(), _crafted_voxels())


def zip_bytes(npy: bytes) -> bytes:
    """An ``.npz`` around what claims to be its ``volume.npy``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("volume.npy", npy)
    return file.getvalue()


def _npy(header: str, body: bytes) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def _crafted_npz() -> Iterator[Hostile]:
    class Explosive:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, ("raise SystemExit('unpickled')",))

    small = np.zeros((2, 2, 2), np.int16)
    pickled = np.empty((1, 1, 1), object)
    pickled[0, 0, 0] = Explosive()
    yield Hostile("object-array.npz", npz_bytes(volume=pickled))
    yield Hostile("object-metadata.npz", npz_bytes(volume=small, metadata=pickled))
    yield Hostile("bare-pickle.npz", pickle.dumps(Explosive()))
    for shape in ((4, 4), (1, 4, 4, 4), (4, 0, 4), ()):
        yield Hostile(f"shape-{shape}.npz", npz_bytes(volume=np.zeros(shape, np.int16)))
    yield Hostile("no-array.npz", npz_bytes())
    yield Hostile("two-volumes.npz", npz_bytes(a=small, b=small))
    yield Hostile("ugly-names.npz", npz_bytes(**{"\x1b[2J\n": small, "../" * 900: small}))

    header = "{{'descr': '{}', 'fortran_order': False, 'shape': {}}}"
    for descr, shape in [
        ("<i2", (2, 2, 3)),
        ("<i2", (2, 2, 1)),
        ("<i2", (-2, -2, 2)),
        ("<i2", (10**6, 10**6, 10**6)),
        ("<i2", (10**30, 1, 1)),
        ("<V99999999", (1, 1, 1)),
        ("|O", (1, 1, 1)),
    ]:
        npy = _npy(header.format(descr, shape), bytes(16))
        yield Hostile(f"lying-header-{descr[1:]}-{shape[0]}-{shape[2]}.npz", zip_bytes(npy))
    yield Hostile("code-header.npz", zip_bytes(_npy("__import__('os')._exit(1)", b"")))
    yield Hostile("deep-header.npz", zip_bytes(_npy("(" * 9000, b"")))
    yield Hostile(
        "huge-header.npz", zip_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 70_000)
    )
    yield Hostile("bomb.npz", zip_bytes(_npy(header.format("<i2", (4, 4, 4)), bytes(64 << 20))))

    good = npz_bytes(volume=true_voxels(), zzz=small)
    entry = good.index(b"PK\x01\x02")
    second = good.index(b"PK\x01\x02", entry + 4)
    for name, at, code, value in [
        ("encrypted", entry + 8, "<H", 1),
        ("bzip2", entry + 10, "<H", zipfile.ZIP_BZIP2),
        ("lzma", entry + 10, "<H", zipfile.ZIP_LZMA),
        ("stored-that-is-deflated", entry + 10, "<H", zipfile.ZIP_STORED),
        ("wrong-crc", entry + 16, "<I", 1),
        ("small-packed", entry + 20, "<I", 100),
        ("huge-packed", entry + 20, "<I", 0x7FFFFFFF),
        ("small-size", entry + 24, "<I", 1000),
        ("huge-size", entry + 24, "<I", 0x7FFFFFFF),
        ("overlapping", second + 42, "<I", 50),
        ("twice-the-same", second + 42, "<I", 0),
        ("beyond-the-end", second + 42, "<I", 0x7FFFFFFF),
    ]:
        patched = bytearray(good)
        struct.pack_into(code, patched, at, value)
        yield Hostile(f"{name}.npz", bytes(patched))


def _crafted_nifti() -> Iterator[Hostile]:
    voxels = true_voxels()
    headers: dict[str, dict[str, object]] = {
        "negative-dim": {"dim": [3, 40, -36, 12, 1, 1, 1, 1]},
        "huge-dim": {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
        "one-slice-too-many": {"dim": [3, 40, 36, 13, 1, 1, 1, 1]},
        "one-slice-too-few": {"dim": [3, 40, 36, 11, 1, 1, 1, 1]},
        "empty": {"dim": [3, 40, 0, 12, 1, 1, 1, 1]},
        "2-d": {"dim": [2, 40, 36, 1, 1, 1, 1, 1]},
        "4-d": {"dim": [4, 40, 36, 6, 2, 1, 1, 1]},
        "no-dim": {"dim": [0] * 8},
        "many-dim": {"dim": [99] * 8},
        "wider-dtype": {"datatype": 8},
        "unknown-dtype": {"datatype": 31337},
        "complex": {"datatype": 32},
        "early-voxels": {"vox_offset": 8},
        "late-voxels": {"vox_offset": 1e30},
        "nan-offset": {"vox_offset": np.nan},
        "nan-affine": {"sform_code": 1, "srow_y": [np.nan] * 4},
        "nan-intercept": {"scl_slope": 1, "scl_inter": np.nan},
        "pair": {"magic": b"ni1"},
    }
    for name, fields in headers.items():
        data = nifti_bytes(voxels, **fields)
        yield Hostile(f"{name}.nii", data)
        yield Hostile(f"{name}.nii.gz", gzip.compress(data, 1, mtime=0))
    good = valid_files()["gzip.nii.gz"]
    yield Hostile("wrong-crc.nii.gz", good[:-8] + bytes(4) + good[-4:])
    yield Hostile("wrong-size.nii.gz", good[:-1] + b"\x7f")
    yield Hostile("second-member.nii.gz", good + gzip.compress(voxels.tobytes()))
    yield Hostile("many-empty-members.nii.gz", gzip.compress(b"") * 20_000)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = squeeze.compress(nifti_bytes(voxels)) + squeeze.compress(bytes(256 << 20))
    yield Hostile("bomb.nii.gz", bomb + squeeze.flush())


def _crafted_text() -> Iterator[Hostile]:
    """MetaImage and NRRD, whose headers are text."""
    voxels = true_voxels()
    plain = voxels.tobytes("F")
    sizes = {
        "negative": "40 -36 12",
        "huge": "99999 99999 99999",
        "endless": f"{10**30} 1 1",
        "one-slice-too-many": "40 36 13",
        "one-slice-too-few": "40 36 11",
        "2-d": "40 432",
        "4-d": "40 36 6 2",
        "words": "a b c",
        "none": "",
    }
    for name, text in sizes.items():
        for payload in (None, plain):
            packed = "" if payload is None else "-plain"
            yield Hostile(f"{name}{packed}.mha", mha_bytes(voxels, payload, DimSize=text))
            yield Hostile(f"{name}{packed}.nrrd", nrrd_bytes(voxels, payload, sizes=text))
    for name, place in {
        "above": "../../../etc/passwd",
        "absolute": "/dev/zero",
        "pattern": "a%d.raw 1 3 1",
        "list": "LIST",
        "elsewhere": "a.raw",
    }.items():
        yield Hostile(f"{name}.mha", mha_bytes(voxels, b"", ElementDataFile=place))
        yield Hostile(f"{name}.mhd", mha_bytes(voxels, b"", ElementDataFile=place))
        yield Hostile(f"{name}.nrrd", nrrd_bytes(voxels, b"", data_file=place))
        yield Hostile(f"{name}.nhdr", nrrd_bytes(voxels, b"", data_file=place))
    yield Hostile("wider.mha", mha_bytes(voxels, ElementType="MET_DOUBLE"))
    yield Hostile("wider.nrrd", nrrd_bytes(voxels, type="double"))
    yield Hostile("no-volume.mha", mha_bytes(voxels, ElementSpacing="nan 1 1"))
    yield Hostile("no-volume.nrrd", nrrd_bytes(voxels, space_directions="(0,0,0) (0,0,0) (0,0,0)"))
    yield Hostile("before.mha", mha_bytes(voxels, plain, HeaderSize="-99"))
    yield Hostile("before.nrrd", nrrd_bytes(voxels, plain, byte_skip="-99"))
    yield Hostile("endless-header.mha", b"Comment = x\n" * 200_000)
    yield Hostile("endless-header.nrrd", b"NRRD0004\n" + b"comment: x\n" * 200_000)
    yield Hostile("one-line.mha", b"x" * 2_000_000)
    yield Hostile("one-line.nrrd", b"NRRD0004\n" + b"x" * 2_000_000)
    squeeze = zlib.compressobj(9)
    bomb = squeeze.compress(plain) + squeeze.compress(bytes(64 << 20)) + squeeze.flush()
    yield Hostile("bomb.mha", mha_bytes(voxels, bomb, CompressedData="True"))
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = squeeze.compress(plain) + squeeze.compress(bytes(64 << 20)) + squeeze.flush()
    yield Hostile("bomb.nrrd", nrrd_bytes(voxels, bomb, encoding="gzip"))
    yield Hostile("wrong-sum.mha", mha_bytes(voxels)[:-4] + bytes(4))
    yield Hostile("wrong-sum.nrrd", nrrd_bytes(voxels)[:-8] + bytes(8))


def _crafted_voxels() -> Iterator[Hostile]:
    for value in (np.nan, np.inf, -np.inf):
        voxels = true_voxels().astype(np.float32)
        voxels[-1, -1, -1] = value
        yield Hostile(f"{value}.npz", npz_bytes(data=voxels))
        yield Hostile(f"{value}.nii.gz", gzip.compress(nifti_bytes(voxels), 1, mtime=0))


#: What no field of plan, record, manifest or journal may be where it is not so already.
WRONG_VALUES = (
    None,
    True,
    -1,
    1.5,
    2**63,
    10**400,
    "",
    "text",
    "../../../evil",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
)


def hostile_json(valid: bytes) -> Iterator[tuple[str, bytes]]:
    """Variants of one JSON object, each with a name: first of its text, then of every value in it.

    Of lists and of objects alike only the first and the last item are varied.
    """
    yield "empty", b""
    yield "no UTF-8", b"\xff\xfe" + valid
    yield "UTF-8 of half a character", valid.replace(b"0", b"\xed\xa0\x80", 1)
    yield "deep list", b"[" * 200_000
    yield "deep object", b'{"a":' * 200_000
    yield "cut", valid[: len(valid) // 2]
    yield "doubled", valid + valid
    for name, text in {
        "deep list": b"[" * 100_000 + b"]" * 100_000,
        "infinite": b"1e999",
        "long number": b"1" * 5000,
        "NaN": b"NaN",
        "half a character": rb'"\ud800"',
    }.items():
        yield f"{name} beside the fields", valid.replace(b"{", b'{"x": ' + text + b",", 1)
    whole = json.loads(valid)
    for place, own in _places(whole):
        for wrong in WRONG_VALUES:
            if wrong != own or type(wrong) is not type(own):
                name = f"{'.'.join(map(str, place))} is {str(wrong)[:20]!a}"
                yield name, json.dumps(_changed(whole, place, wrong)).encode()
        if own is not whole:
            yield (
                f"{'.'.join(map(str, place))} is gone",
                json.dumps(_without(whole, place)).encode(),
            )


Place = tuple[str | int, ...]


def _places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    yield place, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*place, key))
    elif isinstance(value, list):
        for k in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from _places(value[k], (*place, k))


def _changed(value: Any, place: Place, new: Any) -> Any:
    if not place:
        return new
    copied = value.copy()
    copied[place[0]] = _changed(value[place[0]], place[1:], new)
    return copied


def _without(value: Any, place: Place) -> Any:
    copied = value.copy()
    if len(place) == 1:
        del copied[place[0]]
    else:
        copied[place[0]] = _without(value[place[0]], place[1:])
    return copied


def put_in_place(path: Path, kind: str) -> None:
    """Something that is no regular file, in the place of `path`."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        # Its own name is limited to a hundred bytes.
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{short}/s")
            shutil.move(f"{short}/s", path)
    else:
        path.symlink_to({"endless device": "/dev/zero", "dangling link": "gone"}[kind])


#: What :func:`put_in_place` can put there.
NO_FILES = ("pipe", "endless device", "folder", "socket", "dangling link")
