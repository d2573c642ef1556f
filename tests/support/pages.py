"""The Python that pages of Markdown show."""

from __future__ import annotations

import re


def python_blocks(text: str) -> list[str]:
    """The code of every block of Python in `text`."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def python_block(text: str, mark: str) -> str:
    """The one that has `mark` in it."""
    (found,) = [block for block in python_blocks(text) if mark in block]
    return found
