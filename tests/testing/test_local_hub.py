"""The local Hub, as ``huggingface_hub`` itself sees it."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ctgpu.testing.hub import LocalHub, Request

FILE = "dataset/valid_fixed/valid_1/valid_1_a_1.npz"
TOKEN = "hf_secret"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    root = tmp_path / "root"
    (root / FILE).parent.mkdir(parents=True)
    (root / FILE).write_bytes(os.urandom(100_000))
    (root / "dataset" / "valid_fixed" / "b c.npz").write_bytes(b"abc")
    (root / "README.md").write_text("card")
    with LocalHub(root, token=TOKEN) as served:
        yield served


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.url)


def test_dataset_info_names_the_commit(hub: LocalHub, api: HfApi) -> None:
    assert api.dataset_info(hub.repo_id).sha == hub.head
    assert api.dataset_info(hub.repo_id, revision=hub.head).sha == hub.head
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(hub.repo_id, revision="v2")


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_list_repo_tree_pages_recursively(hub: LocalHub, api: HfApi, page_size: int) -> None:
    hub.page_size = page_size
    entries = list(
        api.list_repo_tree(hub.repo_id, "dataset/valid_fixed", repo_type="dataset", recursive=True)
    )
    files = {e.path: e for e in entries if hasattr(e, "size")}
    assert set(files) == {FILE, "dataset/valid_fixed/b c.npz"}
    assert {e.path for e in entries} - set(files) == {"dataset/valid_fixed/valid_1"}
    content = (hub.root / FILE).read_bytes()
    assert files[FILE].lfs.sha256 == hashlib.sha256(content).hexdigest()
    assert files[FILE].size == len(content)


def test_list_repo_tree_of_the_top_alone(hub: LocalHub, api: HfApi) -> None:
    entries = api.list_repo_tree(hub.repo_id, repo_type="dataset")
    assert {e.path for e in entries} == {"README.md", "dataset"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(hub.repo_id, "nowhere", repo_type="dataset"))


@pytest.mark.parametrize("redirect", [False, True])
@pytest.mark.parametrize("name", [FILE, "dataset/valid_fixed/b c.npz"])
def test_hf_hub_download_gets_the_bytes(
    hub: LocalHub, tmp_path: Path, redirect: bool, name: str
) -> None:
    hub.redirect = redirect
    path = hf_hub_download(
        hub.repo_id, name, repo_type="dataset", endpoint=hub.url, cache_dir=tmp_path / "cache"
    )
    assert Path(path).read_bytes() == (hub.root / name).read_bytes()
    assert hub.head in path
    assert {r.token for r in hub.requests if r.endpoint == "resolve"} == {TOKEN}
    assert {r.token for r in hub.requests if r.endpoint == "cdn"} <= {None}
    assert hub.count("cdn") == redirect


def test_refusals_map_to_the_library_errors(hub: LocalHub, api: HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("no/such")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(hub.repo_id, "nothing", repo_type="dataset", endpoint=hub.url)
    hub.gated = True
    with pytest.raises(GatedRepoError):
        api.dataset_info(hub.repo_id)
    hub.token = "hf_another"
    with pytest.raises(HfHubHTTPError):
        api.dataset_info(hub.repo_id)


def get(hub: LocalHub, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=5)
    try:
        address = f"/datasets/{hub.repo_id}/resolve/main/{FILE}"
        connection.request("GET", address, headers={"Authorization": f"Bearer {TOKEN}", **headers})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_ranges(hub: LocalHub) -> None:
    content = (hub.root / FILE).read_bytes()
    response, body = get(hub, Range="bytes=99000-")
    assert (response.status, body) == (206, content[99000:])
    assert response.headers["Content-Range"] == "bytes 99000-99999/100000"
    assert get(hub, Range="bytes=100000-")[0].status == 416
    hub.faults.ignore_range = True
    response, body = get(hub, Range="bytes=99000-")
    assert (response.status, body) == (200, content)


def test_faults_of_a_body(hub: LocalHub) -> None:
    content = (hub.root / FILE).read_bytes()
    hub.faults.bodies = ["flip", "truncate", "reset"]
    flipped = get(hub)[1]
    assert sum(a != b for a, b in zip(flipped, content, strict=True)) == 1
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(hub)
    assert caught.value.partial == content[:50_000]
    with pytest.raises(ConnectionResetError):
        get(hub)
    assert get(hub)[1] == content


def test_answers_that_never_end(hub: LocalHub) -> None:
    api, file = f"/api/datasets/{hub.repo_id}", f"/datasets/{hub.repo_id}/resolve/main/{FILE}"
    hub.redirect = True
    hub.faults.answers = {
        "info": ["continue", "trickle_head", "trickle_body"],
        "resolve": ["trickle_body"],
    }
    for path, beginning, piece in (
        (api, b"HTTP/1.1 ", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (api, b"X-Slow: ", b"-"),
        (api, b"\r\n\r\n", b" "),
        (file, b"\r\n\r\n", b" "),
    ):
        seen = b""
        with socket.create_connection(("127.0.0.1", hub.port), timeout=10) as connection:
            head = f"GET {path} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            connection.sendall(head.encode())
            while seen.partition(beginning)[2].count(piece) < 3:
                received = connection.recv(1 << 16)
                assert received
                seen += received
        assert (b"Content-Length: 10000" in seen) == (beginning == b"\r\n\r\n")
        assert (b"Location: " in seen) == (path == file)
    assert not any(hub.faults.answers.values())
    assert get(hub)[0].status == 302


def test_statuses_and_their_headers(hub: LocalHub) -> None:
    hub.faults.statuses = {"resolve": [429, 200, 503]}
    hub.faults.retry_after, hub.faults.rate_limit = "7", '"resolvers";r=0;t=9'
    hub.faults.rate_limit_policy = '"fixed window";"resolvers";q=3000;w=300'
    seen = [get(hub)[0] for _ in range(3)]
    assert [r.status for r in seen] == [429, 200, 503]
    assert [r.headers["Retry-After"] for r in seen] == ["7", None, "7"]
    assert {r.headers["RateLimit"] for r in seen} == {'"resolvers";r=0;t=9'}
    assert all("q=3000" in r.headers["RateLimit-Policy"] for r in seen)


def test_the_failure_rate_is_kept_and_the_seed_decides(hub: LocalHub) -> None:
    hub.faults.failure_rate = 0.3

    def outcomes() -> list[str]:
        hub._seen.clear()
        request = Request("resolve", FILE, 0, TOKEN)
        return ["{} {}".format(*hub.next_fault(request)) for _ in range(200)]

    first = outcomes()
    failed = sum(outcome != "200 None" for outcome in first)
    assert 35 <= failed <= 85
    assert {"429 None", "0 None", "200 truncate", "200 stall", "200 flip"} <= set(first)
    assert outcomes() == first
    hub.faults.seed = 1
    assert outcomes() != first


def test_an_older_commit_stays_served(hub: LocalHub, api: HfApi) -> None:
    old = hub.head
    (hub.root / "new.npz").write_bytes(b"new")
    new = hub.commit()
    assert api.dataset_info(hub.repo_id).sha == new != old
    assert api.dataset_info(hub.repo_id, revision=old).sha == old
    names = [e.path for e in api.list_repo_tree(hub.repo_id, repo_type="dataset", revision=old)]
    assert "new.npz" not in names


def test_it_runs_in_a_process_of_its_own(hub: LocalHub) -> None:
    command = [sys.executable, "-m", "ctgpu.testing.hub", str(hub.root), "--repo-id", "a/b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert urlsplit(url).hostname == "127.0.0.1"
        with urlopen(f"{url}/datasets/a/b/resolve/main/README.md") as answer:
            assert answer.read() == b"card"
        process.terminate()
