"""The README's figures are those of the results."""

from __future__ import annotations

import report


def test_the_readmes_performance_section_is_that_of_the_results() -> None:
    readme = report.README.read_text(encoding="utf-8")
    assert report.BEGIN in readme
    assert report.with_section(readme) == readme
