"""A data set on the Hub: its volumes, pinned to one commit, and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from source_cases import (
    FOLDER,
    QUICK,
    TOKEN,
    VOLUME_BYTES,
    Open,
    answer_with,
    fetch,
    file_name,
    first,
    random_bytes,
)

from ctgpu.errors import FetchError, SourceError, UsageError
from ctgpu.sources import open_source
from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import LocalHub
from ctgpu.volume.ref import SampleRef


def test_lists_only_the_split_with_sizes_and_checksums(hub: LocalHub, open_hub: Open) -> None:
    hub.page_size = 2
    refs = open_hub().list_volumes("valid")
    names = [f"valid_{n}_a_1.nii.gz" for n in (1, 2, 10)]
    assert [file_name(ref) for ref in refs] == names
    assert [ref.size_bytes for ref in refs] == [VOLUME_BYTES] * 3
    assert [ref.checksum for ref in refs] == [
        "sha256:" + hashlib.sha256(random_bytes(name)).hexdigest() for name in names
    ]
    assert {ref.provenance for ref in refs} == {"fixed"}
    assert hub.count("tree") == 5  # nine entries, folders included, two on a page
    assert {r.path for r in hub.requests if r.endpoint == "tree"} == {FOLDER}


def test_falls_back_to_v1_where_there_is_no_fixed_folder(
    hub: LocalHub, open_hub: Open, tree: Path
) -> None:
    folder = tree / "dataset" / "train" / "train_1"
    folder.mkdir(parents=True)
    (folder / "train_1_a_1.npz").write_bytes(b"x")
    (folder / ".hidden.npz").write_bytes(b"x")
    hub.commit()
    assert [(r.path, r.provenance) for r in open_hub().list_volumes("train")] == [
        ("dataset/train/train_1/train_1_a_1.npz", "v1")
    ]


def test_a_split_that_is_not_there_is_a_usage_error(open_hub: Open) -> None:
    with pytest.raises(UsageError, match=r"no volume of the split 'train'.*train_fixed"):
        open_hub().list_volumes("train")


@pytest.mark.parametrize("redirect", [False, True])
def test_fetches_the_exact_bytes(hub: LocalHub, open_hub: Open, redirect: bool) -> None:
    hub.redirect = redirect
    source = open_hub()
    for ref in source.list_volumes("valid"):
        assert fetch(source, ref) == random_bytes(file_name(ref))


def test_pins_the_commit_that_main_was(hub: LocalHub, open_hub: Open, tree: Path) -> None:
    source, old = open_hub(), hub.head
    assert source.identity() == {"kind": "hub", "location": hub.repo_id, "revision": old}
    refs = source.list_volumes("valid")
    (tree / FOLDER / "valid_11_a_1.npz").write_bytes(b"new")
    new = hub.commit()
    assert source.list_volumes("valid") == refs
    assert open_hub().identity()["revision"] == new
    pinned = open_hub(old)
    before = len(hub.requests)
    assert pinned.identity()["revision"] == old
    assert len(hub.requests) == before  # a whole hash needs no request
    assert pinned.list_volumes("valid") == refs


def test_a_revision_that_is_not_there_is_a_usage_error(open_hub: Open) -> None:
    with pytest.raises(UsageError, match="no revision 'v9'"):
        _ = open_hub("v9").commit


def test_tables_come_as_bytes_or_not_at_all(open_hub: Open) -> None:
    source = open_hub()
    name = "dataset/metadata/validation_metadata.csv"
    assert source.read_table("nowhere.csv", name) == (name, b"VolumeName\n")
    assert source.read_table("nowhere.csv") is None


def test_endpoint_and_token_come_from_the_environment_when_constructed(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    source = open_source(repo_id=hub.repo_id)
    assert source.identity()["revision"] == hub.head
    assert {request.token for request in hub.requests} == {TOKEN}
    source.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("<html>log in to the network</html>", "not JSON"),
        ("[]", "named no commit"),
        ('{"sha": "../../x"}', "named no commit"),
    ],
)
def test_an_answer_that_is_not_the_hubs_is_a_source_error(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch, answer: str, message: str
) -> None:
    answer_with(hub, monkeypatch, answer)
    with pytest.raises(SourceError, match=message):
        _ = open_hub().commit


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("{}", "no listing"),
        ("[1]", "no listing"),
        ('[{"type": "file", "path": "dataset/valid_fixed/a.npz"}]', "without a size"),
        ('[{"type": "file", "path": "dataset/valid_fixed/a.npz", "size": -1}]', "without a size"),
        (
            '[{"type": "file", "path": "dataset/valid_fixed/a.npz", "size": 1, "lfs": 7}]',
            "without a size",
        ),
        (
            '[{"type": "file", "path": "dataset/valid_fixed/a.npz", "size": Infinity}]',
            "without a size",
        ),
    ],
)
def test_a_listing_that_is_none_is_a_source_error(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch, answer: str, message: str
) -> None:
    source = open_hub(hub.head)
    answer_with(hub, monkeypatch, answer)
    with pytest.raises(SourceError, match=message):
        source.list_volumes("valid")


def test_a_file_that_left_the_repository_is_not_asked_for_twice(
    hub: LocalHub, open_hub: Open
) -> None:
    source = open_hub()
    with pytest.raises(FetchError, match=r"not in local/ct-rate.*EntryNotFound"):
        fetch(source, SampleRef.of_file("dataset/valid_fixed/nothing.npz", 5))
    assert hub.count("resolve") == 1


def test_a_hub_that_goes_away_is_a_source_error(tree: Path) -> None:
    with LocalHub(tree) as hub:
        source = HubSource(hub.repo_id, endpoint=hub.url, patience=QUICK)
        ref = first(source)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1 cannot be used.*resumes"):
        fetch(source, ref)
    source.close()


def test_nobody_listening_is_a_source_error_in_one_sentence(tree: Path) -> None:
    with LocalHub(tree) as hub:
        url = hub.url
    with pytest.raises(SourceError, match="connection refused; check the network"):
        HubSource("local/ct-rate", endpoint=url, patience=QUICK).list_volumes("valid")


def test_a_name_that_does_not_resolve_is_a_source_error() -> None:
    source = HubSource("a/b", endpoint="http://no-such-host.invalid", patience=QUICK)
    with pytest.raises(SourceError, match="the name cannot be resolved"):
        _ = source.commit


def test_hf_hub_offline_is_refused_before_any_request(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set.*--source"):
        open_hub()
    assert not hub.requests


def test_a_bad_repository_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="wanted OWNER/NAME"):
        HubSource("not a name")


@pytest.mark.slow
def test_importing_the_package_imports_no_hub_library() -> None:
    code = (
        "import sys, ctgpu, ctgpu.sources, ctgpu.sources.hub.source;"
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
