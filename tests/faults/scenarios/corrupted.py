"""Builds of damaged files."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import numpy as np

from built import read_samples
from ctgpu.building.builder import build
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, write_tables
from ctgpu.testing.hub import LocalHub
from ctgpu.volume.ref import VOLUME_SUFFIXES, VOLUME_TIERS, strip_volume_suffix
from scenarios.builds import quick_patience


@dataclass
class Corrupted:
    """What came of corrupted inputs.

    Attributes
    ----------
    inputs : int
        How many.
    refused : Counter
        Those in the ledger, by stage.
    accepted_unharmed : int
        Those whose damage changed nothing: their samples are those of the undamaged file.
    accepted_wrong : list of str
        Study ids of samples that are something else.
    odd_errors : list of str
        Ledger entries that are not one sentence of an error that is expected of a sample.
    seconds : float
        Of the build.
    """

    inputs: int
    refused: Counter[str]
    accepted_unharmed: int
    accepted_wrong: list[str]
    odd_errors: list[str]
    seconds: float


_CORPUS_SPEC = Spec(target_spacing_mm=(1.0, 1.0, 2.0), shape_hwd=(30, 24, 10))


def build_corrupted(work_dir: Path, damaged: Iterable[corpus.Hostile]) -> Corrupted:
    """Build folders of damaged files, behind the undamaged ones that they were made of.

    One for each row of formats, for files of a later row are no volumes beside others.
    """
    files, parts = list(damaged), []
    for row, suffixes in enumerate(VOLUME_TIERS):
        own = [one for one in files if one.file_name.endswith(suffixes)]
        if not own:
            continue
        undamaged = [one for one in corpus.valid_files().items() if one[0].endswith(suffixes)]
        source = work_dir / f"source-{row}"
        _lay_out(source, [*undamaged, *own])
        parts.append(_judge(work_dir / f"out-{row}", len(undamaged), source=source))
    return Corrupted(
        inputs=sum(part.inputs for part in parts),
        refused=sum((part.refused for part in parts), Counter()),
        accepted_unharmed=sum(part.accepted_unharmed for part in parts),
        accepted_wrong=[name for part in parts for name in part.accepted_wrong],
        odd_errors=[error for part in parts for error in part.odd_errors],
        seconds=sum(part.seconds for part in parts),
    )


def build_rotten_hub(work_dir: Path, *, count: int, seed: int) -> Corrupted:
    """Build from a Hub whose files were damaged after it had listed their checksums.

    They have no checksum of their own: plain ``.nii``.
    """
    chance = np.random.default_rng(seed)
    good = corpus.nifti_bytes(corpus.true_voxels())
    paths = _lay_out(work_dir / "source", [("good.nii", good)] * (count + 1))
    with LocalHub(work_dir / "source") as hub, quick_patience():
        for path in paths:
            hub.sha256(path)
        for path in paths[1:]:
            bad = good
            while bad == good or len(bad) != len(good):
                damage = corpus.DAMAGES[int(chance.integers(len(corpus.DAMAGES)))]
                # Half of it strikes the header.
                end = len(good) if chance.random() < 0.5 else 352
                bad = damage(good, int(chance.integers(end)), chance)
            listed = path.stat()
            path.write_bytes(bad)
            os.utime(path, ns=(listed.st_atime_ns, listed.st_mtime_ns))
        return _judge(work_dir / "out", 1, repo_id=hub.repo_id, endpoint=hub.url)


def _lay_out(root: Path, files: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write files under study ids, with a metadata CSV that has a row for each."""
    folder = root / "dataset" / "valid_fixed"
    folder.mkdir(parents=True)
    paths = []
    for k, (name, data) in enumerate(files):
        suffix = next(s for s in VOLUME_SUFFIXES if name.endswith(s))
        paths.append(folder / f"valid_{k}_a_1{suffix}")
        paths[-1].write_bytes(data)
    volume = Volume(corpus.true_voxels(), (0.7, 0.7, 1.5))
    write_tables(root, {strip_volume_suffix(path.name): volume for path in paths})
    return paths


def _judge(folder: Path, undamaged: int, **options: Any) -> Corrupted:
    """Build, and hold every sample against the undamaged one of the same format."""
    began = time.perf_counter()
    report = build(folder, spec=_CORPUS_SPEC, device="cpu", **options)
    seconds = time.perf_counter() - began
    samples = read_samples(folder)
    expected = {}
    wrong = []
    for number, (key, sample) in enumerate(samples.items()):
        facts = sample.metadata
        suffix = Path(facts["source"].pop("path")).name.partition(".")[2]
        del facts["study_id"], facts["report"]
        if number < undamaged:
            expected[suffix] = sample.volume, facts
        elif (sample.volume, facts) != expected[suffix]:
            wrong.append(key)
    odd = [
        f"{entry['key']}: {entry['error_class']}: {entry['message']}"
        for entry in report.failures
        if entry["error_class"] not in ("FetchError", "DecodeError", "IntensityError")
        or "\n" in entry["message"]
        or not 20 < len(entry["message"]) < 500
    ]
    return Corrupted(
        len(report.failures) + len(samples) - undamaged,
        Counter(str(entry["stage"]) for entry in report.failures),
        len(samples) - undamaged - len(wrong),
        wrong,
        odd,
        seconds,
    )
