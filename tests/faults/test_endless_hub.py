"""Builds from a Hub that never comes to an end: a signal ends them at once, in one sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from scenarios import REPOSITORY, make_source, snapshot

from ctgpu.testing.hub import AnswerFault, Endpoint, Faults, LocalHub

SMALL = ("--shape", "90,90,50", "--spacing", "4,4,6", "--device", "cpu", "--num-workers", "1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    make_source(root, 3)
    return root


@pytest.fixture
def hub(source: Path) -> Iterator[LocalHub]:
    with LocalHub(source, redirect=True) as served:
        yield served


def begin(folder: Path, endpoint: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "ctgpu.cli", "build", "--output-dir", str(folder)),
            *("--repo-id", "local/ct-rate", *SMALL),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ
        | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1,localhost"}
        | environment,
    )


def end(process: subprocess.Popen[str], folder: Path, reached: Callable[[], bool]) -> None:
    """Stop a build once it waits where it is to wait, and see how it ends."""
    try:
        deadline = time.monotonic() + 60
        while not reached():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGTERM)
        # A silent server is borne with for 30 s; the process must not use that up.
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 143, errors
    said = [line for line in errors.splitlines() if line.startswith("ctgpu: ")]
    assert len(said) == 1, errors
    assert "stopped" in said[0]
    assert "Traceback" not in errors
    assert not list(folder.glob("*.lease.*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("endpoint", "fault"),
    [
        ("info", "continue"),
        ("info", "trickle_body"),
        ("tree", "trickle_head"),
        ("tree", "trickle_body"),
        ("resolve", "trickle_head"),
        ("cdn", "continue"),
    ],
)
def test_a_signal_ends_a_build_that_waits_for_an_answer_without_end(
    tmp_path: Path, hub: LocalHub, endpoint: Endpoint, fault: AnswerFault
) -> None:
    hub.faults.answers = {endpoint: [fault]}
    process = begin(tmp_path / "out", hub.url)
    end(process, tmp_path / "out", lambda: not hub.faults.answers[endpoint])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["continue", "trickle_head"])
def test_a_signal_ends_a_build_whose_workers_wait_for_a_volume(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, fault: AnswerFault
) -> None:
    waiting: list[Endpoint] = []

    def at_the_second_volume(endpoint: Endpoint) -> AnswerFault | None:
        if endpoint != "cdn" or waiting or "valid_2_a_1.nii.gz" not in hub.requests[-1].path:
            return None
        waiting.append(endpoint)
        return fault

    monkeypatch.setattr(hub, "next_answer_fault", at_the_second_volume)
    folder = tmp_path / "out"
    process = begin(folder, hub.url)
    end(process, folder, lambda: len(waiting) > 0)
    again = begin(folder, hub.url)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    undisturbed = begin(tmp_path / "undisturbed", hub.url)
    assert undisturbed.wait(60) == 0, undisturbed.communicate()
    undisturbed.communicate()
    assert snapshot(folder) == snapshot(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        Faults(rate_limit='"api";r=0;t=999999999'),
        Faults(rate_limit_policy='"fixed window";"api";q=1;w=999999999'),
        Faults(statuses={"info": [429] * 9}, retry_after="999999999"),
    ],
    ids=["pause", "pace", "retry"],
)
def test_a_signal_ends_a_build_that_keeps_to_a_quota(
    tmp_path: Path, hub: LocalHub, faults: Faults
) -> None:
    hub.faults = faults
    process = begin(tmp_path / "out", hub.url)
    end(process, tmp_path / "out", lambda: len(hub.requests) > 0)


@pytest.mark.slow
def test_a_signal_ends_a_build_whose_listing_goes_on_and_on(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = hub._server.RequestHandlerClass.do_GET  # type: ignore[attr-defined]
    pages: list[str] = []

    def do_get(handler: Any) -> None:
        if "/tree/" not in handler.path:
            usual(handler)
            return
        pages.append(handler.path)
        time.sleep(0.01)
        text = f'[{{"type": "file", "path": "{len(pages)}.npz", "size": 1}}]'
        handler.send_response(200)
        handler.send_header("Link", f'<{hub.url}/tree/{len(pages)}>; rel="next"')
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text.encode())

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)
    process = begin(tmp_path / "out", hub.url)
    end(process, tmp_path / "out", lambda: len(pages) > 30)


@contextmanager
def silent(beginning: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers every connection with a beginning, and what it has heard."""
    heard: list[bytes] = []
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    kept.append(connection)
                    heard.append(connection.recv(1 << 16))
                    connection.sendall(beginning)

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], heard
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


@pytest.mark.slow
def test_a_signal_ends_a_build_whose_handshake_gets_no_answer(tmp_path: Path) -> None:
    with silent(b"") as (port, heard):
        process = begin(tmp_path / "out", f"https://127.0.0.1:{port}")
        end(process, tmp_path / "out", lambda: len(heard) > 0)


@pytest.mark.slow
def test_a_signal_ends_a_build_whose_proxy_never_ends_its_answer(tmp_path: Path) -> None:
    with silent(b"HTTP/1.1 200 OK\r\nX-Slow: ") as (port, heard):
        process = begin(tmp_path / "out", "https://hub.invalid", https_proxy=f"127.0.0.1:{port}")
        end(process, tmp_path / "out", lambda: len(heard) > 0)
    assert heard[0].startswith(b"CONNECT hub.invalid:443 ")
