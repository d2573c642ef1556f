"""Pictures of results: ``python benchmarks/plots.py RESULT.json OUT.png``.

Each benchmark has a function in :data:`DRAWERS`; a result without one is drawn as bars of all that
was measured.  Needs matplotlib (extra ``bench``).
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import in_words, is_peers, machine_line, measured_leaves, more_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, OTHERS, LIMIT, IDLE, BAD = "#1f6f8b", "#a9b4bb", "#3b3f42", "#e4e8ea", "#b5402f"
# Several others in one picture.
_SHADES = ("#a9b4bb", "#c58b2a", "#7a5c8e", "#6b8f5e", "#b5402f")

_WIDTH_IN = 9.0
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a9399",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": "#50575b",
    "legend.frameon": False,
}
# Where what was measured spreads wider than this, an axis is logarithmic.
_WIDE = 30.0
_LONGEST_LABEL = 46


def main() -> None:
    """Draw a result that was written before."""
    parser = argparse.ArgumentParser(description="Draw a benchmark's result.")
    parser.add_argument("result", type=Path, help="JSON that a benchmark wrote")
    parser.add_argument("picture", type=Path, help="PNG to write")
    options = parser.parse_args()
    draw(json.loads(options.result.read_text(encoding="utf-8")), options.picture)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw a result into a PNG.

    Parameters
    ----------
    result : mapping
        What :func:`publishing.publish` writes.
    path : pathlib.Path
        The file; its folder is made.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(
            "drawing needs matplotlib, which is not installed: pip install '.[bench]'"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure = DRAWERS.get(result["benchmark"], draw_leaves)(result)
        figure.savefig(path, format="png", dpi=130)


def draw_build(result: Mapping[str, Any]) -> Figure:
    """Rates of the contenders, and how busy each stage of ctgpu was, by format."""
    formats = result["formats"]
    figure, panels = _figure(
        result,
        "The whole job, from a local Hub to shards",
        rows=[2.0] * len(formats),
        columns=[1.0, 1.0],
    )
    for (name, facts), (left, right) in zip(formats.items(), panels, strict=True):
        rates = {who: c["rate"] for who, c in facts["contenders"].items()}
        _bars(left, rates, labels=[who.replace(", ", ",\n") for who in rates])
        left.set_title(f"{name}: samples per second")
        _stages(right, facts["stages"], facts["bottleneck"])
        right.set_title(f"{name}: ctgpu's stages")
    panels[0][1].legend(
        *_legend({"busy": OURS, "waiting": IDLE}), loc="upper right", ncols=2, fontsize=9
    )
    return figure


def _stages(axes: Axes, stages: Mapping[str, Any], bottleneck: str) -> None:
    """A stage's threads, busy and waiting, in seconds of one of them."""
    busy = [stage["busy"]["median"] / stage["threads"] for stage in stages.values()]
    spans = [stage["span"]["median"] for stage in stages.values()]
    waiting = [max(0.0, span - work) for span, work in zip(spans, busy, strict=True)]
    places = range(len(stages))
    axes.barh(places, busy, color=OURS, height=0.6)
    axes.barh(places, waiting, left=busy, color=IDLE, height=0.6)
    for place, (span, (name, stage)) in enumerate(zip(spans, stages.items(), strict=True)):
        text = f"{stage['busy_share']:.0%} busy"
        _value(axes, f"{text}: bottleneck" if name == bottleneck else text, span, place)
    labels = [f"{name} × {stage['threads']}" for name, stage in stages.items()]
    _named_rows(axes, labels)
    axes.set_xlim(0, max(spans) * 1.6)
    # Above the first bar, for the legend.
    axes.set_ylim(len(stages) - 0.5, -1.3)
    axes.set_xlabel("seconds of one of its threads, in one run")


def draw_preprocess(result: Mapping[str, Any]) -> Figure:
    """Rate at which each contender moves the bytes that must be moved, below what memory allows."""
    moved = result["bytes_moved"]
    contenders = dict(
        sorted(result["contenders"].items(), key=lambda item: -item[1]["time"]["median"])
    )
    rates = {name: _rate(moved, facts["time"]) for name, facts in contenders.items()}
    limits = [name for name in ("floor", "memcpy") if name in rates]
    figure, ((axes,),) = _figure(
        result,
        f"One volume on one thread: how fast the {moved / 1e6:.0f} MB that must move are moved",
        rows=[0.32 * len(rates) + 0.9],
    )
    colours = [LIMIT if name in limits else _colour(name) for name in rates]
    _bars(axes, rates, colours=colours, log=True)
    for name, style in zip(limits, ("-", "--"), strict=False):
        axes.axvline(rates[name]["median"], color=LIMIT, linewidth=1, linestyle=style, zorder=0)
    axes.set_xlabel(
        "GB/s, of the source read once and the output written once (log scale)\n"
        "floor: one read and one streaming write; memcpy: as many bytes, half read, half written"
    )
    return figure


