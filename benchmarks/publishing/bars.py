"""Pictures of results, all of them bars: ``python benchmarks/plots.py RESULT.json OUT.png``.

What a result is drawn as stands in :data:`PICTURES`, as tables of bars; one that is not there is
drawn as all that was measured.  Needs matplotlib (extra ``bench``).
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.machine import machine_line
from benchmarks.harness.measuring import (
    in_words,
    is_measured,
    is_peers,
    measured,
    measured_leaves,
    more_is_better,
)
from benchmarks.publishing.tables import named, said

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]

OURS, OTHERS, BAD, INK = "#1f6f8b", "#a9b4bb", "#b5402f", "#50575b"
_WIDTH_IN = 9.0
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": INK,
}
# Where what was measured spreads wider than this, an axis is logarithmic.
_WIDE = 30.0
_LONGEST_LABEL = 46


@dataclass(frozen=True)
class Bar:
    """A row: what it is called, its value and what is written beside it, slowest to fastest run."""

    label: str
    value: float
    text: str
    colour: str
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """A table of bars."""

    title: str
    unit: str
    bars: Sequence[Bar]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a result that was written before."""
    parser = argparse.ArgumentParser(description="Draw a benchmark's result.")
    parser.add_argument("result", type=Path, help="JSON that a benchmark wrote")
    parser.add_argument("picture", type=Path, help="PNG to write")
    options = parser.parse_args(arguments)
    draw(json.loads(options.result.read_text(encoding="utf-8")), options.picture)
    return 0


def draw(result: Result, path: Path) -> None:
    """Draw a result into a PNG; its folder is made."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(
            "drawing needs matplotlib, which is not installed: pip install '.[bench]'"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure_of(result).savefig(path, format="png", dpi=130)


def figure_of(result: Result) -> Figure:
    """The picture: a panel for each table, headed by what was measured on what."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    title, tables = PICTURES.get(result["benchmark"], ("Benchmark: {benchmark}", of_leaves))
    panels = list(tables(result))
    about = str(result.get("data", ""))
    spread = any(bar.low < bar.high for panel in panels for bar in panel.bars)
    measured_on = machine_line(result["machine"])
    measured_on += "; medians, and slowest and fastest run" if spread else ""
    facts = [line for text in (about, measured_on) for line in textwrap.wrap(text, 125)]
    head_in = 0.42 + 0.19 * len(facts)
    rows_in = [0.3 * len(panel.bars) + 0.6 for panel in panels] or [0.6]
    height_in = head_in + sum(rows_in) + 0.25 * len(rows_in)
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - head_in / height_in), h_pad=0.1)
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout=layout)
    heading = title.format(**result)
    figure.text(0.012, 1 - 0.1 / height_in, heading, fontsize=13, fontweight="bold", va="top")
    below: Any = {"fontsize": 9, "color": INK, "va": "top", "linespacing": 1.25}
    figure.text(0.012, 1 - 0.38 / height_in, "\n".join(facts), **below)
    axes = figure.subplots(len(rows_in), 1, squeeze=False, height_ratios=rows_in)[:, 0]
    if not panels:
        axes[0].set_axis_off()
        axes[0].text(0, 0.5, "Nothing in this result was measured.")
    for panel, place in zip(panels, axes, strict=False):
        _draw_panel(panel, place)
    return figure


def _draw_panel(panel: Panel, axes: Axes) -> None:
    """Horizontal bars from the first at the top, the spread of the runs, and each one's text."""
    bars, rows = panel.bars, range(len(panel.bars))
    largest = max(bar.high for bar in bars)
    smallest = min((bar.low for bar in bars if bar.low > 0), default=largest)
    spread = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
    axes.barh(
        rows,
        [bar.value for bar in bars],
        xerr=spread if any(map(any, spread)) else None,
        color=[bar.colour for bar in bars],
        height=0.66,
        error_kw={"elinewidth": 1, "capsize": 2, "ecolor": INK},
    )
    for row, bar in zip(rows, bars, strict=True):
        axes.annotate(
            bar.text,
            (max(bar.high, smallest), row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=BAD if bar.colour == BAD else "black",
        )
    # The end of a long label tells it apart.
    shown = [b.label if len(b.label) <= _LONGEST_LABEL else f"…{b.label[-45:]}" for b in bars]
    axes.set_yticks(rows, shown)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    # Texts stand beside the bars' ends, the longest of them over some hundredths of the width.
    room = 0.012 * max(len(bar.text) for bar in bars)
    is_log = largest > _WIDE * smallest
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.9f}".rstrip("0").rstrip("."))
        decades = math.log10(largest / smallest) + 1
        axes.set_xlim(smallest / 2, largest * 10 ** (decades * room / (1 - room)))
    else:
        axes.set_xlim(0, largest / (1 - room) or 1)
        if panel.unit == "bytes":
            axes.xaxis.set_major_formatter(lambda value, _: in_words(value, "bytes"))
    axes.set_xlabel(f"{panel.unit} (log scale)" if is_log else panel.unit)
    axes.set_title(panel.title)


# ---- what is drawn ------------------------------------------------------------------------------


