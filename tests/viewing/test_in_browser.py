"""A page in a browser: it asks for nothing, moves its slices, and runs nothing of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from view_cases import HOSTILE, damage

from ctgpu.viewing import write_view
from support.browser import PATIENCE_MS, started_browser
from support.masks import with_masks

pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.slow


@dataclass
class Opened:
    """A page, and what it did."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def first(self, selector: str) -> Any:
        return self.page.locator(selector).first


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Path:
    """A page with masks, reports, and a sample that is damaged."""
    folder = with_masks(made, tmp_path_factory.mktemp("viewed") / "out")
    damage(folder, "s4", "bin")
    return write_view(folder, num_samples=5, reports=True).path


@pytest.fixture
def look(browser: Any, written: Path) -> Iterator[Callable[..., Opened]]:
    """Opens the page; at the end nothing may have been asked for or gone wrong."""
    contexts: list[Any] = []
    all_opened: list[Opened] = []

    def opened(width: int = 1280, **options: Any) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        one = Opened(context.new_page())
        all_opened.append(one)
        one.page.on("console", lambda message: one.said.append(message.text))
        one.page.on("pageerror", lambda error: one.said.append(str(error)))
        one.page.on("request", lambda request: one.asked.append(request.url))
        one.page.goto(written.as_uri())
        return one

    yield opened
    for one in all_opened:
        assert one.said == []
        assert [url for url in one.asked if not url.startswith("data:")] == [written.as_uri()]
    for context in contexts:
        context.close()


def test_the_slider_moves_through_the_slices_by_keys(look: Callable[..., Opened]) -> None:
    opened = look()
    slider, picture = opened.first(".plane input"), opened.first(".plane .cut")
    place = opened.first(".plane output")
    # Of 6 slices the middle one.
    assert (slider.input_value(), place.text_content()) == ("3", "4 of 6")
    seen = [picture.get_attribute("src")]
    slider.focus()
    for key, words in (("ArrowRight", "5 of 6"), ("Home", "1 of 6"), ("End", "6 of 6")):
        opened.page.keyboard.press(key)
        assert place.text_content() == words
        assert slider.get_attribute("aria-valuetext") == words
        seen.append(picture.get_attribute("src"))
    assert len(set(seen)) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in seen)


def test_the_slider_moves_by_the_mouse(look: Callable[..., Opened]) -> None:
    opened = look()
    slider, place = opened.first(".plane input"), opened.first(".plane output")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    for share, words in ((0.02, "1 of 6"), (0.98, "6 of 6")):
        opened.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        assert place.text_content() == words


def test_every_plane_of_every_good_sample_is_drawn(look: Callable[..., Opened]) -> None:
    opened = look()
    drawn = opened.page.eval_on_selector_all(
        ".cut", "all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth > 0)))"
    )
    assert drawn == [True] * 12
    scales = opened.page.eval_on_selector_all(
        ".cut",
        """all => all.map(image => {
            const box = image.getBoundingClientRect();
            return [box.width / image.naturalWidth, box.height / image.naturalHeight];
        })""",
    )
    for place in range(0, 12, 3):  # the three planes of a sample
        across, down = scales[place]
        assert scales[place : place + 3] == [pytest.approx((across, down), rel=0.02)] * 3
        assert across == pytest.approx(down, rel=0.02)
    assert opened.page.locator(".fault").all_text_contents()[0].startswith("/")
    assert "s4.bin does not have its checksum" in opened.first(".fault").text_content()


def test_outlines_lie_over_the_slice_and_can_be_hidden(look: Callable[..., Opened]) -> None:
    opened = look()
    outline, cut = opened.first(".plane .outline"), opened.first(".plane .cut")
    assert outline.is_visible()
    assert outline.bounding_box() == cut.bounding_box()
    opened.first(".toggle").uncheck()
    assert not outline.is_visible()
    opened.first(".plane input").press("ArrowRight")
    assert not outline.is_visible()
    opened.first(".toggle").check()
    assert outline.is_visible()


def test_a_report_is_shown_and_not_run(look: Callable[..., Opened]) -> None:
    opened = look()
    assert opened.first(".report").text_content() == HOSTILE
    assert opened.page.evaluate("window.ran") is None
    assert opened.page.locator("script").count() == 2
    assert opened.page.locator("section b").count() == 1  # the key of the sample that failed


def test_no_other_script_may_run_and_nothing_be_fetched(browser: Any, written: Path) -> None:
    """What the page says to the browser holds, even where something had slipped through."""
    context = browser.new_context()
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(written.as_uri())
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
            const picture = document.createElement("img");
            picture.src = "http://127.0.0.1:9/x.png";
            document.body.append(picture);
        }"""
    )
    assert page.evaluate("window.ran") is None
    page.wait_for_function("document.images[document.images.length - 1].complete")
    assert len([text for text in refused if "Content Security Policy" in text]) == 2
    context.close()


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_it_fits_every_width(look: Callable[..., Opened], width: int) -> None:
    opened = look(width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [box.bounding_box() for box in opened.page.locator(".plane").all()[:3]]
    assert all(box["width"] >= 150 for box in boxes)
    assert opened.first(".plane .cut").bounding_box()["width"] >= 140
    # One below the other on a phone, side by side elsewhere.
    assert (boxes[0]["x"] == boxes[1]["x"]) == (width < 640)


def test_light_and_dark_are_both_readable(look: Callable[..., Opened]) -> None:
    def lightness(colour: str) -> float:
        red, green, blue = (int(n) for n in colour[4:-1].split(","))
        return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255

    grounds = []
    for scheme in ("light", "dark"):
        opened = look(color_scheme=scheme)
        ink, ground = (
            lightness(opened.page.evaluate(f"getComputedStyle(document.body).{name}"))
            for name in ("color", "backgroundColor")
        )
        assert abs(ink - ground) > 0.6
        grounds.append(ground)
    assert grounds[0] > 0.8
    assert grounds[1] < 0.2


def test_without_scripts_it_says_what_is_missing(look: Callable[..., Opened]) -> None:
    opened = look(java_script_enabled=False)
    assert opened.page.get_by_text("The pictures need JavaScript.").is_visible()
    assert opened.page.get_by_text("Contract and provenance").is_visible()
    assert not look().page.get_by_text("The pictures need JavaScript.").is_visible()
