"""Samples against their originals: what is right passes, and every planted fault is found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from checking_cases import SPEC, STUDIES, compare

import ctgpu
from ctgpu.checking.compare import compare_samples
from ctgpu.engines import Job, open_engine
from ctgpu.errors import DeviceError
from ctgpu.installation import install_command
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, lay_out_ct_rate
from ctgpu.volume.geometry import plan_volume
from ctgpu.volume.raw import Rescale
from support.building import rewrite


def test_what_was_built_passes(built: Path) -> None:
    found = compare(built, built / "out")
    assert list(found) == STUDIES
    for comparison in found.values():
        assert comparison.passed, comparison.faults
        assert comparison.max_ulp <= 1
        assert comparison.mean_ulp <= comparison.differing_share <= 1e-3


def made_with(
    volume: Volume,
    spec: Spec,
    *,
    rescale: Rescale | None = None,
) -> npt.NDArray[np.float16]:
    """What an engine with a fault would have stored."""
    voxels = volume.voxels
    out = np.empty(spec.stored_shape, np.float16)
    plan = plan_volume(voxels.shape, volume.spacing_mm, spec)
    open_engine("cpu").run([Job(voxels, rescale or Rescale(), plan, out)])
    return out


def half_a_voxel_on(volume: Volume, spec: Spec) -> npt.NDArray[np.float16]:
    plan = plan_volume(volume.voxels.shape, volume.spacing_mm, spec)
    # align_corners-like sampling: every position along D half an output voxel further on.
    axis = plan.axes[2]
    position = np.clip(axis.i0 + axis.w.astype(np.float64) + 0.5, 0, axis.n_source - 1)
    i0 = position.astype(np.int32)
    moved = replace(
        axis,
        i0=i0,
        i1=np.minimum(i0 + 1, axis.n_source - 1).astype(np.int32),
        w=(position - i0).astype(np.float32),
    )
    out = np.empty(spec.stored_shape, np.float16)
    shifted = replace(plan, axes=(plan.axes[0], plan.axes[1], moved))
    open_engine("cpu").run([Job(volume.voxels, Rescale(), shifted, out)])
    return out


def with_window(spec: Spec, *hu_window: float) -> Spec:
    return Spec(**(spec.to_dict() | {"hu_window": hu_window}))


FAULTS: dict[str, tuple[Callable[[Volume, Spec], npt.NDArray[np.float16]], str]] = {
    "swapped axis": (lambda v, s: np.swapaxes(made_with(v, s), 0, 1), "axes are in the order"),
    "half a voxel": (half_a_voxel_on, "lies elsewhere"),
    "wrong window": (lambda v, s: made_with(v, with_window(s, -1150, 350)), "another HU window"),
    "double rescale": (
        lambda v, s: made_with(v, s, rescale=Rescale(1.0, -1024.0)),
        "a rescale too many",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(
    tmp_path: Path, built: Path, phantoms: dict[str, Volume], fault: str
) -> None:
    make, cause = FAULTS[fault]

    def change(key: str, extension: str, content: bytes) -> bytes:
        if extension != "bin" or key != STUDIES[1]:
            return content
        return make(phantoms[key], SPEC).tobytes()

    found = compare(built, rewrite(built / "out", tmp_path / "bad", change))
    assert [key for key, comparison in found.items() if not comparison.passed] == [STUDIES[1]]
    (message,) = found[STUDIES[1]].faults
    assert cause in message
    assert found[STUDIES[1]].differing_share > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_on_real_ct(tmp_path: Path, real_ct: Path, fault: str) -> None:
    path = real_ct / "ts_pulmonary_ct_cropped.nii.gz"
    volume, make = Volume.read(path), FAULTS[fault][0]
    spec = Spec(target_spacing_mm=(1.8, 1.8, 2.5), shape_hwd=(96, 96, 64))
    lay_out_ct_rate(tmp_path / "source", {STUDIES[0]: path})
    ctgpu.build(tmp_path / "out", source=tmp_path / "source", spec=spec, device="cpu")
    folder = rewrite(
        tmp_path / "out",
        tmp_path / "bad",
        lambda k, e, c: make(volume, spec).tobytes() if e == "bin" else c,
    )
    assert compare(tmp_path, tmp_path / "out")[STUDIES[0]].passed
    assert not compare(tmp_path, folder)[STUDIES[0]].passed


@pytest.mark.parametrize(("member", "what"), [("cls", "the labels"), ("txt", "the report")])
def test_a_mixed_up_row_is_found(tmp_path: Path, built: Path, member: str, what: str) -> None:
    contents: dict[str, bytes] = {}
    rewrite(
        built / "out",
        tmp_path / "same",
        lambda k, e, c: contents.setdefault(f"{k}.{e}", c),
    )
    other = {STUDIES[0]: STUDIES[1], STUDIES[1]: STUDIES[0], STUDIES[2]: STUDIES[2]}
    folder = rewrite(
        built / "out",
        tmp_path / "bad",
        lambda k, e, c: contents[f"{other[k]}.{e}"] if e == member else c,
    )
    found = compare(built, folder)
    for study in STUDIES[:2]:
        assert len(found[study].faults) == 1
        assert what in found[study].faults[0]
    assert found[STUDIES[2]].passed


def test_eighteen_nan_are_the_labels_of_an_original_that_has_none(
    tmp_path: Path, built: Path, phantoms: dict[str, Volume]
) -> None:
    # As tars hold them that were made when every data set had CT-RATE's classes.
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in lay_out_ct_rate(tmp_path / "made", phantoms, tables=()).values():
        path.rename(bare / path.name)
    found = {}
    for name, value in (("nan", np.nan), ("zero", 0.0)):
        labels = np.full(18, value, "<f4").tobytes()
        folder = rewrite(
            built / "out",
            tmp_path / name,
            lambda k, e, c, labels=labels: {"cls": labels, "txt": b""}.get(e, c),
        )
        (folder / "plan.json").unlink()
        compared = compare_samples(folder, source=bare, num_samples=None)
        found[name] = {fault for comparison in compared for fault in comparison.faults}
    assert found == {"nan": set(), "zero": {"the labels are not those of its original"}}


def test_without_torch_nothing_is_said_of_an_option_that_nobody_gave(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceError) as caught:
        next(compare_samples(built / "out", source=built / "source"))
    assert install_command("torch") in str(caught.value)
    assert "--device" not in str(caught.value)
