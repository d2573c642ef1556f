"""Conversions that delete their inputs, killed and with inputs replaced, for the tests and
``run_reliability.py``."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scenarios import SPEC, Builder

from built import read_samples
from ctgpu.building.convert import convert_tars
from ctgpu.testing.ctrate import chest_phantom
from support.phantoms import SPACING_MM

_TARS, _SAMPLES = 3, 2


@dataclass
class Deletions:
    """What came of conversions with ``--delete-after``.

    Attributes
    ----------
    conversions : int
        How many were brought to an end.
    kills : int
        SIGKILLs on the way.
    moments : Counter
        The system calls that they struck at.
    replaced : int
        Inputs that were replaced by others of the same sizes, before or after they were converted.
    deleted, kept : int
        Inputs that are gone, and that are still there.
    lost : list of str
        Deleted inputs whose samples, as they were last, no output holds.
    kept_for_nothing : list of str
        Inputs that were never replaced and are still there.
    seconds : float
        All of it.
    """

    conversions: int = 0
    kills: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    replaced: int = 0
    deleted: int = 0
    kept: int = 0
    lost: list[str] = field(default_factory=list)
    kept_for_nothing: list[str] = field(default_factory=list)
    seconds: float = 0.0


def write_raw_tar(path: Path, number: int, seed: int) -> list[str]:
    """A raw tar as the old scripts left them; other voxels of the same size for another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"scan_{_SAMPLES * number + n}" for n in range(_SAMPLES)]
    with tarfile.open(path, "w") as archive:
        for n, key in enumerate(keys):
            voxels = chest_phantom((64, 60, 40), SPACING_MM, 1000 * seed + 10 * number + n)
            h, w, d = SPACING_MM
            facts = {
                "study_id": key,
                "volume_shape": list(voxels.shape),
                "volume_dtype": "int16",
                "XYSpacing": [h, w],
                "ZSpacing": d,
            }
            members = {"bin": np.ascontiguousarray(voxels).tobytes(), "json": json.dumps(facts)}
            for extension, content in members.items():
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return keys


def convert_and_delete(work_dir: Path, *, conversions: int, seed: int) -> Deletions:
    """Convert with ``--delete-after``, killed now and then, inputs replaced now and then."""
    chance, result, began = random.Random(seed), Deletions(), time.perf_counter()
    # What each version of each input becomes, undisturbed.
    wanted: list[dict[str, bytes]] = []
    for version in range(2):
        folder = work_dir / f"version-{version}"
        keys = [
            write_raw_tar(folder / f"shard-{number:06d}.tar", number, version)
            for number in range(_TARS)
        ]
        convert_tars(folder, work_dir / f"whole-{version}", spec=SPEC, device="cpu")
        samples = read_samples(work_dir / f"whole-{version}")
        wanted.append({key: sample.volume for key, sample in samples.items()})
    options = {"spec": SPEC.to_dict(), "samples_per_shard": _SAMPLES, "num_workers": 1}
    with Builder(work_dir) as builder:
        for conversion in range(conversions):
            raw, folder = work_dir / f"raw-{conversion}", work_dir / f"out-{conversion}"
            tars = [raw / f"shard-{number:06d}.tar" for number in range(_TARS)]
            shutil.copytree(work_dir / "version-0", raw)
            versions = [0] * _TARS
            while True:
                begun = (folder / "plan.json").exists()
                kill = {"kill_at_call": chance.randint(10, 110)} if chance.random() < 0.8 else {}
                # One killed before it had written its lease is waited for as for another host.
                kill |= {"stale_after_s": 1}
                builder.start(folder, {} if begun else options, convert=str(raw), **kill)
                code, events = builder.wait()
                result.moments.update(e[1] for e in events if e[0] == "killed")
                result.kills += code == -9
                if code != -9:
                    assert code == 0, events
                    break
                number = chance.randrange(_TARS)
                if chance.random() < 0.7 and tars[number].exists():
                    versions[number] = 1 - versions[number]
                    version = work_dir / f"version-{versions[number]}"
                    shutil.copy(version / tars[number].name, tars[number])
                    result.replaced += 1
            result.conversions += 1
            made = read_samples(folder)
            for number, tar in enumerate(tars):
                if tar.exists():
                    result.kept += 1
                    whole = all(
                        made[key].volume == wanted[versions[number]][key] for key in keys[number]
                    )
                    if whole:
                        result.kept_for_nothing.append(str(tar))
                    continue
                result.deleted += 1
                result.lost += [
                    f"{tar}: {key}"
                    for key in keys[number]
                    if made[key].volume != wanted[versions[number]][key]
                ]
    result.seconds = time.perf_counter() - began
    return result
