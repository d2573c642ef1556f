"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from built import read_samples, tar_bytes
from ctgpu.cli.options import parse_range, parse_size
from ctgpu.errors import UsageError
from ctgpu.testing.ctrate import Volume, chest_phantom, lay_out_ct_rate

SPACING_MM = (3.5, 3.0, 5.0)
SMALL = ["--shape", "90,90,50", "--spacing", "4,4,6", "--device", "cpu"]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ctgpu.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"COLUMNS": "120", "HF_HUB_OFFLINE": "1"},
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    lay_out_ct_rate(
        root,
        {
            f"valid_{n}_a_1": Volume(chest_phantom((90, 80, 60), SPACING_MM, n), SPACING_MM)
            for n in range(1, 5)
        },
    )
    return root


def test_build_shows_what_it_did_and_exits_0(tmp_path: Path, source: Path) -> None:
    result = run("build", "--output-dir", tmp_path / "out", "--source", source, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "4 listed, 4 selected" in result.stderr
    assert "Where the time went" in result.stdout
    assert "bottleneck" in result.stdout
    assert "num_samples: 4" in result.stdout
    assert "Traceback" not in result.stderr
    assert len(read_samples(tmp_path / "out")) == 4


def test_json_log_lines_and_summary_can_be_parsed(tmp_path: Path, source: Path) -> None:
    result = run(
        *("build", "--output-dir", tmp_path, "--source", source, "--log-format", "json", *SMALL)
    )
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    events = [line.get("event") for line in lines]
    assert events[:2] == ["Listing", "Planned"]
    assert "ShardCommitted" in events
    assert json.loads(result.stdout)["total_samples"] == 4


def test_a_failed_sample_exits_1_and_says_how_to_retry(tmp_path: Path, source: Path) -> None:
    copy = tmp_path / "source"
    for path in source.rglob("*.*"):
        target = copy / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes()[: 2000 if "valid_3" in path.name else None])
    result = run("build", "--output-dir", tmp_path / "out", "--source", copy, *SMALL)
    assert result.returncode == 1
    assert "1 samples failed" in result.stdout
    assert "valid_3_a_1" in result.stdout
    assert "--retry-failed" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--source", "{source}", "--split", "test"], 2, "--split train or valid"),
        (["--source", "{source}", "--device", "cuda:x"], 2, "--device is 'cuda:x'"),
        (["--source", "{source}", "--memory-limit", "lots"], 2, "'lots' is not a size"),
        (["--source", "{source}", "--shards", "7-3"], 2, "write A-B"),
        (["--source", "/nonexistent"], 2, "is not a folder"),
        ([], 3, "HF_HUB_OFFLINE"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_an_exit_code(
    tmp_path: Path, source: Path, arguments: list[str], code: int, sentence: str
) -> None:
    filled = [argument.format(source=source) for argument in arguments]
    device = [] if "--device" in filled else ["--device", "cpu"]
    result = run("build", "--output-dir", tmp_path / "out", *device, *filled)
    assert result.returncode == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("ctgpu: ")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run(
        *("build", "--output-dir", tmp_path, "--source", "/nonexistent"),
        *("--device", "cpu", "--debug"),
    )
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_leaves_a_folder_that_can_be_resumed(
    tmp_path: Path, source: Path, number: signal.Signals, code: int
) -> None:
    command = [
        *(sys.executable, "-m", "ctgpu.cli", "build", "--output-dir", str(tmp_path / "out")),
        *("--source", str(source), "--device", "cpu", "--num-workers", "1"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out" / "shard-000000.journal"
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Go on with: ctgpu build" in errors
    assert "Traceback" not in errors
    resumed = run("build", "--output-dir", tmp_path / "out", "--device", "cpu")
    assert resumed.returncode == 0
    whole = run("build", "--output-dir", tmp_path / "whole", "--source", source, "--device", "cpu")
    assert whole.returncode == 0
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "whole")


def test_demo_shows_what_came_out(tmp_path: Path) -> None:
    result = run("demo", "--output-dir", tmp_path / "demo", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "What came out" in result.stdout
    assert "valid_3_a_1" in result.stdout
    assert (tmp_path / "demo" / "shards" / "manifest.json").exists()


def test_demo_does_not_touch_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = run("demo", "--output-dir", tmp_path)
    assert result.returncode == 2
    assert "holds other files" in result.stderr


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("ctgpu ")
    assert "build" in run("--help").stdout


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("8G", 8 * 10**9), ("500m", 5 * 10**8), ("1.5GiB", 3 << 29), ("4096", 4096), ("2 kB", 2000)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "8X", "-1G", "8ib", "1e3", "9" * 400, "inf", "nan", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("text", ["0", "0.0001", "0.000G", "0GiB"])
def test_a_size_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}' is less than a byte"):
        parse_size(text)


def test_a_size_is_exact_however_large() -> None:
    assert parse_size("999999999999999999") == 999_999_999_999_999_999
    assert parse_size("0.001k") == 1


@pytest.mark.parametrize(
    "text", ["", "-1", "3-1", "a", "1-", "0-999999999999999999999", "9" * 5000, "²", "0x1"]
)
def test_what_is_no_range_of_shards(text: str) -> None:
    with pytest.raises(UsageError, match="--shards is ") as caught:
        parse_range(text)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("build --memory-limit 0", "'0' is less than a byte"),
        ("build --memory-limit=", "'' is not a size"),
        ("build --memory-limit 999999999999999999T", "--memory-limit is 9999"),
        ("build --shards=", "--shards is ''"),
        ("build --num-workers 1000000000", "--num-workers is 1000000000"),
        ("build --limit 99999999999999999999", "--limit is 99999999999999999999"),
        ("plan --preset nope", "--preset is 'nope'; it is one of ct-rate"),
        ("build --preset nope", "--preset is 'nope'; it is one of ct-rate"),
        ("build --spacing nan,1,1", "--spacing is (nan"),
        ("build --spacing 1e400,1,1", "--spacing is (inf"),
        ("build --spacing 1e-320,1,1", "--spacing is (1e-320"),
        (f"build --shape {'9' * 400},1,1", "--shape is (inf"),
        ("build --hu-window -1e308,1e308", "--hu-window is (-1e+308"),
        ("build --spacing 1", "--spacing is '1'; write 3 numbers with commas between them"),
        ("build --spacing 0,1,1", "--spacing is (0.0, 1.0, 1.0); every spacing must be above"),
        ("build --shape 480,480", "--shape is '480,480'; write 3 numbers"),
        ("build --shape 1.5,2,2", "--shape is (1.5, 2.0, 2.0); it takes three whole numbers"),
        ("build --hu-window 5,1", "--hu-window is (5.0, 1.0); the first must be below"),
        ("build --layout WHD", "--layout is 'WHD'; it is one of HWD, DHW"),
        ("build --clip never", "--clip is 'never'; it is one of before, after"),
        ("convert --input-pattern {source} --intensity x", "--intensity is 'x'; it is one of"),
        ("build --hu-window nan,0", "--hu-window is (nan"),
        ("convert --input-pattern {source} --memory-limit 0", "'0' is less than a byte"),
        ("plan --memory-limit 0", "'0' is less than a byte"),
        ("plan --calibrate -1", "--calibrate is -1"),
        ("inspect {source} --num-samples 0", "--num-samples is 0"),
        ("inspect {source} --num-samples 99999999999999999999", "--num-samples is 9999"),
        ("verify {source} --num-samples 0", "--num-samples is '0'"),
        (f"verify {{source}} --num-samples {'9' * 5000}", "--num-samples is '9999"),
    ],
    ids=lambda text: text[:50],
)
def test_a_number_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, source: Path, command: str, sentence: str
) -> None:
    words = command.format(source=source).split()
    if words[0] in ("build", "convert"):
        words += ["--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    if words[0] in ("build", "plan"):
        words += ["--source", str(source)]
    result = run(*words)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("ctgpu: ")
    assert result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()


def test_ranges_include_both_ends() -> None:
    assert parse_range("3-7") == range(3, 8)
    assert parse_range("4") == range(4, 5)
