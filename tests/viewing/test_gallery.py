"""Previews as a part of the page."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from view_cases import HOSTILE, Parsed, held

from ctgpu.shards.card import Card
from ctgpu.viewing.gallery import MOST_CHARACTERS, card_of, data_of, histogram_edges, size_of
from ctgpu.viewing.inventory import Inventory
from ctgpu.viewing.previews import BINS, Preview, preview_of
from ctgpu.volume.masks import MaskFormat
from support.masks import with_masks

pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def card(made: Path) -> Card:
    return Inventory.of(made).card


@pytest.fixture(scope="module")
def preview(made: Path, card: Card) -> Preview:
    return preview_of(card, *held(made))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, made: Path) -> tuple[Preview, Card]:
    folder = with_masks(made, tmp_path_factory.mktemp("masked") / "out")
    card = Inventory.of(folder).card
    return preview_of(card, *held(folder)), card


def text_of(preview: Preview, card: Card, **options: Any) -> str:
    return Parsed(card_of(preview, 0, card, **({"reports": False} | options))).text


def test_a_report_is_shown_where_it_is_asked_for_and_never_as_markup(
    preview: Preview, card: Card
) -> None:
    without = card_of(preview, 0, card, reports=False)
    assert "window.ran" not in without
    assert f"{len(HOSTILE):,} characters; --reports shows it." in Parsed(without).text
    shown = card_of(preview, 0, card, reports=True)
    parsed = Parsed(shown)
    assert HOSTILE in parsed.text
    assert "script" not in parsed.tags
    assert parsed.tags.count("img") == 6


def test_a_long_report_is_cut(preview: Preview, card: Card) -> None:
    long = replace(preview, report="x" * (MOST_CHARACTERS + 5))
    text = text_of(long, card, reports=True)
    assert text.count("x" * MOST_CHARACTERS) == 1
    assert "… cut; it has 20,005 characters." in text


def test_what_a_sample_was_made_of_is_said(preview: Preview, card: Card) -> None:
    text = text_of(preview, card)
    assert "Made of 15 × 12 × 9 voxels of 3.5 × 3 × 5 mm, LPS;" in text
    assert "nodule" in text
    assert "effusion" not in text


def test_names_from_outside_are_text(preview: Preview, card: Card) -> None:
    strange = replace(preview, key="<b>k</b>", labels={"<i>l</i>": 1.0}, fault="<u>f</u>")
    parsed = Parsed(card_of(strange, 0, card, reports=False))
    assert {"b", "i", "u"}.isdisjoint(parsed.tags)
    for shown in ("<b>k</b>", "<i>l</i>", "<u>f</u>"):
        assert shown in parsed.text


def test_a_sample_that_cannot_be_read_says_why(card: Card) -> None:
    html = card_of(Preview("k", "It is damaged."), 3, card, reports=True)
    assert Parsed(html).text == "kIt is damaged."
    assert "slider" not in html


def test_the_data_are_the_pictures(masked: tuple[Preview, Card]) -> None:
    preview, _ = masked
    ((*planes,),) = json.loads(data_of([preview]))
    for plane, data in zip(preview.planes, planes, strict=True):
        assert data["count"] == plane.count
        assert tuple(data["places"]) == plane.places
        assert tuple(map(base64.b64decode, data["pictures"])) == plane.pictures
        assert tuple(map(base64.b64decode, data["outlines"])) == plane.outlines
    assert "<" not in data_of([preview])
    assert data_of([]) == "[]"


def test_the_size_of_a_preview_is_what_it_adds_to_a_page(masked: tuple[Preview, Card]) -> None:
    preview, card = masked
    whole = len(card_of(preview, 0, card, reports=True).encode()) + len(data_of([preview]))
    assert size_of(preview, card, reports=True) == whole
    assert size_of(preview, card, reports=False) < whole
    assert size_of(preview.thinned(3), card, reports=True) < whole


def test_labels_of_a_mask_are_named_the_largest_first(preview: Preview, card: Card) -> None:
    masks = MaskFormat("uint8", {"lung": 1, "bone": 3})
    text = text_of(replace(preview, mask={1: 5, 3: 4321, 7: 6}), replace(card, masks=masks))
    assert "bone 4,321 voxels label 7 6 voxels lung 5 voxels" in text
    assert "Its mask is empty." in text_of(replace(preview, mask={}), card)


def test_many_labels_of_a_mask_are_cut(preview: Preview, card: Card) -> None:
    mask = {number: 1 for number in range(1, 301)}
    html = card_of(replace(preview, mask=mask), 0, card, reports=False)
    assert html.count("<li>") == 201
    assert "… and 100 more" in html


def test_outlines_can_be_left_out(masked: tuple[Preview, Card], preview: Preview) -> None:
    assert "outlines of the mask" in text_of(*masked)
    assert "outlines of the mask" not in text_of(preview, masked[1])


def test_an_orientation_that_is_not_known_is_said(preview: Preview, card: Card) -> None:
    planes = tuple(replace(plane, marks="") for plane in preview.planes)
    unknown = replace(preview, planes=planes)
    assert text_of(unknown, card).count("orientation not stated") == 3
    assert 'class="mark' not in card_of(unknown, 0, card, reports=False)


def test_edges_are_those_of_the_window(card: Card) -> None:
    edges = histogram_edges(card.spec)
    assert (len(edges), edges[0], edges[-1]) == (BINS + 1, -1000, 1000)
