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
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.harness.machine import machine_line
from benchmarks.harness.measuring import (
    Facts,
    in_words,
    is_peers,
    measured,
    measured_leaves,
    median_in_words,
    more_is_better,
)

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
    "errorbar.capsize": 2,
    "xtick.color": INK,
}
# Where what was measured spreads wider than this, an axis is logarithmic.
_WIDE = 30.0
_LONGEST_LABEL = 46


class Bar(NamedTuple):
    """A row: what it is called, its quantity, and what is written beside it if not the median."""

    label: str
    quantity: Facts
    text: str = ""
    colour: str = OURS


class Panel(NamedTuple):
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
    """The picture: a panel for each table, and below them what was measured on what."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    title, tables = PICTURES.get(result["benchmark"], ("Benchmark: {benchmark}", of_leaves))
    panels = list(tables(result))
    measured_on = machine_line(result["machine"])
    quantities = [bar.quantity for panel in panels for bar in panel.bars]
    if any(quantity["min"] < quantity["max"] for quantity in quantities):
        measured_on += "; medians, and slowest and fastest run"
    facts = [*textwrap.wrap(str(result.get("data", "")), 125), *textwrap.wrap(measured_on, 125)]
    rows_in = [0.3 * len(panel.bars) + 0.6 for panel in panels] or [0.6]
    height_in = sum(rows_in) + 0.25 * len(rows_in) + 0.19 * len(facts) + 0.5
    layout = ConstrainedLayoutEngine(h_pad=0.1)
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout=layout)
    figure.suptitle(title.format(**result), x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel("\n".join(facts), x=0.012, ha="left", fontsize=9, color=INK)
    axes = figure.subplots(len(rows_in), 1, squeeze=False, height_ratios=rows_in)[:, 0]
    if not panels:
        axes[0].set_axis_off()
        axes[0].text(0, 0.5, "Nothing in this result was measured.")
    for panel, place in zip(panels, axes, strict=False):
        _draw_panel(panel, place)
    return figure


def _draw_panel(panel: Panel, axes: Axes) -> None:
    """Horizontal bars from the first at the top, the spread of the runs, and each one's text."""
    bars = panel.bars
    values, low, high = (
        np.array([bar.quantity[end] for bar in bars], float) for end in ("median", "min", "max")
    )
    largest = high.max()
    smallest = min(low[low > 0], default=largest)
    axes.barh(
        range(len(bars)),
        values,
        xerr=(values - low, high - values) if (low < high).any() else None,
        color=[bar.colour for bar in bars],
        height=0.66,
        error_kw={"elinewidth": 1, "ecolor": INK},
    )
    texts = [bar.text or median_in_words(bar.quantity) for bar in bars]
    style: Any = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    for row, (bar, text) in enumerate(zip(bars, texts, strict=True)):
        place, ink = (max(high[row], smallest), row), BAD if bar.colour == BAD else "black"
        axes.annotate(text, place, (5, 0), color=ink, **style)
    # The end of a long label tells it apart.
    shown = [b.label if len(b.label) <= _LONGEST_LABEL else f"…{b.label[-45:]}" for b in bars]
    axes.set_yticks(range(len(bars)), shown)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    # Texts stand beside the bars' ends, the longest of them over some hundredths of the width.
    room = 0.012 * max(map(len, texts))
    is_log = largest > _WIDE * smallest
    if is_log:
        axes.set_xscale("log")
        decades = math.log10(largest / smallest) + 1
        axes.set_xlim(smallest / 2, largest * 10 ** (decades * room / (1 - room)))
    else:
        axes.set_xlim(0, largest / (1 - room) or 1)
    axes.xaxis.set_major_formatter(
        lambda value, _: in_words(value, "bytes") if panel.unit == "bytes" else f"{value:,g}"
    )
    axes.set_xlabel(f"{panel.unit} (log scale)" if is_log else panel.unit)
    axes.set_title(panel.title)


# ---- what is drawn ------------------------------------------------------------------------------