def draw_gpu(result: Mapping[str, Any]) -> Figure:
    """The kernel's share of the device's copy bandwidth, and how inflating scales with threads."""
    copy, cases = result["kernel"]["copy"], result["kernel"]["cases"]
    threads = result["inflate"]["threads"]
    figure, ((left, right),) = _figure(
        result, "The CUDA engine", rows=[0.34 * len(cases) + 1.0], columns=[1.5, 1.0]
    )
    shares = {
        name: {
            key: 100 * value / copy["gb_per_s"]
            for key, value in _rate(case["bytes_moved"], case["time"]).items()
            if key != "unit"
        }
        | {"unit": "%"}
        for name, case in cases.items()
    }
    _bars(left, shares, colours=[OURS] * len(shares))
    left.axvline(100, color=LIMIT, linewidth=1, linestyle="--")
    left.set_xlim(0, 125)
    left.set_title(f"kernel; 100 % is the device's copy, {copy['gb_per_s']:.0f} GB/s")
    left.set_xlabel("% of the copy's GB/s")
    _curve(right, [(int(n), row["rate"]) for n, row in threads.items()], OURS, "ctgpu")
    right.set_ylim(0, max(row["rate"]["max"] for row in threads.values()) * 1.1)
    right.set_title("from .nii.gz in memory")
    right.set_xlabel("threads that inflate")
    right.set_ylabel("samples/s")
    return figure


def draw_loading(result: Mapping[str, Any]) -> Figure:
    """Samples per second of every reader, and over threads."""
    warm = {name: facts["rate"] for name, facts in result["warm"]["contenders"].items()}
    figure, ((left, right),) = _figure(
        result, "Loading preprocessed samples", rows=[0.3 * len(warm) + 1.0], columns=[1.3, 1.0]
    )
    _bars(left, warm)
    left.set_title("readers in one process, warm files")
    threads = result["threads"]
    names = dict.fromkeys(name for facts in threads.values() for name in facts["contenders"])
    shades = iter(_SHADES)
    for name in names:
        points = [
            (int(count), facts["contenders"][name]["rate"])
            for count, facts in threads.items()
            if name in facts["contenders"]
        ]
        colour = OURS if name.startswith("ctgpu") else next(shades)
        _curve(right, points, colour, name)
    most = max(f["rate"]["max"] for c in threads.values() for f in c["contenders"].values())
    # Room above for the legend.
    right.set_ylim(0, 1.75 * most)
    right.set_title("by threads or workers")
    right.set_xlabel(f"threads or workers, on {result['cores']} cores")
    right.set_ylabel("samples/s")
    right.legend(fontsize=9, loc="upper right")
    return figure


def draw_distribute(result: Mapping[str, Any]) -> Figure:
    """Shards per second over workers, and what was compared."""
    scaling = {int(workers): facts for workers, facts in result["scaling"].items()}
    figure, ((axes,),) = _figure(
        result,
        "Ray: one-sample shards with a simulated device stage",
        rows=[3.2],
        bars="; points: medians, whiskers: slowest and fastest run",
    )
    ideal = [facts["ideal_shards_per_s"] for facts in scaling.values()]
    axes.plot(list(scaling), ideal, color=LIMIT, linewidth=1, linestyle="--", label="no overhead")
    points = [(workers, facts["rate"]) for workers, facts in scaling.items()]
    _curve(axes, points, OURS, "ctgpu on Ray")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for workers, facts in scaling.items():
        axes.annotate(
            f"{facts['share_of_ideal']:.0%} of {facts['shards']} shards' ideal",
            (workers, facts["rate"]["median"]),
            xytext=(8, -12),
            textcoords="offset points",
            fontsize=9,
        )
    # Room for what stands beside and below the points.
    axes.set_xlim(right=3 * max(scaling))
    axes.set_ylim(min(ideal) / 2, 2 * max(ideal))
    axes.set_xlabel(f"workers, on {result['cores']} cores (log scale)")
    axes.set_ylabel("shards/s (log scale)")
    axes.legend(fontsize=9, loc="upper left")
    return figure


