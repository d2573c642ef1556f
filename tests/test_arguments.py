"""What callers pass, held against what a function takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctgpu.arguments import path_of, plain, require_choice, require_flag, require_kind, shown
from ctgpu.errors import UsageError


def test_a_value_is_shown_on_one_short_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert shown(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"
    assert len(shown(list(range(1000)))) == 60


@pytest.mark.parametrize("value", [None, 1, "b", ["a"], np.array(["a", "b"]), b"a"])
def test_what_is_none_of_the_words_is_refused(value: Any) -> None:
    require_choice("it", "a", ("a", "c"))
    with pytest.raises(UsageError, match=r"it is .*; it is a or c"):
        require_choice("it", value, ("a", "c"))


def test_what_was_not_given_is_no_other_kind() -> None:
    require_kind("it", None, int, "a number")
    require_kind("it", 3, (int, str), "a number")
    with pytest.raises(UsageError, match="it is None; wanted a number"):
        require_kind("it", None, int, "a number", optional=False)
    with pytest.raises(UsageError, match="it is 'x'; wanted a number"):
        require_kind("it", "x", int, "a number")


@pytest.mark.parametrize("value", [None, 0, 1, "no", "", []])
def test_a_flag_is_true_or_false(value: Any) -> None:
    for flag in (True, False, np.True_):
        require_flag("it", flag)
    with pytest.raises(UsageError, match="wanted True or False"):
        require_flag("it", value)


def test_a_path_is_text_or_a_path(tmp_path: Path) -> None:
    assert path_of("it", tmp_path) == path_of("it", str(tmp_path)) == tmp_path
    for value in (None, 5, b"a", "", "a\0b", ["a"]):
        with pytest.raises(UsageError, match=r"it is .*; wanted a path"):
            path_of("it", value)


def test_scalars_of_numpy_become_those_that_json_holds() -> None:
    values = [np.int64(3), np.float32(0.5), np.bool_(True), None, "a", 4]
    assert json.dumps([plain(value) for value in values]) == '[3, 0.5, true, null, "a", 4]'


READERS = """
import sys, threading
from dataclasses import dataclass, make_dataclass
from ctgpu.arguments import converted
from ctgpu.shards.untrusted import decode

sys.setswitchinterval(1e-6)
for round in range(60):
    inner = make_dataclass("Inner", [(f"b{n}", int) for n in range(40)])
    outer = make_dataclass("Outer", [(f"a{n}", inner) for n in range(3)])
    values = {f"a{n}": {f"b{k}": k for k in range(40)} for n in range(3)}
    begin, wrong = threading.Barrier(8), []

    def read(number):
        begin.wait()
        made = converted(values, outer) if number % 2 else decode(TEXT, outer)
        if made.a2.b39 != 39:
            wrong.append(made)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong
"""


@pytest.mark.slow
def test_threads_that_meet_a_type_together_read_it_whole() -> None:
    """msgspec's first look at a type is not safe: without a lock, the process ends here."""
    text = json.dumps({f"a{n}": {f"b{k}": k for k in range(40)} for n in range(3)}).encode()
    program = f"TEXT = {text!r}\n{READERS}"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
