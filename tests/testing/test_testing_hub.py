"""The local Hub, as ``huggingface_hub`` itself sees it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from hub_cases import FILE, TOKEN, get
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ctgpu.testing.hub import LocalHub


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


def test_ranges(hub: LocalHub) -> None:
    content = (hub.root / FILE).read_bytes()
    response, body = get(hub, Range="bytes=99000-")
    assert (response.status, body) == (206, content[99000:])
    assert response.headers["Content-Range"] == "bytes 99000-99999/100000"
    assert get(hub, Range="bytes=100000-")[0].status == 416
    hub.faults.ignore_range = True
    response, body = get(hub, Range="bytes=99000-")
    assert (response.status, body) == (200, content)


def test_an_older_commit_stays_served(hub: LocalHub, api: HfApi) -> None:
    old = hub.head
    (hub.root / "new.npz").write_bytes(b"new")
    new = hub.commit()
    assert api.dataset_info(hub.repo_id).sha == new != old
    assert api.dataset_info(hub.repo_id, revision=old).sha == old
    names = [e.path for e in api.list_repo_tree(hub.repo_id, repo_type="dataset", revision=old)]
    assert "new.npz" not in names


@pytest.mark.slow
def test_it_runs_in_a_process_of_its_own(hub: LocalHub) -> None:
    command = [sys.executable, "-m", "ctgpu.testing.hub", str(hub.root), "--repo-id", "a/b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert urlsplit(url).hostname == "127.0.0.1"
        with urlopen(f"{url}/datasets/a/b/resolve/main/README.md") as answer:
            assert answer.read() == b"card"
        process.terminate()
