"""The site of docs/ builds, with every page and public name in it; and what its pages show."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ctgpu
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.browser import PATIENCE_MS, started_browser
from support.dicom_series import write_series
from support.pages import python_blocks
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
    return python_blocks((DOCS / page).read_text(encoding="utf-8"))


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
def test_cells_are_told_to_be_short_or_long_and_pictures_open() -> None:
    laid_out = runpy.run_path(str(DOCS / "site_hooks.py"))["laid_out"]
    words = "word " * 10
    assert laid_out(f"<td>2.99 samples/s</td><td>{words}x</td><td>{'word ' * 6}</td>") == (
        f'<td class="short">2.99 samples/s</td><td class="long">{words}x</td><td>{"word " * 6}</td>'
    )
    # What is read counts, not what it is marked up with.
    link = f'<a href="{words * 9}.html">&gt; 3</a>'
    assert laid_out(f'<td style="text-align: right;">{link}</td>') == (
        f'<td class="short" style="text-align: right;">{link}</td>'
    )
    option, block = "<code>--memory-limit</code>", "<pre><span></span><code>a\nb</code></pre>"
    assert laid_out(option + block) == option.replace("<code", '<code class="short"') + block
    picture = '<img alt="A chest" src="axes.png" />'
    assert laid_out(f"<p>{picture}</p>") == f'<p><a href="axes.png">{picture}</a></p>'
    linked = f'<a href="x.html">{picture}</a>'
    assert laid_out(linked) == linked


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
@pytest.mark.parametrize(
    ("text", "nav", "told"),
    [
        (
            "[a](gone.md) [b](other.md#gone) ![c](gone.png) [d][ctgpu.gone]",
            ["index.md", "nowhere.md"],
            [
                "a link 'gone.md', but the target is not found",
                "a link 'other.md#gone', but the doc 'other.md' does not contain an anchor",
                "a link 'gone.png', but the target is not found",
                "Could not find cross-reference target 'ctgpu.gone'",
                "A reference to 'nowhere.md' is included in the 'nav' configuration, which is not",
                'not included in the "nav" configuration:\n  - other.md',
            ],
        ),
        ("::: ctgpu.gone", ["index.md", "other.md"], ["ctgpu.gone could not be found"]),
    ],
    ids=["links", "reference"],
)
def test_what_leads_nowhere_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, nav: list[str], told: list[str]
) -> None:
    """By the settings of the site, on two pages of their own: each is a warning or worse."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# One\n\n{text}\n")
    (tmp_path / "docs/other.md").write_text("# Other\n\n## Part\n")
    own: dict[str, Any] = {"hooks": [], "extra_css": [], "watch": []}
    config = load_config(
        str(REPOSITORY / "mkdocs.yml"),
        docs_dir=str(tmp_path / "docs"),
        site_dir=str(tmp_path / "site"),
        nav=nav,
        **own,
    )
    with pytest.raises(MkDocsException):
        build(config)
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    for words in told:
        assert any(words in message for message in warned), (words, warned)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built as ``make docs`` builds it: without a word, or not at all."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert (built.returncode, built.stdout) == (0, ""), built.stderr
    return folder


@pytest.mark.slow
@needs_mkdocs
def test_its_pages_ask_no_other_host(site: Path) -> None:
    asks = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert [str(page) for page in pages if asks.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
@needs_mkdocs
def test_its_reference_has_every_public_name(site: Path) -> None:
    reference = (site / "api.html").read_text(encoding="utf-8")
    in_words = set(re.findall(r"<code[^>]*>(ctgpu\.[\w.]+)</code>", reference))
    anchors = set(re.findall(r'id="(ctgpu\.[\w.]+)"', reference))
    assert public_names() - anchors - in_words == {"ctgpu.CtgpuError"}
    # What only a running function knows: the options of a build.
    (options,) = re.findall(r'id="ctgpu\.build".*?id="ctgpu\.BuildReport"', reference, re.DOTALL)
    assert "memory_limit_bytes" in options
    assert "Spool downloads there" in options
    assert not re.search(r":(?:class|func|meth|mod):|function \w+ at 0x", reference)


@pytest.mark.slow
@needs_mkdocs
def test_it_has_pages_that_docs_has_not(site: Path) -> None:
    assert "ctgpu relabel [OPTIONS] DIR" in (site / "commands.html").read_text(encoding="utf-8")
    assert "Keep a Changelog" in (site / "changelog.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started_browser() as opened:
        yield opened


@pytest.mark.slow
@needs_mkdocs
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_its_pages_fit_a_desktop_and_a_phone(
    site: Path, browser: Any, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "how", "performance", "format"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        drawn = "all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth > 0)))"
        assert all(page.eval_on_selector_all(".md-content img", drawn)), name
        # Figures beside their units, and options in one piece.
        lines = "all => all.map(e => new Set([...e.getClientRects()].map(r => r.top)).size)"
        whole = page.eval_on_selector_all("code.short, td.short:not(:has(br))", lines)
        assert set(whole) <= {1}, name
    assert said == []
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:"))] == []
    wraps = "all => all.map(e => [getComputedStyle(e).overflowX, e.scrollWidth > e.clientWidth])"
    scrolling = page.eval_on_selector_all(".md-typeset__scrollwrap", wraps)
    assert {overflow for overflow, _ in scrolling} == {"auto"}
    assert any(is_wider for _, is_wider in scrolling) or width > 390
    context.close()


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
    assert summary == "written: 1 failed: 1"
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
