"""Which Ray cluster a build takes, and what it says where it can have none."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from driving import SMALL, RayCluster, StartedRay, begin, finish
from scenarios import snapshot

from ctgpu.distribute import ray_cluster
from ctgpu.errors import EnvironmentFailure
from ctgpu.installation import install_command

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

STARTED = "no cluster was running, so one was started on this machine"


@pytest.mark.slow
def test_a_cluster_is_started_where_ray_start_has_made_none(
    tmp_path: Path, source: Path, undisturbed: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    with RayCluster(1):  # a program's own, and ends with that
        log = finish(begin("--output-dir", folder, "--source", source, *SMALL, "--ray"))
    assert STARTED in log
    assert "is gone" not in log
    assert snapshot(folder) == undisturbed


def test_a_cluster_is_started_where_ray_is_told_to_find_one_and_finds_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str | None] = []

    def init(address: str | None, **_: object) -> None:
        asked.append(address)
        if address is None:  # as Ray does with RAY_ADDRESS=auto
            raise ConnectionError("Could not find any running Ray instance.")

    import ray

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", init)
    ray_cluster.connect(ray, "auto")
    assert asked == [None, "local"]


#: ``ctgpu`` that waits less long for a cluster which is known to be gone.
IMPATIENT = (
    "-c",
    "from ctgpu.distribute import ray_cluster; ray_cluster._JOIN_S = 3.0\n"
    "from ctgpu.cli import main; main()",
)


@pytest.mark.slow
def test_the_cluster_that_ray_start_made_is_joined_and_replaced_once_it_is_gone(
    tmp_path: Path, source: Path, undisturbed: dict[str, Any]
) -> None:
    arguments = ("--source", source, *SMALL, "--ray")
    with StartedRay(cpus=3) as started:
        # Empty is not set, as Ray takes it.
        for folder, stated in (("found", ""), ("named", started.address)):
            log = finish(begin("--output-dir", tmp_path / folder, *arguments, RAY_ADDRESS=stated))
            assert "Ray: 1 node, 3 tasks at a time" in log
            assert STARTED not in log
            assert snapshot(tmp_path / folder) == undisturbed
        started.kill()
    log = finish(begin("--output-dir", tmp_path / "gone", *arguments, program=IMPATIENT))
    assert "the cluster last started on this machine is gone" in log
    assert STARTED in log
    assert snapshot(tmp_path / "gone") == undisturbed


@pytest.mark.slow
def test_what_answers_and_is_no_ray_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_JOIN_S", 5.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(EnvironmentFailure, match="no Ray answers there within 5 seconds"),
    ):
        ray_cluster.connect(ray_cluster.import_ray(), f"127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.parametrize(
    ("last_words", "reason"),
    [
        ("x\nray.exceptions.AuthenticationError: x\nConnectionError: x", "set RAY_AUTH_MODE=token"),
        ("Traceback\nRuntimeError: Version mismatch", "(RuntimeError: Version mismatch)"),
        ("", "(exit status 1)"),
    ],
)
def test_why_a_cluster_does_not_let_in_is_said(
    monkeypatch: pytest.MonkeyPatch, last_words: str, reason: str
) -> None:
    monkeypatch.setattr(ray_cluster, "_PROBE", f"import sys; sys.exit({last_words!r} or 1)")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(EnvironmentFailure, match=re.escape(reason)),
    ):
        ray_cluster.connect(ray_cluster.import_ray(), f"127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.slow
def test_a_cluster_that_cannot_be_started_is_one_sentence(tmp_path: Path, source: Path) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    log = finish(
        begin(
            *("--output-dir", tmp_path / "out", "--source", source, "--ray"), RAY_TMPDIR=str(deep)
        ),
        3,
    )
    assert "Ray cannot start a cluster on this machine (" in log
    assert "None" not in log
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("localhost:9", 3, "nothing answers there"),
        ("x" * 80 + ":6379", 3, "nothing answers there"),
        ("ray://localhost:10001", 2, "it takes HOST:PORT"),
        ("somewhere", 2, "it takes HOST:PORT"),
        ("localhost:99999", 2, "it takes HOST:PORT"),
        ("localhost:²", 2, "it takes HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, source: Path, address: str, code: int, words: str
) -> None:
    log = finish(
        begin("--output-dir", tmp_path / "out", "--source", source, "--ray", address), code
    )
    assert words in log
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_address_of_the_environment_is_named_as_that(tmp_path: Path, source: Path) -> None:
    arguments = ("--output-dir", tmp_path / "out", "--source", source, "--ray")
    assert "RAY_ADDRESS is 'ray://x:1'" in finish(begin(*arguments, RAY_ADDRESS="ray://x:1"), 2)


@pytest.mark.slow
def test_a_named_cluster_that_is_gone_is_not_replaced(tmp_path: Path, source: Path) -> None:
    log = finish(
        begin(
            *("--output-dir", tmp_path / "out", "--source", source, "--ray"),
            RAY_ADDRESS="localhost:9",
        ),
        3,
    )
    assert "localhost:9" in log
    assert "nothing answers there" in log


@pytest.mark.slow
def test_without_ray_the_option_says_how_to_get_it(tmp_path: Path, source: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('no ray')\n")
    log = finish(
        begin(
            *("--output-dir", tmp_path / "out", "--source", source, "--ray"),
            PYTHONPATH=str(tmp_path),
        ),
        3,
    )
    assert install_command("ray") in log
