"""What a page says of a data set beside its pictures, a section each."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.filesize import decimal

from ctgpu.arguments import converted
from ctgpu.building.pipeline import StageTime
from ctgpu.shards.ledger import LedgerEntry
from ctgpu.spec import Spec
from ctgpu.spec.words import in_words
from ctgpu.viewing.census import MOST_VALUES, Census
from ctgpu.viewing.charts import (
    Bar,
    bars,
    chart,
    distribution,
    histogram,
    number,
    plural,
    shortened,
)
from ctgpu.viewing.gallery import histogram_edges
from ctgpu.viewing.inventory import Inventory, finished_words
from ctgpu.viewing.markup import Content, Html, tag
from ctgpu.viewing.previews import Preview

_MOST_COLUMNS = 24
_MOST_ROWS = 12
_MOST_KINDS = 20
_MOST_EXAMPLES = 3
_MOST_DAMAGED = 20
_LONGEST = 600
_AXES = ("H", "W", "D")
_MEMBERS = {
    "bin": "volumes",
    "ctz": "volumes, compressed",
    "seg": "masks",
    "segz": "masks, compressed",
    "cls": "labels",
    "txt": "reports",
    "json": "JSON",
}
_MEANINGS = {"hu": "stored as HU", "csv": "table", "spacing": "not stated"}


def section(name: str, title: str, *contents: Content) -> Html:
    """A part of the page that a link can lead to."""
    return tag("section", tag("h2", title), *contents, id=name)


def overview(inventory: Inventory, census: Census) -> Iterator[Html]:
    """What there is, in numbers, and what is missing."""
    card = inventory.card
    planned = "" if card.planned_samples is None else f" of {card.planned_samples:,}"
    shape = " × ".join(map(str, card.spec.stored_shape))
    facts = {
        "samples": f"{len(inventory.entries):,}{planned}",
        "failed": f"{len(inventory.failures):,}",
        "shards": f"{len(inventory.shards):,}",
        "size": decimal(inventory.size_bytes),
        "volume": f"{shape} {card.spec.layout} {card.spec.dtype}",
        "fingerprint": card.fingerprint,
    }
    yield tag("dl", (tag("div", tag("dt", name), tag("dd", fact)) for name, fact in facts.items()))
    for sentence in finished_words(inventory):
        yield tag("p", sentence, class_="notice")
    if census.damaged:
        more = len(census.damaged) - _MOST_DAMAGED
        yield tag(
            "div",
            tag(
                "p",
                f"Damaged: {plural(len(census.damaged), 'sample')}, left out of what follows; "
                "`ctgpu verify` finds all that is.",
            ),
            tag(
                "ul",
                (
                    tag("li", shortened(fault, _LONGEST))
                    for fault in list(census.damaged.values())[:_MOST_DAMAGED]
                ),
                tag("li", f"… and {more:,} more") if more > 0 else None,
            ),
            class_="notice",
        )
    if census.read + len(census.damaged) < census.of:
        yield tag(
            "p",
            f"What the samples say is of {census.read:,} of {census.of:,}, evenly spaced.",
            class_="notice",
        )


def intensities(previews: Sequence[Preview], census: Census, spec: Spec) -> Html:
    """HU of the samples that are shown, and how voxels became HU."""
    counted = [one.hu_counts for one in previews if one.hu_counts is not None]
    drawn: list[Content] = []
    if counted:
        said = (
            f"Voxels of the {plural(len(counted), 'sample')} shown, without padding; the bars are "
            "as high as the logarithms of their counts, the outermost hold what lies beyond."
        )
        edges = histogram_edges(spec)
        whole = histogram(edges, np.sum(counted, 0), "HU", logarithmic=True)
        drawn.append(chart("HU", whole, said))
    drawn.append(_words("How voxels became HU", _meant(census.words["intensity"]), census.read))
    if census.words["finding"]:
        drawn.append(_words("Taken although not like HU", census.words["finding"], census.read))
    return section("hu", "Intensities", tag("div", drawn, class_="charts"))


def geometry(census: Census, spec: Spec) -> Html:
    """Of the scans: spacing, shape, orientation; and what was cropped and padded."""
    drawn: list[Content] = [
        *(
            distribution(f"Spacing along axis {axis}", census.spacing_mm[:, axis], "mm")
            for axis in range(3)
        ),
        *(
            distribution(f"Voxels along axis {axis}", census.shape[:, axis], "")
            for axis in range(3)
        ),
        *(_crop_and_pad(census, spec, axis) for axis in range(3)),
        _words("Orientation", census.words["orientation"], census.read),
    ]
    tilted = census.tilt_degrees[census.tilt_degrees > 0]
    if len(tilted):
        drawn.append(distribution(f"Tilt of the {len(tilted):,} that are tilted", tilted, "°"))
    drawn += [
        _words("Stored as", census.words["dtype"], census.read),
        _words("Where spacing is from", _meant(census.words["spacing"]), census.read),
        _words("Where axes are from", _meant(census.words["affine"]), census.read),
    ]
    said = (
        "Axes 0, 1 and 2 are the file's own; H, W and D those of the volumes made of it"
        f"{'' if spec.crop == 'centre' else ', of the box that was cut out first'}."
    )
    return section(
        "geometry", "Scans", tag("p", said, class_="quiet"), tag("div", drawn, class_="charts")
    )


def _crop_and_pad(census: Census, spec: Spec, axis: int) -> Html:
    size = spec.shape_hwd[axis]
    beyond = census.resized[:, axis] - size

    counted = {"cropped": beyond[beyond > 0], "padded": -beyond[beyond < 0]}
    rows = [Bar(name, len(voxels)) for name, voxels in counted.items()]
    rows.insert(1, Bar("as it is", len(beyond) - sum(map(len, counted.values()))))
    said = "; ".join(
        f"{name} by {number(float(np.median(voxels)))} voxels, the median"
        for name, voxels in counted.items()
        if len(voxels)
    )
    title = f"To {size} voxels along {_AXES[axis]}"
    return chart(title, bars(rows, census.read), f"{said[:1].upper()}{said[1:]}")


def columns(census: Census) -> Html | None:
    """What tables carry of each sample, such as the manufacturer; None where they carry nothing."""
    if not census.columns:
        return None
    drawn: list[Content] = []
    for name, cells in list(census.columns.items())[:_MOST_COLUMNS]:
        drawn.append(_cells(shortened(name), cells, census.read))
    left_out = len(census.columns) - _MOST_COLUMNS
    said = f"… and {plural(left_out, 'more column')}."
    more = tag("p", said, class_="quiet") if left_out > 0 else None
    return section("columns", "Columns", tag("div", drawn, class_="charts"), more)


def _cells(title: str, cells: Counter[str], total: int) -> Html:
    if not cells:
        many = tag("p", f"More than {MOST_VALUES:,} different cells.", class_="quiet")
        return chart(title, many)
    if len(cells) > _MOST_ROWS:
        with contextlib.suppress(ValueError):
            return distribution(title, np.repeat(list(map(float, cells)), list(cells.values())), "")
    return _words(title, cells, total)


def labels(inventory: Inventory, census: Census) -> Html | None:
    """How many samples have which label; None where there are no classes."""
    names = inventory.card.class_names
    if not names:
        return None
    rows = [
        Bar(name, int(positive), f"{int(unknown):,} not known" if unknown else "")
        for name, (_, positive, unknown) in zip(names, census.labels, strict=True)
    ]
    said = f"Samples of {census.read:,} in which a label is positive."
    return section("labels", "Labels", tag("p", said, class_="quiet"), bars(rows, census.read))


def reports(inventory: Inventory) -> Html:
    """How long the reports are, by the records."""
    lengths = np.array([entry.members["txt"].size_bytes for _, entry in inventory.entries])
    there = lengths[lengths > 0]
    without = len(lengths) - len(there)
    said = f"With a report: {plural(len(there), 'sample')}; without: {without:,}."
    drawn = distribution("Length", there, "bytes") if len(there) else None
    charts = tag("div", drawn, class_="charts")
    return section("reports", "Reports", tag("p", said, class_="quiet"), charts)


def failures(inventory: Inventory) -> Html:
    """Which samples failed, by kind, and what to do about it."""
    kinds: dict[tuple[str, str], list[LedgerEntry]] = {}
    for failure in inventory.failures:
        kinds.setdefault((failure.stage, failure.error_class), []).append(failure)
    if not kinds:
        return section("failures", "Failures", tag("p", "No sample failed.", class_="quiet"))
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    shown: list[Content] = []
    for (stage, error_class), failed in ordered[:_MOST_KINDS]:
        left_out = len(failed) - _MOST_EXAMPLES
        shown += [
            tag("h3", f"{len(failed):,} in {shortened(stage)}: {shortened(error_class)}"),
            tag(
                "ul",
                (
                    tag("li", tag("b", shortened(f.key)), f": {shortened(f.message, _LONGEST)}")
                    for f in failed[:_MOST_EXAMPLES]
                ),
                tag("li", f"… and {left_out:,} more") if left_out > 0 else None,
            ),
        ]
    left_out = len(ordered) - _MOST_KINDS
    return section(
        "failures",
        "Failures",
        shown,
        tag("p", f"… and {plural(left_out, 'more kind')}.") if left_out > 0 else None,
        tag(
            "p",
            "Once their cause is mended, re-do just those with the command that began the data set "
            "and --retry-failed; failures.jsonl lists them all.",
        ),
    )


def sizes(inventory: Inventory) -> Html:
    """What takes how much."""
    card, total = inventory.card, inventory.size_bytes
    members = inventory.member_bytes()
    rows = [
        (_MEMBERS.get(extension, extension), decimal(size), f"{size / total:.2%}")
        for extension, size in members.items()
    ]
    rows.append(("headers and padding", *_rest(total, sum(members.values()))))
    samples = len(inventory.entries)
    said = f"{decimal(total)} in {plural(len(inventory.shards), 'shard')}"
    if samples:
        said += f", {decimal(round(total / samples))} a sample"
    if members.get("ctz"):
        held = sum(1 for _, entry in inventory.entries if entry.is_compressed)
        ratio = held * card.spec.size_bytes / members["ctz"]
        said += f"; volumes compressed ({card.compression}) {ratio:.2f} times"
    return section("sizes", "Sizes", tag("p", f"{said}.", class_="quiet"), _table((), rows))


def _rest(total: int, members: int) -> tuple[str, str]:
    rest = total - members
    return decimal(rest), f"{rest / total:.2%}" if total else "–"


def times(inventory: Inventory) -> Html:
    """What made the shards, and where the time of one process went."""
    made: Counter[str] = Counter()
    longest: list[StageTime] = []
    spent, longest_shard = -1.0, ""
    for shard in inventory.shards:
        run = shard.record.run
        engine = run.get("engine")
        made[f"ctgpu {run.get('ctgpu', '?')}: {_engine(engine)}"] += 1
        try:
            stages = converted(run.get("stages", []), list[StageTime])
        except ValueError:
            continue  # what a run records is free
        # Times count from the start of a process: the longest hold those of shards before it.
        if (seconds := sum(stage.busy_s + stage.waiting_s for stage in stages)) > spent:
            spent, longest, longest_shard = seconds, stages, shard.path.name
    table: Content = None
    if longest and spent > 0:
        said = (
            "Seconds summed over the threads of each stage, of the process that made "
            f"{longest_shard}, from its start to that shard's commit."
        )
        rows = [
            (
                *(stage.name, f"{stage.threads}", f"{stage.busy_s:,.1f}"),
                *(f"{stage.waiting_s:,.1f}", f"{stage.utilisation:.0%}"),
            )
            for stage in longest
        ]
        heads = ("stage", "threads", "busy s", "waiting s", "busy")
        table = [tag("p", said, class_="quiet"), _table(heads, rows)]
    by = tag("div", _words("Shards made by", made, len(inventory.shards)), class_="charts")
    return section("times", "Where the time went", table, by)


def _engine(stated: Any) -> str:
    if not isinstance(stated, dict):
        return "engine not known"
    facts = [f"{name} {value}" for name, value in stated.items() if name != "name"]
    return ", ".join([str(stated.get("name", "engine not known")), *facts])


def provenance(inventory: Inventory) -> Html:
    """The contract, and where all this comes from."""
    card = inventory.card
    stated = {"fingerprint": card.fingerprint, **inventory.provenance}
    if card.compression is not None:
        stated["compression"] = card.compression
    return section(
        "provenance",
        "Contract and provenance",
        tag("p", in_words(card.spec)),
        tag(
            "div",
            tag("div", tag("h3", "Contract"), _table((), _flat(card.spec.facts()))),
            tag("div", tag("h3", "Provenance"), _table((), _flat(stated))),
            class_="pair",
        ),
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(_plain, value))
        elif value is not None:
            yield f"{prefix}{name}", shortened(_plain(value), _LONGEST)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meant(counted: Counter[str]) -> Counter[str]:
    """Words of a sample's JSON that only its format explains, as what they mean."""
    return Counter({_MEANINGS.get(word, word): count for word, count in counted.items()})


def _words(title: str, counted: Counter[str], total: int) -> Html:
    """How often which word comes, the most frequent ones.

    Of many words those that come once are counted alone: what one sample says may be whose it is.
    """
    common = counted.most_common()
    shown = common
    if len(common) > _MOST_ROWS:
        shown = [one for one in common[:_MOST_ROWS] if one[1] > 1]
    rows = [Bar(word, count) for word, count in shown]
    if others := common[len(shown) :]:
        rows.append(Bar(plural(len(others), "other"), sum(count for _, count in others)))
    if not rows:
        return chart(title, tag("p", "Nothing is known.", class_="quiet"))
    return chart(title, bars(rows, total))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    head = tag("thead", tag("tr", (tag("th", h, scope="col") for h in heads))) if heads else None
    lines = (
        tag("tr", tag("th", first, scope="row"), (tag("td", cell) for cell in cells))
        for first, *cells in rows
    )
    return tag("div", tag("table", head, tag("tbody", lines), class_="facts"), class_="scroll")
