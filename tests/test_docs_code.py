"""Every block of Python on the pages runs in a test, here or where its page has one of its own."""

from __future__ import annotations

import ast
import gc
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ctgpu
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import LABEL_NAMES, lay_out_ct_rate
from support.pages import python_block, python_blocks
from support.phantoms import chest, study_ids

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
PAGES = {
    path.name if path.parent.name == "docs" else str(path.relative_to(REPOSITORY)): path
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
}

#: Where the blocks of a page run, and how many those are that do not run here.
ELSEWHERE = {
    "axes.md": ("test_axes_page.py", 2),
    "building.md": ("test_docs_site.py", 1),
    "ctz.md": ("support/plain_ctz.py", 1),
    "data_sets.md": ("test_data_sets_page.py", 1),
    "hospital.md": ("test_docs_site.py", 2),
    "loading.md": ("test_loading_page.py", 8),
    "online.md": ("test_online_page.py", 5),
    "start.md": ("test_docs_site.py", 1),
    "training.md": ("test_docs_site.py", 1),
    "viewing.md": ("viewing/test_view.py", 1),
}
#: Blocks that run here, by the page and something that is in them alone.
HERE = [
    ("README.md", "save_on_scan"),
    ("README.md", "make_loader"),
    ("contracts.md", "target_spacing_mm"),
    ("contracts.md", "preset("),
    ("exporting.md", "export_samples"),
    ("hospital.md", "ctgpu.preprocess("),
    ("loading.md", "class_balanced"),
    ("loading.md", "read_labels"),
    ("loading.md", "webdataset.WebDataset"),
]
#: Blocks that run nowhere, and why.
NOT_RUN = {
    ("exporting.md", "megatron.energon"): "runs in tests/exporting, where Energon is installed",
    ("loading.md", "ctgpu.loading.dali"): "takes a GPU; tests/loading runs DALI on the CPU",
    ("ray.md", "RayExecutor"): "takes a cluster; tests/distribute starts ones of its own",
}


def blocks(page: str) -> list[str]:
    return python_blocks(PAGES[page].read_text(encoding="utf-8"))


def block(page: str, mark: str) -> str:
    return python_block(PAGES[page].read_text(encoding="utf-8"), mark)


def test_every_block_runs_somewhere_or_says_why_not() -> None:
    for page, mark in [*HERE, *NOT_RUN]:
        assert block(page, mark)
    counted = {page: len(blocks(page)) for page in PAGES if blocks(page)}
    known = {page: count for page, (_, count) in ELSEWHERE.items()}
    for page, _ in [*HERE, *NOT_RUN]:
        known[page] = known.get(page, 0) + 1
    assert counted == known


@pytest.mark.parametrize("page", ELSEWHERE)
def test_the_test_that_runs_a_page_is_there(page: str) -> None:
    text = (TESTS / ELSEWHERE[page][0]).read_text(encoding="utf-8")
    assert page in text
    assert "exec(" in text


@cache
def names_of(module: str) -> set[str]:
    """What a module defines or imports, without what importing it takes: torch, DALI, MONAI."""
    origin = getattr(importlib.util.find_spec(module), "origin", None)
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(origin).read_text(encoding="utf-8") if origin else "")):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_what_blocks_import_of_ctgpu_is_there(page: str) -> None:
    imported = [
        (node.module, alias.name)
        for code in blocks(page)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ctgpu")
        for alias in node.names
    ]
    assert [one for one in imported if one[1] not in names_of(one[0])] == []


def test_an_import_of_nothing_is_found_out() -> None:
    assert "make_loader" in names_of("ctgpu.loading")
    assert "make_loaders" not in names_of("ctgpu.loading")
    assert names_of("ctgpu.no_such_module") == set()