def draw_project(result: Mapping[str, Any]) -> Figure:
    """Projected rates by machine and reading of the volumes' size, and what decides each."""
    readings = list(result["costs"])
    machines = list(dict.fromkeys(row["machine"]["name"] for row in result["projections"]))
    figure, panels = _figure(
        result | {"data": f"{result['volumes']:,} volumes, from measured stage times"},
        "Projected, not measured: samples per second by machine",
        rows=[0.3 * len(machines) + 0.6] * len(readings),
        bars="",
    )
    largest = max(row["samples_per_s"] for row in result["projections"])
    smallest = min(row["samples_per_s"] for row in result["projections"])
    for reading, (axes,) in zip(readings, panels, strict=True):
        rows = [row for row in result["projections"] if row["reading"] == reading]
        axes.barh(range(len(rows)), [r["samples_per_s"] for r in rows], color=OURS, height=0.66)
        for place, row in enumerate(rows):
            bound = "at most " if row["upper_bound"] else ""
            text = f"{bound}{row['samples_per_s']:.3g}/s, {row['hours']:.3g} h: {row['bottleneck']}"
            _value(axes, text, row["samples_per_s"], place)
        _named_rows(axes, [row["machine"]["name"] for row in rows])
        _decades(axes)
        axes.set_xlim(smallest / 2, 40 * largest)
        costs = result["costs"][reading]
        axes.set_title(f"{reading}: {costs['compressed_bytes'] / 1e6:.0f} MB a volume")
    panels[-1][0].set_xlabel("samples/s (log scale)")
    return figure


def draw_reliability(result: Mapping[str, Any]) -> Figure:
    """What was tried, how often, and how often it went wrong."""
    verdict = result["verdict"]
    figure, ((axes,),) = _figure(
        result,
        "What was left of builds that were hurt",
        rows=[0.44 * len(verdict) + 0.8],
        bars="",
    )
    tried = [facts["tried"] for facts in verdict.values()]
    wrong = [facts["wrong"] for facts in verdict.values()]
    axes.barh(range(len(verdict)), tried, color=OURS, height=0.6)
    axes.barh(range(len(verdict)), wrong, color=BAD, height=0.6)
    for place, facts in enumerate(verdict.values()):
        text = f"{facts['tried']:,} tried, {facts['wrong']} {facts['wrong_means']}"
        _value(
            axes,
            text if facts["tried"] else "not tried on this machine",
            max(1, facts["tried"]),
            place,
            BAD if facts["wrong"] else "black",
        )
    _named_rows(axes, [facts["tried_means"] for facts in verdict.values()])
    _decades(axes)
    # The texts begin at the end of a bar and need as much room again.
    axes.set_xlim(0.5, 4 * max(tried) ** 2)
    axes.set_xticks([10**n for n in range(math.ceil(math.log10(max(tried))) + 1)])
    axes.minorticks_off()
    axes.set_xlabel("times tried (log scale); red: went wrong")
    return figure


def draw_leaves(result: Mapping[str, Any]) -> Figure:
    """Everything that was measured, as bars by unit."""
    by_unit: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {}
    for path, quantity in measured_leaves(dict(result)):
        by_unit.setdefault(quantity["unit"], {})[path] = quantity
    figure, panels = _figure(
        result,
        f"Benchmark: {result['benchmark']}",
        rows=[0.27 * len(quantities) + 0.6 for quantities in by_unit.values()] or [1.0],
    )
    if not by_unit:
        panels[0][0].set_axis_off()
        panels[0][0].text(0, 0.5, "Nothing in this result was measured.")
    for (unit, quantities), (axes,) in zip(by_unit.items(), panels, strict=False):
        labels = [_shortened(label) for label in _told_apart(list(quantities))]
        _bars(
            axes,
            {" / ".join(path): quantity for path, quantity in quantities.items()},
            labels=labels,
            colours=[OTHERS if is_peers(path) else OURS for path in quantities],
        )
        better = "more" if more_is_better(unit) else "less"
        axes.set_title(f"{unit}, {better} is better", fontsize=10)
    return figure


