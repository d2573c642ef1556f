"""A data set on one page: what it holds, counted, and a few of its samples to look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

from ctgpu.arguments import path_of, require_flag, require_whole_number
from ctgpu.errors import StorageError, UsageError, reason_of
from ctgpu.shards import disk
from ctgpu.shards.untrusted import open_regular
from ctgpu.viewing import sections
from ctgpu.viewing.census import Census, take_census
from ctgpu.viewing.gallery import card_of, data_of, size_of
from ctgpu.viewing.inventory import Inventory
from ctgpu.viewing.markup import Content, Html, tag
from ctgpu.viewing.page import MARK, page
from ctgpu.viewing.pictures import require_pillow
from ctgpu.viewing.previews import Preview, take_previews, window_of

#: Name of the page in the data set's folder.
VIEW_NAME = "view.html"
#: What a page has room for.
LIMIT_BYTES = 5_000_000

#: Kept free for what depends on the pictures and is not of them, such as a histogram of all.
RESERVE_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Viewed:
    """A page that was written.

    Attributes
    ----------
    path : Path
        The file.
    size_bytes : int
        Its size.
    samples, planned : int
        Samples of the data set that are finished, and that are planned; as many where that is not
        known.
    read : int
        Of how many the page counts what their JSON says.
    shown : int
        How many are on it in pictures.
    asked : int
        How many should have been.
    slices : int
        Of each plane, where most are.
    damaged : int
        Samples that could not be read, or not shown.
    """

    path: Path
    size_bytes: int
    samples: int
    planned: int
    read: int
    shown: int
    asked: int
    slices: int
    damaged: int


def write_view(
    folder: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    num_samples: int = 4,
    reports: bool = False,
    looked_at: Callable[[int, int], None] = lambda done, shards: None,
) -> Viewed:
    """Write one HTML file about a data set, below 5 MB, which needs no network.

    It is made of plan, manifest, records, and the JSON and labels of the samples; volumes are read
    of those alone that are shown.

    Parameters
    ----------
    folder : path
        A data set that ``ctgpu build`` wrote, finished or not.
    output : path, optional
        The file; by default ``view.html`` in the folder.  An earlier page is replaced.
    num_samples : int
        Show so many samples in pictures, evenly spaced, as far as there is room; 0 for none, which
        needs no Pillow.
    reports : bool
        Put the reports of these samples into the file, which then holds text about patients; else
        only how long they are.
    looked_at : callable
        Called with how many shards have been looked at, and how many there are.

    Returns
    -------
    Viewed
        What was written.

    Raises
    ------
    UsageError
        If it is no data set, the output is another file, or Pillow is missing.
    StorageError
        If something cannot be read or written.
    """
    require_whole_number("num_samples", num_samples, least=0)
    require_flag("reports", reports)
    where = path_of("folder", folder)
    inventory = Inventory.of(where)
    path = where / VIEW_NAME if output is None else path_of("output", output)
    _require_replaceable(path)
    if num_samples:
        require_pillow()
    census = take_census(inventory, looked_at=looked_at)
    asked = min(num_samples, len(inventory.entries))
    measured = _render(inventory, census, [], asked, reports)
    previews = take_previews(
        inventory,
        asked,
        LIMIT_BYTES - RESERVE_BYTES - len(measured),
        partial(size_of, card=inventory.card, reports=reports),
    )
    content = _render(inventory, census, previews, asked, reports)
    disk.replace_file(path, content)
    planned = inventory.card.planned_samples
    return Viewed(
        path,
        len(content),
        len(inventory.entries),
        len(inventory.entries) if planned is None else planned,
        census.read,
        len(previews),
        asked,
        _most_slices(previews),
        len(census.damaged.keys() | {preview.key for preview in previews if preview.fault}),
    )


def _require_replaceable(path: Path) -> None:
    """Refuse to replace what is no earlier page, and to write where that is not possible."""
    if not os.path.isdir(path.parent):
        raise UsageError(
            f"{path} cannot be written, for there is no folder {path.parent}; make it, or name "
            "another --output"
        )
    if os.path.isdir(path):
        raise UsageError(f"--output {path} is a folder; name a file in it, such as {VIEW_NAME}")
    if not os.access(path.parent, os.W_OK):
        raise StorageError(
            f"{path} cannot be written: this account may not write to {path.parent}; name another "
            "--output"
        )
    if not os.path.lexists(path):
        return
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            is_page = file.read(len(MARK)) == MARK
    except OSError as error:
        raise StorageError(
            f"{path} is there already and cannot be read: {reason_of(error)}; name another --output"
        ) from error
    if not is_page:
        raise UsageError(
            f"{path} is there already, and is no page of `ctgpu view`; name another --output, or "
            "remove it"
        )


def _render(
    inventory: Inventory,
    census: Census,
    previews: Sequence[Preview],
    asked: int,
    reports: bool,
) -> bytes:
    card = inventory.card
    parts: list[tuple[str, str, Html | None]] = [
        ("samples", "Samples", _samples(inventory, previews, asked, reports)),
        ("hu", "Intensities", sections.intensities(previews, census, card.spec)),
        ("geometry", "Scans", sections.geometry(census, card.spec)),
        ("columns", "Columns", sections.columns(census)),
        ("labels", "Labels", sections.labels(inventory, census)),
        ("reports", "Reports", sections.reports(inventory)),
        ("failures", "Failures", sections.failures(inventory)),
        ("sizes", "Sizes", sections.sizes(inventory)),
        ("times", "Time", sections.times(inventory)),
        ("provenance", "Contract", sections.provenance(inventory)),
    ]
    named = [str(inventory.provenance.get(name, "")) for name in ("dataset", "split")]
    title = " · ".join(filter(None, named)) or inventory.folder.name
    links = [(name, words) for name, words, part in parts if part is not None]
    body: list[Content] = [*sections.overview(inventory, census), (part for *_, part in parts)]
    return page(title, links, body, data_of(previews))


def _samples(inventory: Inventory, previews: Sequence[Preview], asked: int, reports: bool) -> Html:
    total = len(inventory.entries)
    if not total:
        said = "None is finished yet."
    elif not asked:
        said = f"None of {total:,} is shown; --num-samples says how many are."
    else:
        said = f"{len(previews):,} of {total:,}"
        if len(previews) < total:
            said += ", evenly spaced"
        if len(previews) < asked:
            said += f"; there is no room for the {asked:,} that were asked for"
        if slices := _most_slices(previews):
            said += (
                f". Of each plane up to {slices} slices are here; arrow keys move a slider that "
                "has the focus"
            )
        said += "."
    lo, hi = window_of(inventory.card.spec)
    seen = (
        f"Black is {lo:g} HU, white {hi:g} HU. A scan that says how it lies is seen as "
        "radiologists look: the patient's right (R) at the left, front (A) or head (S) at the top; "
        "another one has no letters."
    )
    return sections.section(
        "samples",
        "Samples",
        tag("p", said, class_="quiet"),
        tag("p", seen, class_="quiet") if previews else None,
        (
            card_of(preview, place, inventory.card, reports=reports)
            for place, preview in enumerate(previews)
        ),
    )


def _most_slices(previews: Sequence[Preview]) -> int:
    return max((len(plane.places) for one in previews for plane in one.planes), default=0)
