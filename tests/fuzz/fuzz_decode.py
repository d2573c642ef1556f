"""Coverage-guided fuzzing of the decoders.

``python tests/fuzz/fuzz_decode.py [CORPUS_DIR] [-max_total_time=SECONDS] [-runs=N] [-seed=N]``
takes libFuzzer's options.  What is found besides a ``DecodeError`` is a crash, and its input is
written to the working directory.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path

from instrumented import fuzz, instrumented

with instrumented("ctgpu", "zipfile", "numpy"):
    from ctgpu.buffers import BufferPool
    from ctgpu.decode import decode, inflated_size
    from ctgpu.decode.dicom_header import read_header
    from ctgpu.decode.dicom_pixels import decode_series
    from ctgpu.errors import DecodeError, GeometryError, IntensityError
    from ctgpu.volume.intensity import check_hu, resolve_rescale

import nibabel  # noqa: F401  (imported by the decoder on first use, and slow under coverage)
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "faults"))
import corpus
import dicom_corpus

LIMIT_BYTES = 1 << 24

# The first byte of an input chooses one.  Raw files put the containers to the test; two wrap the
# input in a sound container, since no mutation passes a checksum by itself.
KINDS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("fuzz.npz", bytes),
    ("fuzz.nii.gz", bytes),
    ("fuzz.nii", bytes),
    ("fuzz.nii.gz", lambda data: gzip.compress(data, 1)),
    ("fuzz.npz", corpus.zip_bytes),
    ("fuzz.mha", bytes),
    ("fuzz.nrrd", bytes),
    ("fuzz.npy", bytes),
    ("fuzz.dcm", bytes),
]


def decode_one(data: bytes) -> None:
    """One input: a ``DecodeError``, an ``IntensityError`` or a volume, and no byte lost."""
    file_name, wrap = KINDS[(data or b"\0")[0] % len(KINDS)]
    file = wrap(data[1:])
    pool = BufferPool()
    if file_name == "fuzz.dcm":
        decode_multi_frame(file, pool)
        assert pool.lent_bytes == 0
        return
    buffer = pool.acquire(len(file))
    buffer.bytes[:] = np.frombuffer(file, np.uint8)
    inflated_size(file_name, buffer.bytes)
    try:
        volume = decode(file_name, buffer, pool, limit_bytes=LIMIT_BYTES)
    except DecodeError:
        assert pool.lent_bytes == 0
        return
    with contextlib.suppress(IntensityError):
        check_hu(volume.voxels, resolve_rescale(volume, intensity="auto"))
    volume.release()
    assert pool.lent_bytes == 0


def decode_multi_frame(file: bytes, pool: BufferPool) -> None:
    """A series of one file."""
    with contextlib.suppress(DecodeError, GeometryError):
        header = read_header(file, "fuzz.dcm")
        files = [np.frombuffer(file, np.uint8)]
        decode_series("fuzz.dcm", files, [header], pool, limit_bytes=LIMIT_BYTES).release()


def write_seeds(folder: Path) -> None:
    """Small valid files and the crafted hostile ones, for the fuzzer to start from."""
    voxels = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    plain = corpus.nifti_bytes(voxels)
    metadata = np.frombuffer(b'{"XYSpacing": "[0.7, 0.7]", "ZSpacing": 1.5}', np.uint8)
    npy = io.BytesIO()
    np.lib.format.write_array(npy, voxels)
    seeds = [
        b"\0" + corpus.npz_bytes(volume=voxels, metadata=metadata),
        b"\0" + corpus.npz_bytes(compress=False, scan=voxels.astype(np.float32)),
        b"\2" + plain,
        b"\3" + plain,
        b"\4" + npy.getvalue(),
        b"\5" + corpus.mha_bytes(voxels),
        b"\5" + corpus.mha_bytes(voxels, voxels.tobytes("F")),
        b"\6" + corpus.nrrd_bytes(voxels),
        b"\6" + corpus.nrrd_bytes(voxels, voxels.tobytes("F")),
        b"\7" + npy.getvalue(),
        *(
            b"\10" + files[0]
            for name, files in dicom_corpus.valid_series().items()
            if name.endswith("enhanced")
        ),
    ]
    names = [name for name, _ in KINDS]
    seeds += [
        bytes([names.index("fuzz." + hostile.file_name.partition(".")[2])]) + hostile.data
        for hostile in corpus.crafted()
        if len(hostile.data) < 4096 and not hostile.file_name.endswith((".mhd", ".nhdr"))
    ]
    for k, seed in enumerate(seeds):
        (folder / f"seed-{k:03d}").write_bytes(seed)


if __name__ == "__main__":
    fuzz(decode_one, write_seeds)
