"""HTML that is safe by its making."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from view_cases import Parsed

from ctgpu.viewing.markup import Html, escaped, joined, tag


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "<b> & \"'") == "<p>&lt;b&gt; &amp; &quot;&#x27;</p>"
    assert tag("p", tag("b", "x"), 3, None, " ", 0.5) == "<p><b>x</b>3 0.5</p>"
    assert joined(["a", [tag("br")]], (n for n in ("<", ">"))) == "a<br>&lt;&gt;"
    assert isinstance(joined("a"), Html)


def test_lines_stay_lines_and_what_cannot_be_seen_is_written_out() -> None:
    assert escaped("a\nb\x1b[2J\u202e") == "a\nb\\x1b[2J\\u202e"


def test_attributes() -> None:
    made = tag("input", type="range", max=3, class_="a b", aria_label='"x"', checked=True, id=None)
    assert made == ('<input type="range" max="3" class="a b" aria-label="&quot;x&quot;" checked>')
    assert tag("meta", name="generator", hidden=False) == '<meta name="generator">'


@given(st.text(), st.text())
def test_no_text_becomes_a_tag(text: str, value: str) -> None:
    made = Parsed(tag("p", text, title=value).encode(errors="replace").decode())
    assert made.tags == ["p"]
    assert len(made.values) == 1
    again = Parsed(tag("p", made.text).encode(errors="replace").decode())
    assert again.text == made.text
