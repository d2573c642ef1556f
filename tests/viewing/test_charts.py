"""Counts and distributions as bars."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ctgpu.viewing.charts import (
    MOST_ROWS,
    Bar,
    bars,
    distribution,
    even_edges,
    histogram,
    number,
    shortened,
)


def drawn(html: str) -> list[tuple[float, int]]:
    """Height and count of each bar of a histogram."""
    found = re.findall(r'height="([\d.]+)"><title>[^<]*: ([\d,]+)</title>', html)
    return [(float(height), int(count.replace(",", ""))) for height, count in found]


def test_a_row_says_its_count_and_share() -> None:
    html = bars([Bar("a<b", 3, "note"), Bar("none", 0)], 4)
    assert "a&lt;b" in html
    assert re.findall(r'class="number">([^<]*)<', html) == ["3", "0"]
    assert re.findall(r'class="number quiet">([^<]*)<', html) == ["75.0%", "0.0%"]
    assert re.findall(r'<rect width="([\d.]+)"', html) == ["75.00", "0.00"]
    assert html.count("note") == 1


def test_of_nothing_there_is_no_share() -> None:
    html = bars([Bar("a", 0)], 0)
    assert "–" in html
    assert "%" not in html


def test_rows_that_are_too_many_are_counted() -> None:
    html = bars([Bar(f"row {n}", n) for n in range(MOST_ROWS + 7)], 10)
    assert html.count("<tr>") == MOST_ROWS
    assert "… and 7 more." in html


def test_few_values_are_shown_one_by_one_and_those_that_look_alike_are_one() -> None:
    html = distribution("Spacing", np.array([0.75, 0.75, 0.7500001, 1.5, np.nan]), "mm")
    names = re.findall(r'<th scope="row">([^<]*)<', html)
    assert names == ["0.75 mm", "1.5 mm"]
    assert re.findall(r'class="number">([^<]*)<', html) == ["3", "1"]
    assert "0.75 to 1.5 mm, median 0.75; 1 not known" in html
    assert "Nothing is known" in distribution("Spacing", np.array([np.nan]), "mm")


def test_one_value_has_no_range() -> None:
    html = distribution("Spacing", np.array([3.0, 3.0, np.nan]), "mm")
    assert "median" not in html
    assert "<figcaption>1 not known</figcaption>" in html
    assert "figcaption" not in distribution("Spacing", np.array([3.0]), "mm")


@pytest.mark.parametrize("bins", [4, 33, 63])
def test_a_scale_has_its_unit_and_is_not_cut_at_its_ends(bins: int) -> None:
    html = histogram(np.linspace(-1000, 1000, bins + 1), np.ones(bins, np.int64), "HU")
    ticks = re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="(\w+)">([^<]*)</text>', html)
    assert [text.endswith(" HU") for *_, text in ticks] == [False] * (len(ticks) - 1) + [True]
    for place, anchor, _ in ticks:
        shown = {"start": float(place) < 32, "middle": True, "end": float(place) >= 288}
        assert shown[anchor]
        assert anchor != "middle" or 32 <= float(place) < 288


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1, 7e5])
def test_every_value_is_in_a_histogram_once(scale: float) -> None:
    values = np.linspace(-3, 5, 1001) * scale
    html = distribution("x", values, "")
    assert sum(count for _, count in drawn(html)) == 1001
    assert "nan" not in html


def test_edges_are_even_and_round_and_hold_all() -> None:
    for lowest, highest in ((0.1, 0.7), (3, 612), (-1000, 3071), (0.55, 0.98)):
        edges = even_edges(lowest, highest, 32)
        assert 8 <= len(edges) <= 34
        assert edges[0] <= lowest * (1 + 1e-9 if lowest > 0 else 1 - 1e-9)
        assert edges[-1] >= highest * (1 - 1e-9)
        assert np.allclose(np.diff(edges), edges[1] - edges[0])
    assert even_edges(3, 3, 32).tolist() == [2.5, 3.5]


def test_bars_are_as_high_as_counts_or_their_logarithms() -> None:
    edges, counts = np.arange(4.0), np.array([1, 0, 1000])
    linear, logarithmic = (
        drawn(histogram(edges, counts, "HU", logarithmic=way)) for way in (False, True)
    )
    assert [count for _, count in linear] == [1, 1000]
    assert linear[0][0] / linear[1][0] == pytest.approx(1 / 1000, abs=1e-3)
    wanted = np.log(2) / np.log(1001)
    assert logarithmic[0][0] / logarithmic[1][0] == pytest.approx(wanted, abs=1e-3)


def test_an_empty_histogram_is_drawn() -> None:
    assert drawn(histogram(np.arange(3.0), np.zeros(2, np.int64), "")) == []


def test_words_and_numbers_are_short() -> None:
    assert [number(n) for n in (0.70312, 512, 12345.6, -1000)] == [
        "0.7031",
        "512",
        "12,346",
        "-1,000",
    ]
    assert shortened("x" * 100) == "x" * 79 + "…"
    assert shortened("x" * 80) == "x" * 80
