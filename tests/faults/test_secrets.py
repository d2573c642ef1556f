"""The token is in nothing that a build leaves, prints, logs or raises, and in no process title."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios import REPOSITORY, SPEC, make_source, quick_patience

import ctgpu
from ctgpu.building.events import Event
from ctgpu.building.request import Request
from ctgpu.errors import AccessError, CtgpuError, SourceError
from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import Faults, LocalHub

TOKEN = "hf_a-secret-of-nobody"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    make_source(tmp_path / "source", 8)
    with LocalHub(tmp_path / "source", token=TOKEN, redirect=True) as served:
        yield served


def command(hub: LocalHub, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """``ctgpu build`` with the token in its environment, at its most talkative."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "ctgpu.cli", "build", "--output-dir", str(folder)),
            *("--repo-id", hub.repo_id, "--device", "cpu", "--shape", "90,90,50"),
            *("--num-workers", "1", "--debug", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_that_a_build_prints_or_writes_holds_the_token(
    tmp_path: Path, hub: LocalHub, log_format: str
) -> None:
    hub.faults = Faults(bodies=["truncate", "reset"], expired_redirects=1, seed=3)
    process = command(hub, tmp_path / "out", "--log-format", log_format)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 0, output
    assert TOKEN not in output
    assert {request.token for request in hub.requests if request.endpoint != "cdn"} == {TOKEN}
    files = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert len(files) >= 6
    assert [path.name for path in files if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc")
def test_the_process_title_does_not_hold_the_token(tmp_path: Path, hub: LocalHub) -> None:
    process = command(hub, tmp_path / "out")
    try:
        while len(hub.requests) < 3:
            assert process.poll() is None
            time.sleep(0.001)
        proc = Path(f"/proc/{process.pid}")
        titles = [(proc / "cmdline").read_bytes()]
        titles += [(task / "comm").read_bytes() for task in (proc / "task").iterdir()]
        assert not any(TOKEN.encode() in title for title in titles)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_token_that_is_revoked_midway_is_not_in_the_error(tmp_path: Path, hub: LocalHub) -> None:
    process = command(hub, tmp_path / "out")
    while not any(request.path.endswith(".gz") for request in hub.requests):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    # A client that loses the connection now comes back, half a second later, with a token that is
    # no longer good.
    hub.faults.bodies = ["truncate"]
    while hub.faults.bodies:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    hub.token = "another"
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 3, output
    assert "refused the token (401)" in output
    assert TOKEN not in output
    hub.token = TOKEN
    again = command(hub, tmp_path / "out")
    assert TOKEN not in "".join(again.communicate(timeout=60))
    assert again.returncode == 0


@pytest.mark.parametrize("kind", ["revoked", "gated", "gone", "broken"])
def test_no_error_holds_the_token(
    tmp_path: Path, hub: LocalHub, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint, wanted = hub.url, AccessError
    if kind == "revoked":
        hub.token = "another"
    elif kind == "gated":
        hub.gated = True
    elif kind == "gone":
        endpoint, wanted = "http://127.0.0.1:9", SourceError
    else:
        hub.faults.failure_rate, wanted = 1.0, SourceError
    with quick_patience(), pytest.raises(CtgpuError) as caught:
        ctgpu.build(
            tmp_path / "out",
            repo_id=hub.repo_id,
            endpoint=endpoint,
            token=TOKEN,
            spec=SPEC,
            device="cpu",
        )
    assert isinstance(caught.value, wanted)
    shown = "".join(traceback.TracebackException.from_exception(caught.value).format())
    assert TOKEN not in shown
    assert TOKEN not in repr(caught.value.__dict__)
    assert TOKEN not in caplog.text


def test_events_requests_and_sources_do_not_show_the_token(tmp_path: Path, hub: LocalHub) -> None:
    events: list[Event] = []
    ctgpu.build(
        tmp_path / "out",
        repo_id=hub.repo_id,
        endpoint=hub.url,
        token=TOKEN,
        spec=SPEC,
        device="cpu",
        watch=events.append,
    )
    assert events
    assert TOKEN.encode() not in pickle.dumps(events)
    assert TOKEN not in repr(Request(token=TOKEN))
    source = HubSource(hub.repo_id, token=TOKEN, endpoint=hub.url)
    assert TOKEN not in repr(source)
    assert TOKEN not in repr(source.identity())
    source.close()
