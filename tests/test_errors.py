"""What the machine has run out of is told apart from what a sample or this package does wrong."""

from __future__ import annotations

import errno
import itertools
import os
import re
from pathlib import Path

import pytest

from ctgpu.errors import (
    EnvironmentFailure,
    FetchError,
    StorageError,
    UsageError,
    reason_of,
    shortage,
)

REPOSITORY = Path(__file__).resolve().parent.parent


def raised(error: BaseException, *causes: BaseException) -> BaseException:
    """`error`, raised from the causes, the last of which came first."""
    chain = [error, *causes]
    for above, below in itertools.pairwise(chain):
        above.__cause__ = below
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "memory ran out (MemoryError): lower --memory-limit or --num-workers"),
        (MemoryError("8 bytes"), "memory ran out (8 bytes)"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory ran out"),
        (OSError(errno.EMFILE, "x", "a.npz"), "a.npz: too many files are open"),
        (OSError(errno.ENFILE, "x"), "too many files are open on this machine"),
        (OSError(errno.ENOSPC, "x", "out"), "out: no space is left"),
        (OSError(errno.EDQUOT, "x"), "the quota is used up"),
        (RuntimeError("can't start new thread"), "no more threads can be started here"),
        (RuntimeError("Resource temporarily unavailable"), "no more threads can be started"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out"),
        (ImportError("libx.so: failed to map segment from shared object"), "memory ran out"),
    ],
)
def test_a_shortage_is_a_failure_of_the_environment(error: Exception, sentence: str) -> None:
    behind = raised(FetchError("v.npz cannot be read"), ValueError("x"), error)
    for seen in (error, behind):
        failure = shortage(seen)
        assert type(failure) is EnvironmentFailure
        assert failure.exit_code == 3
        assert str(failure).startswith(sentence)
        assert failure.__cause__ is seen


def test_what_was_raised_while_a_shortage_was_being_handled_comes_from_it() -> None:
    error = KeyError("lost")
    error.__context__ = OSError(errno.EMFILE, "x")
    assert shortage(error) is not None
    error.__suppress_context__ = True
    assert shortage(error) is None


def test_an_error_raised_from_itself_ends_the_search() -> None:
    error = KeyError("round")
    error.__cause__ = error
    assert shortage(error) is None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("can't start new thread"),
        RuntimeError("nothing of the kind"),
        FileNotFoundError(errno.ENOENT, "x", "a.npz"),
        OSError(errno.EIO, "a bad sector", "a.npz"),
        OSError("without a number"),
        ImportError("No module named 'x'"),
        SystemExit(1),
    ],
)
def test_anything_else_is_none(error: BaseException) -> None:
    assert shortage(error) is None


@pytest.mark.parametrize("kind", [StorageError, UsageError])
def test_an_error_with_a_sentence_of_its_own_keeps_it(kind: type[Exception]) -> None:
    assert shortage(raised(kind("in words"), OSError(errno.ENOSPC, "x"))) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, "Permission denied", "a.npz"), "Permission denied"),
        (ConnectionError("Could not find any running instance."), "Could not find any running"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_a_reason_is_never_none(error: OSError, reason: str) -> None:
    assert reason_of(error).startswith(reason)


def test_every_message_takes_its_reason_from_one_place() -> None:
    # What libraries raise without a number has no `strerror`, and the message would end in "None".
    taken = re.compile(r"(?<!\bos)\.strerror\b")
    places = {
        path.relative_to(REPOSITORY).as_posix(): found
        for folder in ("ctgpu", "benchmarks", "docs", "examples", "tests")
        for path in (REPOSITORY / folder).rglob("*.py")
        if (found := len(taken.findall(path.read_text(encoding="utf-8"))))
        and path != Path(__file__).resolve()
    }
    # The latter raises the error again, for the stream that it came from.
    assert places == {"ctgpu/errors.py": 1, "ctgpu/cli/exits.py": 1}
