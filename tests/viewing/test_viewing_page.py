"""One HTML file that may fetch nothing."""

from __future__ import annotations

import base64
import hashlib
import re

from view_cases import Parsed

from ctgpu.viewing.markup import Html, tag
from ctgpu.viewing.page import MARK, page


def made(title: str = "t") -> str:
    links = [("one", "One"), ("two", "Two")]
    body = [tag("section", id="one"), tag("section", "<b>", id="two")]
    return page(title, links, body, Html("[]")).decode()


def test_only_its_own_style_and_script_are_allowed() -> None:
    html = made()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#x27;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for rule, pattern in (
        ("style-src", r"<style>(.*?)</style>"),
        ("script-src", r"<script>(.*?)</script>"),
    ):
        (content,) = re.findall(pattern, html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    # Before anything that it is to hold for.
    assert html.index("Content-Security-Policy") < html.index("<link") < html.index("<style>")


def test_nothing_in_it_lies_elsewhere() -> None:
    html = made()
    assert not re.search(r"https?:|@import|url\(", html)
    assert re.findall(r'(?:src|href)="([^"]*)"', html) == ["data:,", "#one", "#two"]
    assert " style=" not in html
    assert not re.search(r" on[a-z]+=", html)


def test_links_lead_to_sections() -> None:
    html = made()
    for target in re.findall(r'href="#([^"]*)"', html):
        assert html.count(f'id="{target}"') == 1


def test_a_title_is_text() -> None:
    parsed = Parsed(made("</title><script>x</script>"))
    assert parsed.tags.count("script") == 2
    assert parsed.tags.count("title") == 1


def test_half_a_character_does_not_stop_it() -> None:
    assert page("\udc80", [], [], Html("[]")).startswith(MARK)


def test_it_is_known_again_by_its_beginning() -> None:
    assert made().encode().startswith(MARK)
