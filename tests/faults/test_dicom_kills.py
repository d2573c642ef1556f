"""SIGKILL while series are named, planned and made: keys stay what they were, nothing is lost."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from scenarios.builds import Builder

import ctgpu
from built import read_samples
from ctgpu.checking.verify import verify_folder
from ctgpu.sources.dicom.private import Pseudonyms
from support.dicom_series import write_series
from support.phantoms import COARSE_SPEC, SPACING_MM, chest

AFFINE = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pacs")
    for seed in (1, 2, 3):
        hu = chest((30, 28, 20), seed).voxels.astype(np.int16)
        write_series(root / f"S{seed}", hu, AFFINE, series=f"S{seed}", form="enhanced")
    return root


@pytest.mark.slow
def test_a_build_that_is_killed_anywhere_goes_on_with_its_keys(tmp_path: Path, pacs: Path) -> None:
    options = {"source": str(pacs), "spec": COARSE_SPEC.to_dict(), "samples_per_shard": 2}
    ctgpu.build(tmp_path / "whole", source=pacs, spec=COARSE_SPEC, device="cpu")
    expected = {sample.volume for sample in read_samples(tmp_path / "whole").values()}
    assert len(expected) == 3
    moments = set()
    with Builder(tmp_path) as builder:
        builder.start(tmp_path / "counted", options)
        code, events = builder.wait()
        assert code == 0, events
        calls = int(events[-1][1].split()[0])
        assert calls > 40
        # Each of those before there is a plan, and some of the others.
        for at in (*range(1, 25), *range(25, calls, 12)):
            folder = tmp_path / f"killed-{at}"
            builder.start(folder, options, kill_at_call=at)
            code, events = builder.wait()
            # Threads write at the same time, so the last calls may not be reached.
            assert code == -9 or at > calls - 12, events
            moments |= {rest[0] for kind, *rest in events if kind == "killed"}
            before = Pseudonyms(folder).load()
            planned = (folder / "plan.json").exists()
            builder.start(folder, options)
            code, events = builder.wait()
            assert code == 0, (at, events)
            after = Pseudonyms(folder).load()
            assert after is not None
            assert len(after.series) == 3
            if before is not None:
                assert after.salt == before.salt
            # What a plan's keys mean is known before there is one.
            assert not planned or (before is not None and before.series == after.series)
            samples = read_samples(folder)
            assert samples.keys() == after.series.keys()
            assert {sample.volume for sample in samples.values()} == expected
            register = folder / "private/series.json"
            assert stat.S_IMODE(register.stat().st_mode) == 0o600
            assert json.loads(register.read_bytes())["salt"] == after.salt
    assert verify_folder(folder).exit_code == 0
    assert moments >= {"open", "pwrite", "rename", "link"}


@pytest.mark.slow
def test_builds_that_begin_together_share_one_salt(tmp_path: Path, pacs: Path) -> None:
    options = {"source": str(pacs), "spec": COARSE_SPEC.to_dict(), "samples_per_shard": 1}
    for trial in range(2):
        folder, logs = tmp_path / f"out-{trial}", [tmp_path / f"{trial}-{n}" for n in range(2)]
        for log in logs:
            log.mkdir()
        with Builder(logs[0]) as one, Builder(logs[1]) as other:
            one.start(folder, options)
            other.start(folder, options)
            for builder in (one, other):
                code, events = builder.wait()
                assert code == 0, events
        register = Pseudonyms(folder).load()
        assert register is not None
        assert read_samples(folder).keys() == register.series.keys()
