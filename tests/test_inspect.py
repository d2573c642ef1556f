"""Looking at samples: facts and pictures."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import ctgpu
from ctgpu.cli.commands import app
from ctgpu.errors import DecodeError, StorageError, UsageError
from ctgpu.extras import install_command
from ctgpu.inspect import (
    View,
    as_displayed,
    cuts,
    draw_originals,
    draw_sheet,
    inspect_samples,
    label_words,
)
from ctgpu.sources.tables import LABEL_NAMES
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate
from stored import chest_as, save

SPACING_MM = (3.5, 3.0, 5.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    volumes = {
        f"valid_{n}_a_1": Volume(chest_phantom((90, 80, 60), SPACING_MM, n), SPACING_MM)
        for n in (1, 2)
    }
    lay_out_ct_rate(root, volumes)
    return root


def build(folder: Path, source: Path, layout: str = "HWD") -> Path:
    spec = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(80, 72, 40), layout=layout)
    ctgpu.build(folder, source=source, spec=spec, device="cpu")
    return folder


def test_facts_of_a_preprocessed_sample(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source)
    (facts, view), (second, _) = inspect_samples(folder)
    assert (facts.key, facts.file, second.key) == (
        *("valid_1_a_1", "shard-000000.tar"),
        "valid_2_a_1",
    )
    assert (facts.shape, facts.layout, facts.dtype) == ((80, 72, 40), "HWD", "float16")
    assert facts.members["bin"] == 2 * 80 * 72 * 40
    assert facts.preprocessed
    assert -1 <= facts.lowest < facts.mean < facts.highest <= 1
    assert facts.spacing_mm == pytest.approx((4.0, 4.0, 6.0), rel=0.03)
    assert facts.labels is not None
    assert len(facts.labels) == 18
    assert "Trachea" in facts.report
    assert facts.source["spacing_mm"] == list(SPACING_MM)
    assert facts.engine is not None
    assert facts.engine["name"] == "cpu"
    assert -1000 <= view.hu.min() < -800 < 500 < view.hu.max() <= 1000
    assert view.labels == facts.labels
    assert json.dumps(facts.to_dict())


def test_either_layout_is_drawn_the_same(tmp_path: Path, source: Path) -> None:
    views = [
        next(inspect_samples(build(tmp_path / layout, source, layout)))[1]
        for layout in ("HWD", "DHW")
    ]
    assert np.array_equal(views[0].hu, views[1].hu)
    assert views[0].spacing_mm == views[1].spacing_mm


@pytest.mark.parametrize("where", ["{out}/shard-000000.tar", "{out}/shard-*.tar", "{out}"])
def test_tars_patterns_and_folders_are_found(tmp_path: Path, source: Path, where: str) -> None:
    folder = build(tmp_path / "out", source)
    assert len(list(inspect_samples(where.format(out=folder), num_samples=1))) == 1


def test_a_volume_file_is_looked_at_as_it_is(source: Path) -> None:
    (path,) = source.rglob("valid_1_a_1.nii.gz")
    ((facts, view),) = inspect_samples(path)
    assert (facts.shape, facts.dtype, facts.preprocessed) == ((90, 80, 60), "int16", False)
    assert view.hu.shape == (90, 80, 60)
    assert facts.labels is None


def test_what_names_nothing_is_refused(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "x-*.tar"):
        with pytest.raises(UsageError, match="names no tar"):
            list(inspect_samples(where))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_the_patient_is_shown_the_same_however_it_is_stored(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    # A mark at the patient's right, front and head, in an array of any orientation.
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    sizes, spacing_ras = (12, 14, 16), (1.0, 2.0, 3.0)
    shape, spacing, corner = [0] * 3, [0.0] * 3, [0] * 3
    for world, axis in enumerate(axes):
        affine[world, axis] = signs[world] * spacing_ras[world]
        shape[axis], spacing[axis] = sizes[world], spacing_ras[world]
        corner[axis] = sizes[world] - 1 if signs[world] > 0 else 0
    hu = np.zeros(shape, np.float32)
    hu[tuple(corner)] = 1000
    view = View("", hu, (spacing[0], spacing[1], spacing[2]), affine, None)
    shown, spacing_mm, known = as_displayed(view)
    assert known
    assert (shown.shape, spacing_mm) == (sizes, spacing_ras)
    # Axes lead to the left, back and head: right and front are their low ends.
    assert np.argwhere(shown == 1000).tolist() == [[0, 0, 15]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were drawn, in place of files."""
    figures: list[Any] = []
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def test_five_ways_of_storing_a_scan_look_different_and_show_one_patient(
    tmp_path: Path, drawn: list[Any]
) -> None:
    codes = ("LPS", "RAS", "LPI", "PLS", "SLP")
    looked_at = [next(inspect_samples(save(tmp_path / f"{c}.nii", chest_as(c)))) for c in codes]
    draw_sheet([view for _, view in looked_at], tmp_path / "sheet.png")
    rows = np.reshape(drawn[0].axes, (5, 6))
    for code, (facts, view), (stored, axial, coronal, *_) in zip(
        codes, looked_at, rows, strict=True
    ):
        assert facts.orientation.codes == code
        assert stored.get_title() == f"as stored ({code}): H down, W across, middle D"
        # Rows of the picture are H, columns W, of the array as it lies in the file.
        voxels = np.asanyarray(chest_as(code).dataobj)
        assert np.array_equal(stored.images[0].get_array(), voxels[:, :, voxels.shape[2] // 2])
        left, right, bottom, top = stored.images[0].get_extent()
        size_mm = np.multiply(voxels.shape, view.spacing_mm)
        assert (bottom - top, right - left) == pytest.approx(tuple(size_mm[:2]))
        for shown, first in ((axial, rows[0][1]), (coronal, rows[0][2])):
            assert shown.images[0].get_array().shape == first.images[0].get_array().shape
    stored_arrays = {row[0].images[0].get_array().tobytes() for row in rows}
    assert len(stored_arrays) == 5
    # PLS and LPS have the same middle slice of the head's axis: turned alike, it is one picture.
    axial = [row[1].images[0].get_array() for row in rows]
    assert np.array_equal(axial[0], axial[3])


def test_what_states_no_orientation_is_drawn_without_sides(
    tmp_path: Path, drawn: list[Any]
) -> None:
    path = save(tmp_path / "a.nii", chest_as("LPS"), sform_code=0, qform_code=0)
    ((facts, view),) = inspect_samples(path)
    assert facts.orientation is None
    draw_sheet([view], tmp_path / "sheet.png")
    stored, axial, *_ = drawn[0].axes
    assert "as stored (orientation not stated)" in stored.get_title()
    assert axial.get_title() == "axial, orientation not stated"
    assert len(axial.texts) == 0


def test_what_a_header_contradicts_is_among_the_facts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", chest_as("LPS"), pixdim=[1, 2, 3, 5, 1, 1, 1, 1])
    ((facts, _),) = inspect_samples(path)
    assert len(facts.contradictions) == 1
    assert "3.5 × 3 × 5 mm" in facts.contradictions[0]
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0
    assert "contradiction" in shown.stdout
    assert "LPS, tilted by 0°, sheared by 0°" in shown.stdout
    line = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert line["orientation"] == {"codes": "LPS", "tilt_degrees": 0.0, "shear_degrees": 0.0}


def test_cuts_have_front_and_head_at_the_top() -> None:
    volume = np.zeros((4, 6, 8), np.float32)
    volume[:, 0, :] += 1  # front
    volume[:, :, -1] += 2  # head
    axial, coronal, sagittal = cuts(volume)
    assert axial.shape == (6, 4)
    assert np.all(axial[0] == 1)
    assert coronal.shape == (8, 4)
    assert np.all(coronal[0] == 2)
    assert sagittal.shape == (8, 6)
    assert sagittal[0, 0] == 3


def test_a_sheet_has_a_row_for_result_and_source(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source)
    views = [view for _, view in inspect_samples(folder, num_samples=1)]
    views += draw_originals(folder, source, [views[0].title])
    assert views[1].hu.shape == (90, 80, 60)
    draw_sheet(views, tmp_path / "sheet.png")
    from matplotlib.image import imread

    height, width = imread(tmp_path / "sheet.png").shape[:2]
    assert (width, height) == (1360, 512)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    views = [view for _, view in inspect_samples(build(tmp_path / "out", source), num_samples=1)]
    with pytest.raises(UsageError, match=r"pip install .*\[preview\]'"):
        draw_sheet(views, tmp_path / "sheet.png")


def raw_tar(path: Path, labels: bytes | None) -> Path:
    """A tar of one raw volume with these labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"volume_shape": [2, 3, 4], "volume_dtype": "int16"}
    members = {"bin": bytes(48), "json": json.dumps(facts).encode()}
    with tarfile.open(path, "w") as archive:
        for name, content in (members | ({} if labels is None else {"cls": labels})).items():
            info = tarfile.TarInfo(f"one.{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("count", "stated", "names"),
    [
        (18, None, LABEL_NAMES),
        (3, ["x", "y", "z"], ("x", "y", "z")),
        (18, [f"organ {n}" for n in range(18)], tuple(f"organ {n}" for n in range(18))),
        (3, None, ("class 0", "class 1", "class 2")),
        (3, ["x", "y"], ("class 0", "class 1", "class 2")),
        (2, ["x", "x"], ("class 0", "class 1")),
    ],
)
def test_labels_are_shown_by_their_names_or_numbers(
    tmp_path: Path, count: int, stated: list[str] | None, names: tuple[str, ...]
) -> None:
    labels = np.zeros(count, "<f4")
    labels[-1] = 1
    path = raw_tar(tmp_path / "a.tar", labels.tobytes())
    if stated is not None:
        (tmp_path / "manifest.json").write_text(json.dumps({"class_names": stated}))
    ((facts, view),) = inspect_samples(path)
    assert facts.labels == dict(zip(names, labels.tolist(), strict=True))
    assert view.labels == facts.labels
    assert label_words(facts.labels) == [names[-1]]


@pytest.mark.parametrize("labels", [None, b""])
def test_a_sample_without_classes_shows_no_labels(tmp_path: Path, labels: bytes | None) -> None:
    ((facts, view),) = inspect_samples(raw_tar(tmp_path / "a.tar", labels))
    assert facts.labels is None
    assert view.labels is None
    assert json.loads(json.dumps(facts.to_dict()))["labels"] is None


def test_labels_that_are_no_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"one\.cls has 1 bytes; wanted little-endian float32"):
        list(inspect_samples(raw_tar(tmp_path / "a.tar", b"3")))


def write_labels(path: Path, values: list[float]) -> Path:
    return raw_tar(path, np.array(values, "<f4").tobytes())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([np.nan] * 3, ["not known"]),
        ([0, 0, 0], ["none is positive"]),
        ([1, np.nan, 0], ["class 0", "1 of 3 not known"]),
        ([0, np.nan, 0], ["none is positive", "1 of 3 not known"]),
    ],
)
def test_labels_that_are_not_known_are_never_called_negative(
    tmp_path: Path, values: list[float], words: list[str]
) -> None:
    path = write_labels(tmp_path / "a.tar", values)
    ((facts, view),) = inspect_samples(path)
    assert facts.labels is not None
    assert label_words(facts.labels) == words
    assert ", ".join(words) in CliRunner().invoke(app, ["inspect", str(path)]).stdout
    matplotlib = pytest.importorskip("matplotlib")
    drawn: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        text = matplotlib.axes.Axes.text
        patch.setattr(
            matplotlib.axes.Axes,
            "text",
            lambda self, x, y, s, **options: (drawn.append(s), text(self, x, y, s, **options))[1],
        )
        draw_sheet([view], tmp_path / "sheet.png")
    assert "\n".join(["labels:", *words]) in drawn


def test_json_holds_no_json(tmp_path: Path, source: Path) -> None:
    folder = build(tmp_path / "out", source)
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json", "--num-samples", "1"])
    facts = json.loads(result.stdout)
    assert facts["engine"]["name"] == "cpu"

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from texts(item)

    assert not [text for text in texts(facts) if text.startswith(("{", "[", '"'))]


@pytest.mark.parametrize(
    ("preview", "code", "sentence"),
    [
        ("sheet.xyz", UsageError, r"ends in \.xyz; wanted .*\.png"),
        ("", UsageError, "is a folder; name a file in it"),
        ("none/sheet.png", StorageError, "is no folder that this account may write to"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_shown(
    tmp_path: Path, source: Path, preview: str, code: type[Exception], sentence: str
) -> None:
    pytest.importorskip("matplotlib")
    folder = build(tmp_path / "out", source)
    words = ["inspect", str(folder), "--preview", str(tmp_path / preview)]
    result = CliRunner().invoke(app, words)
    assert result.stdout == ""
    assert isinstance(result.exception, code)
    assert re.search(sentence, str(result.exception))


def test_originals_that_are_not_there_are_refused_before_anything_is_shown(
    tmp_path: Path, source: Path
) -> None:
    folder = build(tmp_path / "out", source)
    sheet, none = str(tmp_path / "sheet.png"), str(tmp_path / "none")
    result = CliRunner().invoke(app, ["inspect", str(folder), "--preview", sheet, "--source", none])
    assert result.stdout == ""
    assert isinstance(result.exception, UsageError)


def test_without_matplotlib_nothing_is_shown_before_it_is_said(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = build(tmp_path / "out", source)
    words = ["inspect", str(folder), "--preview", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(app, words)
    assert result.stdout == ""
    assert isinstance(result.exception, UsageError)
    assert install_command("preview") in str(result.exception)