def _told_apart(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The paths without what all of them begin and end with."""
    head = tail = 0
    shortest = min(map(len, paths))
    while head < shortest - 1 and len({path[head] for path in paths}) == 1:
        head += 1
    while tail < shortest - 1 - head and len({path[-1 - tail] for path in paths}) == 1:
        tail += 1
    return [
        " / ".join(part for part in path[head : len(path) - tail] if part != "contenders")
        for path in paths
    ]


def _shortened(label: str) -> str:
    """The end of a long label, which tells it apart."""
    return label if len(label) <= _LONGEST_LABEL else f"…{label[1 - _LONGEST_LABEL :]}"


def _rate(bytes_moved: int, time: Mapping[str, Any]) -> dict[str, Any]:
    """GB/s of a measured time: the longest time is the lowest rate."""
    return {
        "unit": "GB/s",
        "median": bytes_moved / time["median"] / 1e9,
        "min": bytes_moved / time["max"] / 1e9,
        "max": bytes_moved / time["min"] / 1e9,
    }


def _colour(name: str) -> str:
    return OURS if name.startswith("ctgpu") else OTHERS


def _spread(quantities: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far the slowest and the fastest run lie from the median, as error bars want it."""
    return [
        [q["median"] - q["min"] for q in quantities],
        [q["max"] - q["median"] for q in quantities],
    ]


def _bars(
    axes: Axes,
    quantities: Mapping[str, Mapping[str, Any]],
    *,
    labels: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    log: bool | None = None,
) -> None:
    """Horizontal bars from the first at the top, the spread of the runs, and each one's value."""
    values = list(quantities.values())
    unit, middle = values[0]["unit"], [value["median"] for value in values]
    largest = max(value["max"] for value in values)
    smallest = min((value["min"] for value in values if value["min"] > 0), default=largest)
    if log is None:
        log = largest > _WIDE * smallest
    axes.barh(
        range(len(values)),
        middle,
        xerr=_spread(values),
        color=colours or [_colour(name) for name in quantities],
        height=0.66,
        error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#50575b"},
    )
    for place, value in enumerate(values):
        _value(axes, in_words(value["median"], unit), max(value["max"], smallest), place)
    _named_rows(axes, labels or list(quantities))
    if log and largest > 0:
        _decades(axes)
        decades = math.log10(largest / smallest) + 1
        axes.set_xlim(smallest / 2, largest * 10 ** (0.22 * decades))
    else:
        axes.set_xlim(0, largest * 1.3 or 1)
        if unit == "bytes":
            axes.xaxis.set_major_formatter(lambda value, _: in_words(value, unit))
    axes.set_xlabel(f"{unit} (log scale)" if log else unit)


def _curve(
    axes: Axes, points: Sequence[tuple[int, Mapping[str, Any]]], colour: str, label: str
) -> None:
    """Medians over counts that double, with the spread of the runs."""
    counts, rates = [count for count, _ in points], [rate for _, rate in points]
    axes.errorbar(
        counts,
        [rate["median"] for rate in rates],
        yerr=_spread(rates),
        color=colour,
        marker="o",
        markersize=4,
        capsize=3,
        label=label,
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])


def _value(axes: Axes, text: str, x: float, place: int, colour: str = "black") -> None:
    """A text beside the end of a bar, legible also where a line passes."""
    axes.annotate(
        text,
        (x, place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )


def _decades(axes: Axes) -> None:
    """A logarithmic axis with plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.9f}".rstrip("0").rstrip("."))


def _named_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _legend(colours: Mapping[str, str]) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    return [Patch(color=colour) for colour in colours.values()], list(colours)


def _figure(
    result: Mapping[str, Any],
    title: str,
    *,
    rows: Sequence[float],
    columns: Sequence[float] = (1.0,),
    bars: str = "; bars: medians, whiskers: slowest and fastest run",
) -> tuple[Figure, Any]:
    """A figure with panels of these heights in inches, headed by what was measured on what."""
    from matplotlib.figure import Figure

    facts = [
        line
        for text in (str(result.get("data", "")), machine_line(result["machine"]) + bars)
        for line in textwrap.wrap(text, 125)
    ]
    head_in = 0.42 + 0.19 * len(facts)
    height_in = head_in + sum(rows) + 0.25 * len(rows)
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - head_in / height_in), h_pad=0.1)
    figure.text(0.012, 1 - 0.1 / height_in, title, fontsize=13, fontweight="bold", va="top")
    figure.text(
        0.012,
        1 - 0.38 / height_in,
        "\n".join(facts),
        fontsize=9,
        color="#50575b",
        va="top",
        linespacing=1.25,
    )
    panels = figure.subplots(
        len(rows), len(columns), squeeze=False, height_ratios=rows, width_ratios=columns
    )
    return figure, panels


#: What draws the result of a benchmark, by its name.
DRAWERS: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "build": draw_build,
    "preprocess": draw_preprocess,
    "gpu": draw_gpu,
    "loading": draw_loading,
    "distribute": draw_distribute,
    "project": draw_project,
    "reliability": draw_reliability,
}


if __name__ == "__main__":
    main()