SPEC = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(24, 20, 16))
STUDIES = study_ids(3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, a source, and a data set of it; nothing here is changed."""
    root = tmp_path_factory.mktemp("pages")
    volumes = {study: chest((60, 56, 40), n) for n, study in enumerate(STUDIES)}
    paths = lay_out_ct_rate(root / "source", volumes)
    (root / "scan.nii.gz").symlink_to(paths[STUDIES[0]])
    ctgpu.build(root / "shards/valid", source=root / "source", spec=SPEC, device="cpu")
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same, in which blocks may write."""
    (tmp_path / "scan.nii.gz").symlink_to(made / "scan.nii.gz")
    (tmp_path / "shards").mkdir()
    for name in ("valid", "mine"):
        (tmp_path / "shards" / name).symlink_to(made / "shards/valid")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "hospital.md"])
def test_one_scan_gives_a_prediction_on_its_grid(place: Path, page: str) -> None:
    names: dict[str, Any] = {}
    exec(block(page, "ctgpu.preprocess("), names)
    assert names["volume"].shape == (480, 480, 240)
    prediction, scan = nibabel.load("pred.nii.gz"), nibabel.load("scan.nii.gz")
    assert prediction.shape == scan.shape
    np.testing.assert_allclose(prediction.affine, scan.affine, rtol=1e-6)
    assert 0 < np.asarray(prediction.dataobj).mean() < 1


def test_the_loader_of_the_readme_gives_batches(place: Path) -> None:
    pytest.importorskip("torch")
    names: dict[str, Any] = {}
    exec(block("README.md", "make_loader").replace('"cuda"', '"cpu"'), names)
    assert names["batch"]["labels"].shape[1] == len(LABEL_NAMES)


@pytest.mark.slow
def test_a_contract_of_ones_own_is_made(place: Path, made: Path) -> None:
    code = block("contracts.md", "target_spacing_mm")
    names: dict[str, Any] = {"ctgpu": ctgpu}
    exec(code.replace('"/data/CT-RATE"', repr(str(made / "source"))), names)
    spec = names["spec"]
    assert names["volume"].shape == spec.stored_shape == (224, 224, 160)
    built = ctgpu.loading.VolumeDataset("shards/merlin")
    assert built.spec == spec
    assert len(built) == len(STUDIES)
    exec(block("contracts.md", "preset("), names)
    assert names["spec"] == Spec.from_dict({**spec.to_dict(), "dtype": "bfloat16"})


def test_rare_samples_come_more_often(place: Path) -> None:
    pytest.importorskip("torch")
    from ctgpu.loading import VolumeDataset, make_loader

    names: dict[str, Any] = {"make_loader": make_loader, "dataset": VolumeDataset("shards/valid")}
    exec(block("loading.md", "read_labels"), names)
    rare = names["labels"][:, LABEL_NAMES.index("Pericardial effusion")] == 1
    assert names["weights"].tolist() == [5 if one else 1 for one in rare]
    exec(block("loading.md", "class_balanced"), names)
    drawn = [study for batch in names["loader"] for study in batch["study_id"]]
    assert len(drawn) == len(STUDIES)
    assert set(drawn) <= set(STUDIES)


@pytest.mark.filterwarnings(
    # webdataset leaves the tars that it opened to the garbage collector.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_stock_webdataset_reads_the_shards(place: Path) -> None:
    pytest.importorskip("webdataset")
    code = block("loading.md", "webdataset.WebDataset").replace("..000009", "..000000")
    names: dict[str, Any] = {}
    exec(code.replace('"shards/', '"shards/valid/'), names)
    samples = list(names["samples"])
    assert [sample["study_id"] for sample in samples] == STUDIES
    assert samples[0]["volume"].shape == (1, 16, 24, 20)
    names.clear()
    gc.collect()


def test_samples_are_exported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = block("exporting.md", "export_samples")
    (named,) = re.findall(r"\"(valid_\w+)\", 0\]", code)
    exec(code.replace(named, STUDIES[1]), {})
    said = capsys.readouterr().out
    assert all(study in said for study in STUDIES[:2])
    array = np.load(next(Path("exported").rglob(f"{STUDIES[1]}.npy")))
    assert array.shape == SPEC.stored_shape
