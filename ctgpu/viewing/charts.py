"""Counts and distributions as bars, with the numbers beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctgpu.printable import counted
from ctgpu.viewing.markup import Html, joined, tag

#: Rows of a list of bars, at most.
MOST_ROWS = 400

_LONGEST_NAME = 80
_WIDTH, _HEIGHT = 320, 90
# So many different values are shown one by one.
_FEW_VALUES = 12
_BINS = 32


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a list: its name, how often it is so, and what else there is to say."""

    name: str
    count: int
    note: str = ""


def shortened(text: object, most: int = _LONGEST_NAME) -> str:
    """Text of at most so many characters."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plural(count: int, noun: str) -> str:
    """So many of something."""
    return counted(count, noun, grouped=True)


def number(value: float) -> str:
    """A number as few digits tell it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def bars(rows: Iterable[Bar], total: int) -> Html:
    """A row for each count: name, bar, number and its share of `total`.

    Parameters
    ----------
    rows : iterable of Bar
        In the order in which they are shown; no more than :data:`MOST_ROWS` are.
    total : int
        What shares are of.
    """
    rows = list(rows)
    has_notes = any(row.note for row in rows)
    lines = [
        tag(
            "tr",
            tag("th", shortened(row.name), scope="row"),
            tag("td", _bar(row.count / total if total else 0), class_="track"),
            tag("td", f"{row.count:,}", class_="number"),
            tag("td", f"{row.count / total:.1%}" if total else "–", class_="number quiet"),
            tag("td", row.note, class_="quiet") if has_notes else None,
        )
        for row in rows[:MOST_ROWS]
    ]
    left_out = len(rows) - len(lines)
    more = tag("p", f"… and {left_out:,} more.", class_="quiet") if left_out else None
    return joined(tag("table", tag("tbody", lines), class_="bars"), more)


def distribution(title: str, values: npt.NDArray[np.number], unit: str) -> Html:
    """How often which value comes: a row for each where they are few, else a histogram.

    Parameters
    ----------
    title : str
        Above it.
    values : numpy.ndarray
        Of any shape; what is not finite is left out, and said.
    unit : str
        Of the values, such as ``"mm"``; empty where they have none.
    """
    flat = np.asarray(values, np.float64).ravel()
    known = flat[np.isfinite(flat)]
    unknown = len(flat) - len(known)
    if not len(known):
        return chart(title, tag("p", "Nothing is known.", class_="quiet"))
    lowest, median, highest = np.quantile(known, (0, 0.5, 1)).tolist()
    spread = f"{number(lowest)} to {number(highest)}{unit and ' '}{unit}, median {number(median)}"
    missing = f"{unknown:,} not known" if unknown else ""
    said = "; ".join(filter(None, [spread if number(lowest) != number(highest) else "", missing]))
    counted: Counter[str] = Counter()  # values that look alike are one
    for value, count in zip(*np.unique(known, return_counts=True), strict=True):
        counted[number(value)] += int(count)
    if len(counted) <= _FEW_VALUES:
        rows = [Bar(f"{value} {unit}".rstrip(), count) for value, count in counted.items()]
        return chart(title, bars(rows, len(flat)), said)
    edges = even_edges(lowest, highest, _BINS)
    within = np.clip(known, edges[0], edges[-1])  # as far as rounding took them out
    return chart(title, histogram(edges, np.histogram(within, edges)[0], unit), said)


def even_edges(lowest: float, highest: float, bins: int) -> npt.NDArray[np.float64]:
    """Edges of about so many equal bins, at round numbers around `lowest` and `highest`."""
    span = highest - lowest
    if not span > 0:
        return np.array([lowest - 0.5, lowest + 0.5])
    step = 10.0 ** math.floor(math.log10(span / bins))
    step *= next(round_ for round_ in (1, 2, 2.5, 5, 10, 20) if span < round_ * step * bins)
    first, last = math.floor(lowest / step), math.ceil(highest / step)
    return np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * step


def histogram(
    edges: npt.NDArray[np.float64],
    counts: npt.NDArray[np.integer],
    unit: str,
    *,
    logarithmic: bool = False,
) -> Html:
    """Bars over a scale.

    Parameters
    ----------
    edges : numpy.ndarray
        Shape (bins + 1,), ascending and evenly spaced.
    counts : numpy.ndarray
        Shape (bins,).
    unit : str
        Of the scale.
    logarithmic : bool
        Draw the bars as high as the logarithms of their counts.
    """
    heights = np.log1p(counts) if logarithmic else counts.astype(np.float64)
    scale = (_HEIGHT - 4) / max(float(heights.max()), 1e-9)
    width = _WIDTH / len(counts)
    drawn = [
        tag(
            "rect",
            tag("title", f"{number(low)} to {number(high)}{unit and ' '}{unit}: {count:,}"),
            x=f"{place * width:.2f}",
            y=f"{_HEIGHT - height * scale:.2f}",
            width=f"{max(width - 1, 0.5):.2f}",
            height=f"{height * scale:.2f}",
        )
        for place, (low, high, count, height) in enumerate(
            zip(edges[:-1], edges[1:], counts.tolist(), heights.tolist(), strict=True)
        )
        if count
    ]
    ticks = edges[:: max(1, math.ceil((len(edges) - 1) / 4))]
    places = (ticks - edges[0]) / (edges[-1] - edges[0])
    words = [
        tag(
            "text",
            f"{number(tick)} {unit}".rstrip() if tick == ticks[-1] else number(tick),
            x=f"{place * _WIDTH:.2f}",
            y=_HEIGHT + 15,
            # What stands at an edge is not cut there.
            text_anchor="start" if place < 0.1 else "middle" if place < 0.9 else "end",
        )
        for tick, place in zip(ticks.tolist(), places.tolist(), strict=True)
    ]
    line = tag("line", x1=0, x2=_WIDTH, y1=_HEIGHT, y2=_HEIGHT)
    return tag(
        "svg",
        *(drawn, line, words),
        class_="histogram",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT + 20}",
        role="img",
        aria_label=f"histogram of {plural(int(counts.sum()), 'value')}",
    )


def chart(title: str, drawn: Html, said: str = "") -> Html:
    """A chart below its title, and what it says in words below that."""
    words = tag("figcaption", said) if said else None
    return tag("figure", tag("h3", title), drawn, words, class_="chart")


def _bar(share: float) -> Html:
    drawn = tag("rect", width=f"{100 * min(share, 1):.2f}", height=8)
    return tag("svg", drawn, viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")