def rates(
    contenders: Mapping[str, Result],
    label: str = "{}",
    rate: Callable[[Result], Facts] = itemgetter("rate"),
) -> list[Bar]:
    """The rate of each."""
    return [
        Bar(label.format(name), rate(of), colour=OURS if name.startswith("ctgpu") else OTHERS)
        for name, of in contenders.items()
    ]


def _percent(label: str, share: float, text: str = "") -> Bar:
    return Bar(label, measured([100 * share], "%"), text)


def _build(result: Result) -> Iterator[Panel]:
    for name, facts in result["formats"].items():
        yield Panel(f"{name}: the whole job", "samples/s", rates(facts["contenders"]))
        stages = []
        for stage, of in facts["stages"].items():
            text = f"{of['busy_share']:.0%} busy" + ": bottleneck" * (stage == facts["bottleneck"])
            stages.append(_percent(f"{stage} × {of['threads']}", of["busy_share"], text))
        yield Panel(f"{name}: ctgpu's stages, and their threads", "% of the time busy", stages)


def _preprocess(result: Result) -> Iterator[Panel]:
    def moved(of: Result) -> Facts:
        return measured([result["bytes_moved"] / 1e9 / s for s in of["time"]["runs"]], "GB/s")

    bars = rates(result["contenders"], rate=moved)
    yield Panel(
        "floor: one read and one streaming write; memcpy: as many bytes",
        "GB/s, of the source read once and the output written once",
        sorted(bars, key=lambda bar: float(bar.quantity["median"])),
    )


def _gpu(result: Result) -> Iterator[Panel]:
    kernel, inflate = result["kernel"], result["inflate"]["threads"]
    title = f"kernel; the device's copy makes {kernel['copy']['gb_per_s']:.0f} GB/s"
    cases = [_percent(name, of["share_of_copy"]) for name, of in kernel["cases"].items()]
    yield Panel(title, "% of it", cases)
    rows = [Bar(threads, of["rate"]) for threads, of in inflate.items()]
    yield Panel("from .nii.gz in memory, by threads that inflate", "samples/s", rows)


def _loading(result: Result) -> Iterator[Panel]:
    warm = rates(result["warm"]["contenders"])
    yield Panel("readers in one process, warm files", "samples/s", warm)
    by_count = [
        bar
        for count, facts in result["threads"].items()
        for bar in rates(facts["contenders"], f"{{}} × {count}")
    ]
    by_count.sort(key=lambda bar: bar.label.rpartition(" × ")[0])
    yield Panel(f"by threads or workers, on {result['cores']} cores", "samples/s", by_count)


def _distribute(result: Result) -> Iterator[Panel]:
    bars = []
    for count, of in result["scaling"].items():
        share, rate = of["share_of_ideal"], of["rate"]
        text = f"{median_in_words(rate)}, {share:.0%} of {of['shards']} shards' ideal"
        bars.append(Bar(f"{count} workers", rate, text))
    yield Panel(f"one-sample shards, on {result['cores']} cores", "shards/s", bars)


def _reliability(result: Result) -> Iterator[Panel]:
    bars = []
    for of in result["verdict"].values():
        text = f"{of['tried']:,} tried, {of['wrong']} {of['wrong_means']}"
        text = text if of["tried"] else "not tried on this machine"
        colour = BAD if of["wrong"] else OURS
        bars.append(Bar(of["tried_means"], measured([of["tried"]], ""), text, colour))
    yield Panel("red: something went wrong", "times tried", bars)


def of_leaves(result: Result) -> Iterator[Panel]:
    """Everything that was measured, by unit."""
    by_unit: dict[str, list[Bar]] = {}
    for path, quantity in measured_leaves(dict(result)):
        unit = quantity["unit"]
        name = " / ".join(part for part in path if part != "contenders")
        # What was counted has runs alone.
        bar = Bar(name, measured(quantity["runs"], unit), colour=OTHERS if is_peers(path) else OURS)
        by_unit.setdefault(unit, []).append(bar)
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
    "reliability": ("What was left of builds that were hurt", _reliability),
}
