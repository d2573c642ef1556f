"""Reading a built data set back, for tests: what is compressed comes as what it stands for."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctgpu.codec.ctz import SLACK_BYTES
from ctgpu.codec.whole import decompress_whole, head_of


@dataclass(frozen=True)
class Sample:
    """One sample as any tar reader sees it."""

    volume: bytes
    labels: npt.NDArray[np.float32]
    text: str
    metadata: dict[str, Any]
    mask: bytes | None = None

    @property
    def array(self) -> npt.NDArray[np.float16]:
        """The volume in its stored shape."""
        return np.frombuffer(self.volume, "<f2").reshape(self.metadata["shape"])


def read_samples(folder: Path) -> dict[str, Sample]:
    """Every sample of a folder by key, read with nothing but ``tarfile`` and the codec."""
    members: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                key, _, extension = info.name.partition(".")
                file = archive.extractfile(info)
                assert isinstance(file, io.BufferedReader)
                content = file.read()
                if extension in ("ctz", "segz"):
                    extension, content = {"ctz": "bin", "segz": "seg"}[extension], decoded(content)
                members.setdefault(key, {})[extension] = content
    return {
        key: Sample(
            parts["bin"],
            np.frombuffer(parts["cls"], "<f4"),
            parts["txt"].decode(),
            json.loads(parts["json"]),
            parts.get("seg"),
        )
        for key, parts in members.items()
    }


def decoded(member: bytes) -> bytes:
    """What a ``.ctz`` stands for, in the layout that it states."""
    room = np.frombuffer(member + bytes(SLACK_BYTES), np.uint8)
    head = head_of(room[: len(member)])
    depth, height, width = head.shape_dhw
    shape = head.shape_dhw if head.layout == "DHW" else (height, width, depth)
    out = np.empty(shape, f"<u{head.voxel_bytes}")
    decompress_whole(room, len(member), out, head.layout)
    return out.tobytes()


def tar_bytes(folder: Path) -> dict[str, bytes]:
    """Every tar of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.tar"))}


def ulp_distance(a: npt.NDArray[np.float16], b: npt.NDArray[np.float16]) -> npt.NDArray[np.int32]:
    """How many float16 values apart each pair is; +0 and -0 are the same."""

    def ordered(values: npt.NDArray[np.float16]) -> npt.NDArray[np.int32]:
        bits = values.view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    distance: npt.NDArray[np.int32] = np.abs(ordered(a) - ordered(b))
    return distance


def assert_within_contract(
    made: npt.NDArray[np.float16], reference: npt.NDArray[np.float16]
) -> None:
    """Hold an engine's output against the torch reference, by the bounds of the contract."""
    assert made.shape == reference.shape
    other = made.view(np.uint16) != reference.view(np.uint16)
    most, made, reference = max(1, made.size // 1000), made[other], reference[other]
    distance = ulp_distance(made, reference)
    apart = np.abs(made.astype(np.float32) - reference.astype(np.float32))
    assert np.all((distance <= 1) | (apart <= 2.4e-7))
    assert np.count_nonzero(distance) <= most