def rows(
    facts: Iterable[Result],
    value: str,
    text: str = "",
    label: str = "{name}",
    *,
    scale: float = 1.0,
    colour: str = "",
) -> list[Bar]:
    """Bars of one figure of each; texts as the documents' tables have them, at first the figure.

    Without a colour, those whose label begins with ctgpu are ctgpu's own.
    """
    bars = []
    for of in facts:
        name, figure = said(label, **of), of[value]
        if not is_measured(figure):
            figure = dict.fromkeys(("median", "min", "max"), figure)
        elif figure.get("exact"):
            figure = measured(figure["runs"], figure["unit"])
        middle, low, high = (scale * figure[key] for key in ("median", "min", "max"))
        own = colour or (OURS if name.startswith("ctgpu") else OTHERS)
        shown = said(
            text or f"{{{value}}}", **{**of, value: figure if "unit" in figure else middle}
        )
        bars.append(Bar(name, middle, shown, own, low, high))
    return bars


def _build(result: Result) -> Iterator[Panel]:
    for name, facts in result["formats"].items():
        yield Panel(f"{name}: the whole job", "samples/s", rows(named(facts["contenders"]), "rate"))
        marks = {
            stage: ": bottleneck" * (stage == facts["bottleneck"]) for stage in facts["stages"]
        }
        stages = ({"mark": marks[of["name"]], **of} for of in named(facts["stages"]))
        yield Panel(
            f"{name}: ctgpu's stages, and their threads",
            "% of the time busy",
            rows(
                stages,
                "busy_share",
                "{busy_share:.0f}% busy{mark}",
                "{name} × {threads}",
                scale=100,
                colour=OURS,
            ),
        )


def _preprocess(result: Result) -> Iterator[Panel]:
    moved = result["bytes_moved"]
    rates = [
        {"name": name, "rate": measured([moved / run / 1e9 for run in of["time"]["runs"]], "GB/s")}
        for name, of in result["contenders"].items()
    ]
    yield Panel(
        "floor: one read and one streaming write; memcpy: as many bytes",
        "GB/s, of the source read once and the output written once",
        sorted(rows(rates, "rate"), key=lambda bar: bar.value),
    )


def _gpu(result: Result) -> Iterator[Panel]:
    kernel = result["kernel"]
    share: Any = {"text": "{share_of_copy:.1f} %", "scale": 100, "colour": OURS}
    yield Panel(
        f"kernel; the device's copy makes {kernel['copy']['gb_per_s']:.0f} GB/s",
        "% of it",
        rows(named(kernel["cases"]), "share_of_copy", **share),
    )
    threads = rows(named(result["inflate"]["threads"]), "rate", colour=OURS)
    yield Panel("from .nii.gz in memory, by threads that inflate", "samples/s", threads)


def _loading(result: Result) -> Iterator[Panel]:
    warm = rows(named(result["warm"]["contenders"]), "rate")
    yield Panel("readers in one process, warm files", "samples/s", warm)
    by_count = [
        {"name": f"{name} × {count}", **of}
        for count, facts in result["threads"].items()
        for name, of in facts["contenders"].items()
    ]
    by_count.sort(key=lambda of: str(of["name"]).rpartition(" × ")[0])
    title = f"by threads or workers, on {result['cores']} cores"
    yield Panel(title, "samples/s", rows(by_count, "rate"))


def _distribute(result: Result) -> Iterator[Panel]:
    text = "{rate}, {share_of_ideal:.0%} of {shards} shards' ideal"
    bars = rows(named(result["scaling"]), "rate", text, "{name} workers", colour=OURS)
    yield Panel(f"one-sample shards, on {result['cores']} cores", "shards/s", bars)


def _project(result: Result) -> Iterator[Panel]:
    for reading, costs in result["costs"].items():
        facts = (
            {"bound": "at most " * row["upper_bound"], **row}
            for row in result["projections"]
            if row["reading"] == reading
        )
        text = "{bound}{samples_per_s:3}/s, {hours:3} h: {bottleneck}"
        bars = rows(facts, "samples_per_s", text, "{machine[name]}", colour=OURS)
        size = f"{costs['compressed_bytes'] / 1e6:.0f} MB a volume"
        yield Panel(f"{reading}: {size}", "samples/s, projected and not measured", bars)


def _reliability(result: Result) -> Iterator[Panel]:
    bars = []
    for of in result["verdict"].values():
        text = "{tried:,.0f} tried, {wrong} {wrong_means}"
        text = text if of["tried"] else "not tried on this machine"
        colour = BAD if of["wrong"] else OURS
        bars += rows([of], "tried", text, "{tried_means}", colour=colour)
    yield Panel("red: something went wrong", "times tried", bars)


def of_leaves(result: Result) -> Iterator[Panel]:
    """Everything that was measured, by unit."""
    by_unit: dict[str, list[Bar]] = {}
    for path, quantity in measured_leaves(dict(result)):
        name = " / ".join(part for part in path if part != "contenders")
        own = OTHERS if is_peers(path) else OURS
        bars = rows([{"name": name, "of": quantity}], "of", colour=own)
        by_unit.setdefault(quantity["unit"], []).extend(bars)
    for unit, bars in by_unit.items():
        better = "more" if more_is_better(unit) else "less"
        yield Panel(f"{unit}, {better} is better", unit, bars)


#: The heading of a benchmark's picture, and its tables.
PICTURES: dict[str, tuple[str, Callable[[Result], Iterable[Panel]]]] = {
    "build": ("The whole job, from a local Hub to shards", _build),
    "preprocess": ("One volume on one thread: how fast its bytes are moved", _preprocess),
    "gpu": ("The CUDA engine", _gpu),
    "loading": ("Loading preprocessed samples", _loading),
    "distribute": ("Ray: one-sample shards with a simulated device stage", _distribute),
    "project": ("Projected, not measured: {volumes:,} volumes by machine", _project),
    "reliability": ("What was left of builds that were hurt", _reliability),
}
