"""Writes the table of presets in docs/contracts.md, of what ctgpu/spec/presets.toml says.

::

    python docs/presets.py
"""

from __future__ import annotations

from pathlib import Path

from ctgpu.spec import Spec
from ctgpu.spec.presets import Preset, presets
from ctgpu.spec.words import in_words

PAGE = Path(__file__).with_name("contracts.md")
BEGIN, END = "<!-- presets: made by `python docs/presets.py` -->", "<!-- /presets -->"


def table() -> str:
    """The table in Markdown."""
    rows = ["| Preset | Contract | As in | Differs |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {in_words(Spec.preset(name))} | {_source(one)} | {_differences(one)} |"
        for name, one in presets().items()
    ]
    return "\n".join(rows)


def _source(one: Preset) -> str:
    files = ", ".join(
        f"[{file.rpartition('/')[2].replace(':', ' ')}]({address})"
        for file, address in one.sources.items()
    )
    version = one.version[:7] if len(one.version) == 40 else one.version
    return f"{one.title}: {files} at {version}"


def _differences(one: Preset) -> str:
    return f"{one.differs} **{one.distance[0].upper()}{one.distance[1:]}.**".lstrip()


def with_table(page: str) -> str:
    """The page with the table of today."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
