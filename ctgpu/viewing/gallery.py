"""Previews of samples as a part of the page, and their slices as data beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ctgpu.checking.sheet import label_words
from ctgpu.shards.card import Card
from ctgpu.spec import Spec
from ctgpu.viewing.charts import histogram, number, plural, shortened
from ctgpu.viewing.cuts import Plane
from ctgpu.viewing.markup import Html, joined, tag
from ctgpu.viewing.members import Metadata
from ctgpu.viewing.pictures import colour_of
from ctgpu.viewing.previews import BINS, Preview, window_of

#: Characters of a report that are shown.
MOST_CHARACTERS = 20_000

_MOST_LABELS = 200
_SIDES = ("left", "right", "top", "bottom")


def card_of(preview: Preview, place: int, card: Card, *, reports: bool) -> Html:
    """One sample: its slices, which a script fills in, and what is known of it.

    Parameters
    ----------
    preview : Preview
        The sample.
    place : int
        Which of the previews it is, from 0.
    card : Card
        Of its data set.
    reports : bool
        Show its report; else only how long it is.
    """
    return tag(
        "article",
        tag("h3", shortened(preview.key)),
        tag("p", preview.fault, class_="fault") if preview.fault else None,
        None if preview.metadata is None else tag("p", _facts(preview.metadata), class_="quiet"),
        _slices(preview, place),
        _legend(preview.mask, {} if card.masks is None else card.masks.labels),
        tag("div", _words(preview, card.spec, reports), class_="beside"),
        class_="sample",
    )


def data_of(previews: Sequence[Preview]) -> Html:
    """The slices of all previews, as JSON that may stand in a script element."""
    data = [
        [
            {
                "places": plane.places,
                "count": plane.count,
                "pictures": list(map(_base64, plane.pictures)),
                "outlines": list(map(_base64, plane.outlines)) if any(plane.outlines) else [],
            }
            for plane in preview.planes
        ]
        for preview in previews
    ]
    # Of base64 and numbers, so nothing in it can end the element.
    return Html(json.dumps(data, separators=(",", ":")))


def size_of(preview: Preview, card: Card, *, reports: bool) -> int:
    """Bytes that a preview takes on a page, its data included."""
    return len(card_of(preview, 0, card, reports=reports).encode()) + len(data_of([preview]))


def _facts(metadata: Metadata) -> str:
    scan = metadata.source
    tilt = f", tilted by {scan.tilt_degrees:g}°" if scan.tilt_degrees else ""
    spacing = " × ".join(map(number, scan.spacing_mm))
    return (
        f"Made of {' × '.join(map(str, scan.shape))} voxels of {spacing} mm, "
        f"{scan.orientation or 'orientation not stated'}{tilt}; now voxels of "
        f"{' × '.join(map(number, metadata.spacing_mm))} mm."
    )


def _slices(preview: Preview, place: int) -> Html | None:
    if not any(plane.places for plane in preview.planes):
        return None
    longest = max(max(plane.size) for plane in preview.planes)
    has_mask = any(any(plane.outlines) for plane in preview.planes)
    toggle = tag(
        "label",
        tag("input", type="checkbox", class_="toggle", checked=True),
        " outlines of the mask",
        class_="outlines",
    )
    return joined(
        tag(
            "div",
            (
                _plane(plane, preview.key, f"{place}.{number}", longest)
                for number, plane in enumerate(preview.planes)
            ),
            class_="planes",
        ),
        toggle if has_mask else None,
    )


def _plane(plane: Plane, key: str, place: str, longest: int) -> Html:
    width, height = plane.size
    middle = len(plane.places) // 2
    sizes = {"width": width, "height": height}
    known = plane.marks or "orientation not stated"
    return tag(
        "figure",
        tag(
            "div",
            tag("img", class_="cut", alt=f"{plane.name} slice of {key}, {known}", **sizes),
            tag("img", class_="outline", alt="", hidden=True, **sizes),
            (
                tag("span", mark, class_=f"mark {side}")
                for mark, side in zip(plane.marks, _SIDES, strict=False)
            ),
            class_="stack",
        ),
        tag(
            "input",
            type="range",
            min=0,
            max=len(plane.places) - 1,
            value=middle,
            aria_label=f"{plane.name} slice of {key}",
        ),
        tag(
            "figcaption",
            f"{plane.name}{'' if plane.marks else ', orientation not stated'} ",
            tag("output", f"{plane.places[middle] + 1} of {plane.count}"),
        ),
        class_="plane",
        data_place=place,
        data_share=f"{100 * width / longest:.2f}",
    )


def _legend(mask: Mapping[int, int] | None, names: Mapping[str, int]) -> Html | None:
    """The labels that a mask has, the largest first, each beside its colour."""
    if mask is None:
        return None
    if not mask:
        return tag("p", "Its mask is empty.", class_="quiet")
    named = {number: name for name, number in names.items()}
    shown = sorted(mask.items(), key=lambda label: -label[1])
    left_out = len(shown) - _MOST_LABELS
    return tag(
        "ul",
        (
            tag(
                "li",
                tag(
                    "svg",
                    tag("rect", width=10, height=10, fill=colour_of(label)),
                    viewBox="0 0 10 10",
                    aria_hidden="true",
                ),
                f" {shortened(named.get(label, f'label {label}'))} ",
                tag("span", plural(count, "voxel"), class_="quiet"),
            )
            for label, count in shown[:_MOST_LABELS]
        ),
        tag("li", f"… and {left_out:,} more") if left_out > 0 else None,
        class_="legend",
    )


def _words(preview: Preview, spec: Spec, reports: bool) -> Iterator[Html]:
    if preview.labels:
        words = label_words(preview.labels)
        left_out = len(words) - _MOST_LABELS
        more = f", … and {left_out:,} more" if left_out > 0 else ""
        text = ", ".join(map(shortened, words[:_MOST_LABELS])) + more
        yield tag("div", tag("h4", "Labels"), tag("p", text))
    if preview.hu_counts is not None and preview.hu_counts.any():
        edges = histogram_edges(spec)
        drawn = histogram(edges, preview.hu_counts, "HU", logarithmic=True)
        yield tag("div", tag("h4", "HU, without padding (bars: logarithmic)"), drawn)
    if preview.report:
        length = plural(len(preview.report), "character")
        shown = preview.report[:MOST_CHARACTERS]
        cut = tag("p", f"… cut; it has {length}.", class_="quiet")
        yield tag(
            "div",
            tag("h4", "Report"),
            (tag("p", shown, class_="report"), cut if len(shown) < len(preview.report) else None)
            if reports
            else tag("p", f"{length}; --reports shows it.", class_="quiet"),
        )


def histogram_edges(spec: Spec) -> npt.NDArray[np.float64]:
    """Of the bins in which voxels are counted by their HU."""
    return np.linspace(*window_of(spec), BINS + 1)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
