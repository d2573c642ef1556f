"""What Ctrl-C and SIGTERM do to a command."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctgpu.cli.stopping import Stopped, stoppable
from ctgpu.errors import DecodeError, SourceError, UsageError
from support.command_line import CTGPU, SMALL, finish, patched, run_here, sentence


def test_ctrl_c_while_modules_are_imported_ends_the_process_without_a_word() -> None:
    patch = """
import signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "ctgpu.building.builder":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
    result = patched(patch, "build", "--output-dir", "o")
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


@pytest.mark.slow
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_of_either_kind_ends_the_process_at_once(
    tmp_path: Path, source: Path, first: signal.Signals, second: signal.Signals
) -> None:
    patch = f"""
import signal
import ctgpu.building.builder as b
def make(self, *arguments):
    signal.raise_signal({first.value})
def close(self):
    signal.raise_signal({second.value})
b.LocalExecutor.make, b.LocalExecutor.close = make, close
"""
    result = patched(patch, "build", "--output-dir", tmp_path, "--source", source, *SMALL)
    assert result.returncode == -second
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["build", "plan", "demo"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_sentence_and_128_more_than_its_number(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: Path,
    command: str,
    number: signal.Signals,
) -> None:
    def make(*arguments: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("ctgpu.building.builder.LocalExecutor.make", make)
    # Small volumes do as well.
    monkeypatch.setattr(
        "ctgpu.testing.demo.make_source",
        lambda folder: shutil.copytree(source, folder),
    )
    arguments: list[object] = ["--output-dir", tmp_path / "o", "--device", "cpu"]
    arguments += ["--source", source] if command != "demo" else []
    result = run_here(command, *arguments)
    assert result.returncode == 128 + number, result.stderr
    assert "ctgpu: stopped" in sentence(result)


def test_what_plan_wrote_is_removed_though_a_signal_comes_while_it_is_being_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    rmtree = shutil.rmtree

    def interrupted(*arguments: object, **options: object) -> None:
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    arguments = ("--output-dir", tmp_path, "--source", source, "--device", "cpu")
    result = run_here("plan", *arguments, "--calibrate", "1")
    assert result.returncode == 143, result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_to_go_on_with_can_be_pasted_whatever_the_folder_is_called(
    tmp_path: Path, source: Path
) -> None:
    patch = """
import signal
import ctgpu.building.builder as b
make = b.LocalExecutor.make
def stop(self, *arguments):
    signal.raise_signal(signal.SIGTERM)
b.LocalExecutor.make = stop
"""
    folder = tmp_path / "o\x1b[2J\nctgpu: 'done' \\x \x85"
    result = patched(patch, "build", "--output-dir", folder, "--source", source, *SMALL)
    assert result.returncode == 143, result.stderr
    _, _, command = sentence(result).partition("Go on with: ctgpu ")
    assert command.isprintable()
    again = finish(["bash", "-c", f"{' '.join(CTGPU)} {command} --device cpu"])
    assert again.returncode == 0, again.stderr
    assert (folder / "manifest.json").exists()


NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Whatever a test does, the signals of this process do what they did."""
    kept = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_raises_once_and_afterwards_all_is_as_a_process_begins() -> None:
    with pytest.raises(Stopped) as caught, stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert (caught.value.exit_code, caught.value.sentence) == (143, "stopped")
    assert str(caught.value) == "SIGTERM"
    assert {signal.getsignal(number) for number in NUMBERS} == {signal.SIG_DFL}
    with stoppable():
        assert signal.SIG_DFL not in {signal.getsignal(number) for number in NUMBERS}
    assert {signal.getsignal(number) for number in NUMBERS} == {signal.SIG_DFL}


@pytest.mark.usefixtures("handlers")
def test_a_sample_that_ends_the_whole_job_is_no_failed_sample() -> None:
    with pytest.raises(SourceError, match=r"^a\.npz is cut short$"), stoppable():
        raise DecodeError("a.npz is cut short")
    with pytest.raises(UsageError), stoppable():
        raise UsageError("another error stays what it is")
