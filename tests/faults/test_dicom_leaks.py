"""Nothing that identifies a patient leaves: what is planted everywhere is found nowhere."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from support.command_line import run_here
from support.dicom_series import plant, uid_of, write_series
from support.phantoms import SPACING_MM, chest

#: In text of every kind, private and nested elements among it.
IN_ELEMENTS = {"name": "Zyxwv^Quentin", "date": "19371104", "id": "PX-4711-0815"}
#: In names of folders and files.
IN_NAMES = ("Musterfrau", "1958-03-07", "FALL-99887")
AFFINE = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
SMALL = ("--shape", "60,56,30", "--spacing", "6,6,8", "--device", "cpu", "--samples-per-shard", "2")
SERIES = ("good", "enhanced", "packed", "gap", "cut", "beside", "values")


def _wrong_values(dataset: Dataset, number: int) -> None:
    """Numbers that are none, which libraries quote."""
    plant(dataset, IN_ELEMENTS)
    dataset.add_new(0x00200032, "LO", [IN_ELEMENTS["name"], IN_ELEMENTS["id"], "1"])
    dataset.add_new(0x00281053, "LO", IN_ELEMENTS["id"])
    dataset.add_new(0x00200013, "LO", IN_ELEMENTS["date"] + "x")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in which series are whole, compressed, gappy, cut and nonsense."""
    root = tmp_path_factory.mktemp("pacs") / IN_NAMES[0]
    hu = chest((60, 56, 40), 1).voxels.astype(np.int16)
    for series in SERIES:
        how: dict[str, Any] = {"change": lambda dataset, number: plant(dataset, IN_ELEMENTS)}
        if series == "enhanced":
            how["form"] = "enhanced"
        if series == "packed":
            how["transfer_syntax"] = "rle"
        if series == "values":
            how["change"] = _wrong_values
        folder = root / f"{IN_NAMES[0]}_{series}" / IN_NAMES[1]
        paths = write_series(
            folder,
            hu,
            AFFINE,
            series=series,
            study=f"study of {series}",
            name=lambda n: f"{IN_NAMES[2]}_{n:03d}.dcm",
            **how,
        )
        if series == "gap":
            paths[7].unlink()
        if series == "cut":
            paths[7].write_bytes(paths[7].read_bytes()[:-4000])
        if series == "beside":
            paths[-1].write_bytes(paths[-1].read_bytes()[:300])
            # A dose report, and a packet of pixels that is none.
            (folder / f"{IN_NAMES[2]}.txt").write_text(IN_ELEMENTS["name"])
        if series == "packed":
            content = paths[3].read_bytes()
            paths[3].write_bytes(
                content[:-900] + IN_ELEMENTS["name"].encode() * 60 + content[-120:]
            )
    rows = [f"{uid_of(series)},{n % 2}" for n, series in enumerate(SERIES)]
    (root / "labels.csv").write_text("\n".join(["uid,nodule", *rows]) + "\n")
    twice = (f"{uid_of('good')},A nodule.\n", f"{uid_of('study of good')},No nodule.\n")
    (root / "reports.csv").write_text("uid,findings\n" + "".join(twice))
    return root


def planted() -> dict[str, str]:
    """Whatever must not be found, and where it stands."""
    uids = {f"UID of {series}": uid_of(series) for series in SERIES}
    uids |= {f"UID of the study of {series}": uid_of(f"study of {series}") for series in SERIES}
    uids |= {
        f"UID of slice {n} of {series}": uid_of(series, "instance", n)
        for series in SERIES
        for n in (0, 7)
    }
    words = {f"an element's {kind}": mark for kind, mark in IN_ELEMENTS.items()}
    words |= {f"part of a name, {part}": part for part in IN_ELEMENTS["name"].split("^")}
    return uids | words | {f"a path's {part}": part for part in IN_NAMES}


def found_in(content: bytes) -> list[str]:
    content = content.lower()
    return [where for where, mark in planted().items() if mark.lower().encode() in content]


def stored(folder: Path) -> dict[str, bytes]:
    """Every file of a data set that may be passed on."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "private" not in path.relative_to(folder).parts
    }


@pytest.fixture(scope="module")
def run_in(root: Path) -> Any:
    """A command, whose source is the folder that it runs in."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            return run_here(*map(str, words), COLUMNS="200")

    return run


