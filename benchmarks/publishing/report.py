"""Writes what documents say about performance, and its pictures, from ``benchmarks/results/``.

``python benchmarks/report.py`` rewrites ``docs/performance.md`` and sections of the README and of
``docs/online.md``; a test fails where they and the results differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.asking import REAL_CT_ORIGIN, RESULTS
from benchmarks.harness.machine import REPOSITORY
from benchmarks.publishing import bars
from benchmarks.publishing.tables import rendered

README = REPOSITORY / "README.md"
ONLINE = REPOSITORY / "docs" / "online.md"
PAGE = REPOSITORY / "docs" / "performance.md"
BEGIN = "<!-- performance: made by `python benchmarks/report.py` -->\n"
END = "<!-- /performance -->\n"

#: Documents with a section of figures, and its template.
SECTIONS = {README: "readme", ONLINE: "online"}
#: Pictures in `docs/performance/`, and the results that they show.
PICTURES = {
    "stages.png": "build",
    "roofline.png": "preprocess",
    "loading.png": "loading",
    "distribute.png": "distribute",
}

#: What the documents are made of, and of what else where it was measured.
NAMES = ("build", "preprocess", "loading", "distribute", "reliability", "project")
WHERE_MEASURED = (
    *("build_dicom", "codec", "gpu", "online"),
    *("online_beside_build", "preprocess_merlin"),
)

Result = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite them, and draw their pictures."""
    results = load_all(RESULTS)
    for document in SECTIONS:
        text = document.read_text(encoding="utf-8")
        document.write_text(with_section(text, results, document), encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    for picture, name in PICTURES.items():
        bars.draw(results[name], PAGE.with_suffix("") / picture)
    return 0


def load_all(folder: Path) -> dict[str, Result]:
    """Every result that the documents need, and those of :data:`WHERE_MEASURED` that are there."""
    results = {}
    for name in (*NAMES, *WHERE_MEASURED):
        path = folder / f"{name}.json"
        if path.is_file():
            results[name] = json.loads(path.read_text(encoding="utf-8"))
        elif name in NAMES:
            script = "project" if name == "project" else f"run_{name}"
            raise SystemExit(f"{name}.json is not in {folder.name}: run benchmarks/{script}.py")
    return results


def with_section(text: str, results: Mapping[str, Result], document: Path = README) -> str:
    """A document's text with the section that the results give."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + section(results, document) + END + after


def section(results: Mapping[str, Result], document: Path = README) -> str:
    """What stands in it."""
    return rendered(SECTIONS[document], results)


def page(results: Mapping[str, Result]) -> str:
    """``docs/performance.md``."""
    return rendered("performance", results, origin=REAL_CT_ORIGIN)
