"""The site of docs/ builds, with every page and public name in it; and what its pages show."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ctgpu
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.dicom_series import write_series
from support.phantoms import chest, study_ids
from test_package import PUBLIC

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
SCRIPT = REPOSITORY / "examples/train.py"
SPEC = Spec(target_spacing_mm=(8.0, 8.0, 12.0), shape_hwd=(32, 32, 32))

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("griffe") is None,
    reason="mkdocs is not installed: pip install --group docs",
)


def blocks(page: str) -> list[str]:
    """The blocks of Python on a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def public_names() -> set[str]:
    return {f"{module}.{name}" for module in PUBLIC for name in PUBLIC[module].split()}


def test_the_reference_has_every_public_name_and_no_other() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^::: (\S+)(?:\n    options: .*members: \[([^]]*)\])?", page, re.MULTILINE)
    names = {name for name, _ in drawn if name != "ctgpu.errors"}
    (errors,) = [members for name, members in drawn if name == "ctgpu.errors"]
    names |= {f"ctgpu.errors.{error}" for error in errors.split(", ")}
    in_words = set(re.findall(r"`(ctgpu\.[\w.]+)`", page))
    # CtgpuError is called by either name.
    assert names <= public_names()
    assert public_names() - names - in_words == {"ctgpu.CtgpuError"}


def test_members_that_the_reference_asks_for_are_there() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    asked = re.findall(r"^::: (ctgpu[\w.]*)\.(\w+)\n    options: .*members: \[(.+)\]", page, re.M)
    assert len(asked) > 4
    for module, name, members in asked:
        owner = getattr(importlib.import_module(module), name)
        assert [member for member in members.split(", ") if not hasattr(owner, member)] == [], name


def test_the_training_script_is_on_its_page_as_it_is() -> None:
    assert SCRIPT.read_text(encoding="utf-8") in blocks("training.md")


@needs_mkdocs
@pytest.mark.parametrize(
    ("text", "file", "page", "led"),
    [
        (
            "[a](../LICENSE)",
            "docs/x.md",
            "docs/x.md",
            "https://github.com/ctgpu/ctgpu/blob/main/LICENSE",
        ),
        ("[a](axes.md#back)", "docs/x.md", "docs/x.md", "axes.md#back"),
        ("[a](../CHANGELOG.md)", "docs/x.md", "docs/x.md", "changelog.md"),
        ("[a](../axes.md)", "docs/previews/README.md", "docs/previews/README.md", "../axes.md"),
        ("[a](docs/axes.md)", "CHANGELOG.md", "docs/changelog.md", "axes.md"),
        ("[a](https://x.org/y)", "docs/x.md", "docs/x.md", "https://x.org/y"),
        ("[a](#there)", "docs/x.md", "docs/x.md", "#there"),
    ],
)
def test_links_lead_from_the_site_where_they_lead_in_the_tree(
    text: str, file: str, page: str, led: str
) -> None:
    relinked = runpy.run_path(str(DOCS / "site_hooks.py"))["relinked"]
    assert relinked(text, file, page) == f"[a]({led})"


@needs_mkdocs
def test_code_has_no_links_and_a_file_that_is_gone_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    relinked = runpy.run_path(str(DOCS / "site_hooks.py"))["relinked"]
    code = "```python\nmade[0](../first)\n```\n"
    assert relinked(code, "docs/x.md", "docs/x.md") == code
    assert not caplog.messages
    relinked("[a](../no_such_file.py)", "docs/x.md", "docs/x.md")
    assert caplog.messages == ["docs/x.md links to ../no_such_file.py, and there is no such file"]


@needs_mkdocs
def test_docstrings_lose_what_only_sphinx_reads() -> None:
    as_markdown = runpy.run_path(str(DOCS / "site_docstrings.py"))["as_markdown"]
    assert as_markdown("As :func:`~ctgpu.build`, of a :class:`Spec`.") == (
        "As `ctgpu.build`, of a `Spec`."
    )
    assert (
        as_markdown("One of these::\n\n    a\n::\n\n    b") == "One of these:\n\n    a\n\n\n    b"
    )


