"""Results as Markdown, by the Jinja templates beside this module."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.machine import machine_line
from benchmarks.harness.measuring import in_words, median_in_words, three_digits

if TYPE_CHECKING:
    from jinja2 import Environment

Result = Mapping[str, Any]


def rendered(template: str, results: Mapping[str, Result], **more: str) -> str:
    """A template of ``templates/``, with results by their names."""
    wanted = _templates().get_template(f"{template}.jinja")
    return _tidy(wanted.render(results=results, **results, **more))


def part(name: str, **results: Result) -> str:
    """One macro of ``templates/parts.jinja``."""
    macros = _templates().get_template("parts.jinja").make_module(results)
    return _tidy(getattr(macros, name)())


@cache
def _templates() -> Environment:
    try:
        import jinja2
    except ImportError as error:
        raise SystemExit(
            "documents need jinja2, which is not installed: pip install '.[bench]'"
        ) from error
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown
    )
    templates.filters |= {
        "between": between,
        "in_unit": in_unit,
        "last_key": lambda by_count: max(by_count, key=int),
        "line": machine_line,
        "step_rows": step_rows,
        "three": three_digits,
        "to": format,
        "words": median_in_words,
    }
    return templates


def _tidy(text: str) -> str:
    """No two lines empty in succession: blocks that say nothing leave some."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def between(ends: Sequence[float]) -> str:
    """``1.00 to 2.00``."""
    least, most = ends
    return f"{three_digits(least)} to {three_digits(most)}"


def in_unit(value: Any, unit: str | None) -> str:
    """A figure of the loading summary; without a unit it is text."""
    if not unit or unit == "threads":
        return str(value)
    return f"{value:.1%}" if unit == "s/s" else in_words(value, unit)


def step_rows(steps: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """One of the guide's per-step tables, in milliseconds: step, old guide, old way, ctgpu."""
    guide, simulated = steps["old_guide_ms"], steps["simulated"]
    old, ours = (steps["contenders"][way] for way in ("old way", "ctgpu"))
    timed = [n for n, value in old.items() if isinstance(value, dict) and n != "cpu_per_sample"]
    # The guide's own steps first, and last those on the GPU, or what stands for them.
    last = [n for n in ("GPU operations", *(simulated or ["total"])) if n in {*guide, *timed}]
    first = [n for n in dict.fromkeys([*guide, *timed]) if n not in ("total", *last)]

    def cell(facts: Result, step: str) -> str:
        if step in facts:
            ms = facts[step]["median"] * 1e3
            return f"{ms:,.0f}" if ms >= 100 else three_digits(ms)
        return "not measured" if step in steps["not_measured"] else "in the fused pass"

    for step in (*first, *last):
        stated = guide.get("total" if step.startswith("total") else step)
        told = f"{stated:g}" if stated is not None else ""
        yield f"*{step}*" if step in simulated else step, told, cell(old, step), cell(ours, step)