@pytest.fixture(scope="module")
def out(run_in: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data set, and all that was said while it was built."""
    folder = tmp_path_factory.mktemp("built") / "out"
    said = ""
    for log_format in ("text", "json"):
        again = ("--retry-failed",) if said else ("--source", ".", *SMALL)
        result = run_in(
            *("build", "--output-dir", folder, "--debug", "--log-format", log_format, *again)
        )
        assert result.returncode == 1, result.stderr
        said += result.stdout + result.stderr
    return folder, said


@pytest.mark.slow
def test_nothing_that_a_build_says_or_stores_names_a_patient(out: tuple[Path, str]) -> None:
    folder, said = out
    files = stored(folder)
    assert {"plan.json", "manifest.json", "failures.jsonl", "shard-000000.tar"} <= files.keys()
    assert files["failures.jsonl"].count(b"\n") >= 4
    assert "rows that contradict each other for" in said
    assert "joined by uid: 7 of 7 volumes have a row" in said
    assert found_in(said.encode()) == []
    assert {name: marks for name, content in files.items() if (marks := found_in(content))} == {}
    assert found_in("\n".join(files).encode()) == []


@pytest.mark.slow
def test_what_is_private_holds_uids_and_paths_and_no_text_of_an_element(
    out: tuple[Path, str],
) -> None:
    private = out[0] / "private/series.json"
    assert private.stat().st_mode & 0o777 == 0o600
    found = found_in(private.read_bytes())
    assert "UID of good" in found
    assert "a path's FALL-99887" in found
    assert not [where for where in found if "element" in where or "part of a name" in where]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("verify", "OUT"),
        ("verify", "OUT", "--source", "."),
        ("inspect", "OUT"),
        ("inspect", "OUT", "--json"),
        ("manifest", "OUT"),
        ("view", "OUT", "--reports"),
        ("relabel", "OUT", "--debug"),
        ("relabel", "OUT", "--source", ".", "--debug"),
        ("plan", "--source", ".", "--json", "--debug", *SMALL[:6]),
        ("build", "--output-dir", "OUT", "--debug", "--force", "--source", "."),
    ],
    ids=lambda words: " ".join(words[:4]),
)
def test_nothing_that_another_command_says_or_stores_does(
    out: tuple[Path, str], run_in: Any, words: tuple[str, ...]
) -> None:
    result = run_in(*(str(out[0]) if word == "OUT" else word for word in words))
    assert result.returncode in (0, 1), result.stderr
    assert result.stdout or result.stderr
    assert found_in((result.stdout + result.stderr).encode()) == []
    files = stored(out[0])
    assert {name: marks for name, content in files.items() if (marks := found_in(content))} == {}


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["damaged", "newer", "gone"])
def test_nothing_that_is_said_when_what_is_private_is_lost_does(
    out: tuple[Path, str], run_in: Any, tmp_path: Path, harm: str
) -> None:
    private = out[0] / "private/series.json"
    content = private.read_bytes()
    try:
        if harm == "gone":
            private.unlink()
        else:
            changed = content.replace(b"ctgpu-private-1", b"ctgpu-private-9")
            private.write_bytes(changed if harm == "newer" else content[: len(content) // 2])
        result = run_in("build", "--output-dir", out[0], "--force", "--debug", "--source", ".")
    finally:
        private.write_bytes(content)
        private.chmod(0o600)
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert found_in((result.stdout + result.stderr).encode()) == []


def test_what_is_planted_is_found_where_it_stands(root: Path) -> None:
    """Else the tests above would pass whatever happened."""
    (path, *_) = sorted((root / f"{IN_NAMES[0]}_good").rglob("*.dcm"))
    found = found_in(path.read_bytes() + str(path).encode())
    assert len(found) == 3 + 5 + 3
    assert found_in(b"shard-000000.tar") == []


@pytest.mark.slow
def test_nothing_that_is_said_of_a_source_that_has_changed_does(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it lies is known from what is private alone, and not said either."""
    copy = tmp_path / IN_NAMES[0]
    shutil.copytree(root, copy)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.chdir(copy)
        build = ("build", "--output-dir", str(out), "--debug")
        assert run_here(*build, "--source", ".", *SMALL).returncode == 1
    folders = [copy / f"{IN_NAMES[0]}_{series}" for series in SERIES]

    def new() -> None:
        hu = chest((60, 56, 40), 2).voxels.astype(np.int16)
        write_series(folders[0].with_name(f"{IN_NAMES[2]}_new"), hu, AFFINE, series="new")

    def grown() -> None:
        path = next(folders[0].rglob("*.dcm"))
        path.write_bytes(path.read_bytes() + bytes(2))

    def gone() -> None:
        shutil.rmtree(folders[0])

    def all_gone() -> None:
        for folder in folders[1:]:
            shutil.rmtree(folder)
        for path in copy.glob("**/*.dcm"):
            path.unlink()

    def nowhere() -> None:
        copy.rename(tmp_path / "elsewhere")

    for change in (new, grown, gone, all_gone, nowhere):
        change()
        result = run_here(*build, "--force", COLUMNS="200")
        assert result.returncode in (1, 2), result.stderr
        assert found_in((result.stdout + result.stderr).encode()) == [], change.__name__
    assert "the folder of DICOM that this data set was begun with" in result.stderr
    files = stored(out)
    assert {name: marks for name, content in files.items() if (marks := found_in(content))} == {}