@pytest.mark.slow
@needs_mkdocs
def test_the_site_builds_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert (built.returncode, built.stdout) == (0, ""), built.stderr
    site = tmp_path / "site"
    pages = {
        str(path.relative_to(site)): path.read_text(encoding="utf-8")
        for path in site.rglob("*.html")
    }
    asks = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//")
    assert [name for name, page in pages.items() if asks.search(page)] == []

    reference = pages["api.html"]
    in_words = set(re.findall(r"<code>(ctgpu\.[\w.]+)</code>", reference))
    anchors = set(re.findall(r'id="(ctgpu\.[\w.]+)"', reference))
    assert public_names() - anchors - in_words == {"ctgpu.CtgpuError"}
    # What only a running function knows: the options of a build.
    (options,) = re.findall(r'id="ctgpu\.build".*?id="ctgpu\.BuildReport"', reference, re.DOTALL)
    assert "memory_limit_bytes" in options
    assert "Spool downloads there" in options
    assert not re.search(r":(?:class|func|meth|mod):|function \w+ at 0x", reference)

    assert "ctgpu relabel [OPTIONS] DIR" in pages["commands.html"]
    assert "Keep a Changelog" in pages["changelog.html"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of five samples with labels."""
    root = tmp_path_factory.mktemp("small")
    lay_out_ct_rate(root / "source", {study: chest((60, 56, 40), 1) for study in study_ids(5)})
    ctgpu.build(root / "shards", source=root / "source", spec=SPEC, device="cpu")
    return root / "shards"


def train(shards: Path, where: Path, *more: str) -> str:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(shards), *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=where,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_training_script_trains_and_goes_on(shards: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    lines = train(shards, tmp_path, "--epochs", "1").splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == ["epoch 0 step 1/2 loss"]
    assert np.isfinite(float(lines[0].split()[-1]))
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    lines = train(shards, tmp_path, "--epochs", "2").splitlines()
    assert [line.split(" step")[0] for line in lines] == ["epoch 1"]
    second = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert second["loader"] != first["loader"]
    for name, before in first["model"].items():
        assert not torch.equal(second["model"][name], before), name


@pytest.mark.slow
def test_the_page_on_building_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = lay_out_ct_rate(tmp_path / "laid", {"a": chest((20, 18, 12))}, tables=())
    (tmp_path / "scans").mkdir()
    made["a"].rename(tmp_path / "scans/a.nii.gz")
    (tmp_path / "scans/b.nii.gz").write_bytes(b"no volume")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("building.md")
    exec(code, {})
    summary, failure = capsys.readouterr().out.splitlines()
    assert summary == "1 sample written, 1 failed"
    assert failure.startswith("b decode ")


@pytest.mark.slow
def test_predictions_lie_on_the_series_that_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydicom")
    affine = np.diag([-6.0, -6.0, 8.0, 1.0])
    write_series(tmp_path / "pacs/1", chest((60, 56, 40)).voxels.astype(np.int16), affine)
    ctgpu.build(tmp_path / "shards/clinic", source=tmp_path / "pacs", spec=SPEC, device="cpu")
    monkeypatch.chdir(tmp_path)
    predict, series, _ = blocks("hospital.md")
    found: dict[str, Any] = {}
    exec(predict, found)
    (study_id,) = found["dataset"].study_ids
    image = nibabel.load(tmp_path / f"{study_id}.nii.gz")
    assert image.shape == (60, 56, 40)
    np.testing.assert_allclose(np.abs(np.diag(image.affine)), [6, 6, 8, 1])
    assert 0 < np.asarray(image.dataobj).mean() < 1
    exec(series, {})
    key, uid = capsys.readouterr().out.split()
    assert key == study_id
    assert re.fullmatch(r"[0-9.]+", uid)


@pytest.mark.slow
def test_the_first_batch_of_the_newcomer_comes(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/mine").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("start.md")
    exec(code, {})
    shown = capsys.readouterr().out
    assert shown.count("torch.Size([2, 1, 32, 32, 32])") == 2
    assert all(study in shown for study in study_ids(5))
