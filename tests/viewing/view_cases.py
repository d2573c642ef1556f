"""A data set of which everything is known that a view says."""

from __future__ import annotations

import io
import json
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ctgpu
from ctgpu.shards.record import SampleEntry, ShardRecord
from ctgpu.spec import Spec
from ctgpu.viewing.inventory import HeldShard
from support.data_set_copies import marked, write_nifti, write_table

#: Resampled, cropped along W and D, padded along H.
SPEC = Spec(target_spacing_mm=(4.0, 3.5, 6.0), shape_hwd=(20, 9, 6))
CLASSES = ("nodule", "effusion")
HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'> & more"

DESCRIPTION = """\
name = "study"
class_names = ["nodule", "effusion"]

[splits.all]
volumes = ["{key}.nii"]

[[tables]]
files = ["scans.csv"]
key = "scan"
carry = ["maker", "<b>kvp</b>"]
text = ["findings"]

[[tables]]
files = ["labels.csv"]
key = "scan"
labels = ["nodule", "effusion"]
"""

#: Name: voxels, spacing, axes, maker, findings, cells of the labels (None where there is no row).
SCANS: dict[str, tuple[Any, Any, str, str, str, tuple[object, object] | None]] = {
    "s0": ((15, 12, 9), (3.5, 3.0, 5.0), "LPS", "Alpha", HOSTILE, (1, 0)),
    "s1": ((15, 12, 9), (3.5, 3.0, 5.0), "LPS", "Alpha", "Clear.", (0, 1)),
    "s2": ((17, 12, 9), (3.5, 3.0, 2.5), "RAS", "Beta", "", (1, "")),
    "s3": ((17, 14, 9), (4.5, 3.0, 7.5), "LPS", "Alpha", "Clear, again.", None),
    "s4": ((17, 14, 9), (4.0, 3.0, 5.0), "LPS", "Beta", "Opacity.", (1, 1)),
}
#: Ends in the middle of its voxels.
BROKEN = "s5"


class Parsed(HTMLParser):
    """Tags and text of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[str | None] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.values += [value for _, value in attributes]

    def handle_data(self, data: str) -> None:
        self.text += data


def lay_out(root: Path) -> Path:
    """The scans, one more that is broken, and their tables."""
    for seed, (name, (shape, spacing_mm, codes, *_)) in enumerate(SCANS.items()):
        write_nifti(root / f"{name}.nii", marked(seed, shape), spacing_mm, codes)
    whole = (root / "s0.nii").read_bytes()
    (root / f"{BROKEN}.nii").write_bytes(whole[: len(whole) // 2])
    rows = [(name, maker, 120, text) for name, (*_, maker, text, _) in SCANS.items()]
    header = ("scan", "maker", "<b>kvp</b>", "findings")
    write_table(root / "scans.csv", header, [*rows, (BROKEN, "Alpha", 120, "")])
    cells = [(name, *own) for name, (*_, own) in SCANS.items() if own is not None]
    write_table(root / "labels.csv", ("scan", *CLASSES), cells)
    (root / "study.toml").write_text(DESCRIPTION)
    return root


def build(folder: Path, source: Path, **options: Any) -> Path:
    """The data set of :func:`lay_out`, two samples a shard."""
    defaults: dict[str, Any] = {"spec": SPEC, "samples_per_shard": 2, "device": "cpu"}
    description = source / "study.toml"
    ctgpu.build(folder, source=source, dataset=description, split="all", **(defaults | options))
    return folder


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """What stands in the tars of a data set, by key and extension, as anybody reads them."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            for info in archive:
                key, _, extension = info.name.partition(".")
                content = archive.extractfile(info)
                assert content is not None
                found.setdefault(key, {})[extension] = content.read()
    return found


def stated(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON of each sample."""
    return {key: json.loads(of_key["json"]) for key, of_key in members(folder).items()}


def held(folder: Path, index: int = 0) -> tuple[HeldShard, SampleEntry]:
    """A shard of a data set, and its first sample."""
    record = ShardRecord.load(folder / f"shard-{index:06d}.json")
    return HeldShard(folder / f"shard-{index:06d}.tar", record), record.samples[0]


def damage(folder: Path, key: str, extension: str) -> None:
    """Change a byte in the middle of a member of a sample."""
    for path in folder.glob("shard-*.tar"):
        for entry in ShardRecord.load(path.with_suffix(".json")).samples:
            if entry.key == key:
                member = entry.members[extension]
                with path.open("r+b") as tar:
                    tar.seek(member.offset + member.size_bytes // 2)
                    byte = tar.read(1)
                    tar.seek(-1, 1)
                    tar.write(bytes([byte[0] ^ 0xFF]))
                return
    raise AssertionError(key)
