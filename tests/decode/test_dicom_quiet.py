"""Nothing of pydicom gets out but a sentence of this package, from any thread."""

from __future__ import annotations

import logging
import threading
import traceback
import warnings

import pytest

from ctgpu.decode.dicom_quiet import quiet
from ctgpu.errors import DecodeError, EnvironmentFailure

SENTENCE = "a.dcm cannot be read: fetch it again"


def _speak(text: str) -> None:
    """Warn as a module of pydicom does."""
    from pydicom.misc import warn_and_log

    module = {"__name__": "pydicom.filereader", "warn_and_log": warn_and_log, "text": text}
    exec("warn_and_log(text, UserWarning)", module)


def test_warnings_and_log_lines_are_dropped_and_come_back(caplog):
    filters = list(warnings.filters)
    with quiet(SENTENCE):
        _speak("Doe^Jane")
        logging.getLogger("pydicom.pixels.decoders.base").warning("Doe^Jane")
    assert "Doe" not in caplog.text
    assert list(warnings.filters) == filters
    with pytest.warns(UserWarning, match="as ever"):
        _speak("as ever")
    assert "as ever" in caplog.text


def test_a_thread_that_leaves_does_not_make_another_one_speak(caplog):
    inside, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet(SENTENCE):
            inside.set()
            may_leave.wait()

    thread = threading.Thread(target=other)
    with quiet(SENTENCE):
        thread.start()
        inside.wait()
    # The first has left, and the other is still in there.
    _speak("Doe^Jane")
    may_leave.set()
    thread.join()
    assert "Doe" not in caplog.text


def test_filters_that_someone_restores_meanwhile_are_no_way_out(caplog):
    with quiet(SENTENCE):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with quiet(SENTENCE):
                _speak("Doe^Jane")
        _speak("Doe^Jane")
    assert "Doe" not in caplog.text


@pytest.mark.parametrize("error", [ValueError, KeyError, RecursionError, AssertionError, OSError])
def test_errors_become_the_sentence_alone(error):
    with pytest.raises(DecodeError) as caught, quiet(SENTENCE):
        raise error("Doe^Jane")
    assert str(caught.value) == SENTENCE
    assert "Doe" not in "".join(traceback.format_exception(caught.value))


def test_own_errors_and_lack_of_memory_pass():
    with pytest.raises(DecodeError, match="of another kind"), quiet(SENTENCE):
        raise DecodeError("of another kind")
    with pytest.raises(MemoryError), quiet(SENTENCE):
        raise MemoryError


def test_what_is_not_installed_is_named_with_the_command():
    absent = pytest.raises(EnvironmentFailure, match=r"no_such_plugin is not .*\[dicom\]")
    with absent, quiet(SENTENCE):
        import no_such_plugin  # noqa: F401
