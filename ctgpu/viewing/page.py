"""One HTML file that needs nothing beside it, and may fetch nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ctgpu.installation import __version__
from ctgpu.viewing.markup import Content, Html, tag

#: How a page begins, by which it is known again.
MARK = (
    b'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    b'<meta name="generator" content="ctgpu view'
)


def page(title: str, parts: Sequence[tuple[str, str]], body: Content, slices: Html) -> bytes:
    """The whole file, UTF-8.

    Nothing in it may be fetched from elsewhere, and no script may run but its own: that is said to
    the browser, beside everything being escaped.

    Parameters
    ----------
    title : str
        Of the page.
    parts : sequence of (str, str)
        What links lead to: name and title of sections.
    body
        Those sections.
    slices : Html
        JSON of the pictures.
    """
    style, script = _file("page.css"), _file("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=f"ctgpu view {__version__}"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="robots", content="noindex"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", style),
    )
    content = tag(
        "body",
        tag("h1", title),
        tag("nav", (tag("a", words, href=f"#{name}") for name, words in parts)),
        # The script takes it away.
        tag("p", "The pictures need JavaScript.", class_="notice", id="unscripted"),
        tag("main", body),
        tag("footer", tag("p", f"Made by ctgpu view {__version__}.", class_="quiet")),
        tag("script", slices, type="application/json", id="slices"),
        tag("script", script),
    )
    return f"<!doctype html>\n{tag('html', head, content, lang='en')}\n".encode(errors="replace")


@cache
def _file(name: str) -> Html:
    return Html(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
