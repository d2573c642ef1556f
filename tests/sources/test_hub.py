"""The Hub client against a server that misbehaves in every way we know."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from source_cases import (
    FOLDER,
    QUICK,
    VOLUME_BYTES,
    answer_with,
    fetch,
    file_name,
    first,
    random_bytes,
)

from ctgpu.buffers import BufferPool
from ctgpu.errors import AccessError, CtgpuError, FetchError, SourceError, StorageError, UsageError
from ctgpu.sources import open_source
from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import BodyFault, Faults, LocalHub
from ctgpu.volume.ref import SampleRef

TOKEN = "hf_a-secret-of-nobody"
Open = Callable[..., HubSource]


def starts(hub: LocalHub) -> list[int]:
    return [r.start for r in hub.requests if r.endpoint in ("resolve", "cdn")]


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


def test_one_connection_serves_many_requests(hub: LocalHub, open_hub: Open) -> None:
    accepted = []
    take = hub._server.get_request
    hub._server.get_request = lambda: accepted.append(1) or take()  # type: ignore[method-assign]
    source = open_hub()
    for ref in source.list_volumes("valid") * 3:
        fetch(source, ref)
    assert hub.count("resolve") == 9
    assert len(accepted) == 1


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


# --- what is tried again ---------------------------------------------------------------------


@pytest.mark.parametrize("redirect", [False, True])
@pytest.mark.parametrize("fault", ["truncate", "reset", "stall", "trickle"])
def test_a_broken_transfer_goes_on_where_it_broke(
    hub: LocalHub, open_hub: Open, fault: BodyFault, redirect: bool
) -> None:
    hub.redirect = redirect
    source = open_hub()
    ref = first(source)
    hub.faults.bodies = [fault, fault]
    assert fetch(source, ref) == random_bytes(file_name(ref))
    assert hub.count("resolve") == 3
    if fault != "reset":  # which may overtake bytes that were sent before it
        resumed = starts(hub)[2:] if redirect else starts(hub)[1:]
        assert all(VOLUME_BYTES // 2 <= start < VOLUME_BYTES for start in resumed)


def test_what_breaks_off_often_but_moves_on_is_not_given_up(
    hub: LocalHub, open_hub: Open, tree: Path
) -> None:
    name = "valid_0_a_1.npz"
    (tree / FOLDER / name).write_bytes(random_bytes(name, 6 << 20))
    hub.commit()
    source = open_hub(patience=replace(QUICK, attempts=3))
    ref = first(source)
    hub.faults.bodies = ["truncate"] * 3  # 3, then 1.5, then 0.75 MiB come in
    assert fetch(source, ref) == random_bytes(name, 6 << 20)


def test_what_hardly_moves_is_given_up(hub: LocalHub, open_hub: Open) -> None:
    source = open_hub()
    ref = first(source)
    hub.faults.bodies = ["truncate"] * 20
    with pytest.raises(FetchError, match=r"ended after \d+ of 300000 bytes.*--retry-failed"):
        fetch(source, ref)
    assert hub.count("resolve") == QUICK.attempts


def test_a_server_that_ignores_range_sends_all_again(hub: LocalHub, open_hub: Open) -> None:
    source = open_hub()
    ref = first(source)
    hub.faults = Faults(bodies=["truncate"], ignore_range=True)
    assert fetch(source, ref) == random_bytes(file_name(ref))
    assert starts(hub) == [0, VOLUME_BYTES // 2]


def test_a_flipped_bit_is_found_and_fetched_again(hub: LocalHub, open_hub: Open) -> None:
    source = open_hub()
    ref = first(source)
    hub.faults.bodies = ["flip"]
    assert fetch(source, ref) == random_bytes(file_name(ref))
    assert starts(hub) == [0, 0]


def test_a_checksum_that_never_fits_fails_the_sample(hub: LocalHub, open_hub: Open) -> None:
    source = open_hub()
    wrong = replace(first(source), checksum="sha256:" + "0" * 64)
    with pytest.raises(FetchError, match=r"sha256 is not the one.*--retry-failed"):
        fetch(source, wrong)
    assert hub.count("resolve") == QUICK.attempts


def test_a_size_that_is_not_the_listed_one_fails_the_sample(open_hub: Open) -> None:
    source = open_hub()
    ref = first(source)
    for size in (ref.size_bytes - 1, ref.size_bytes + 1):
        with pytest.raises(FetchError, match=f"announced {VOLUME_BYTES} bytes where {size}"):
            fetch(source, replace(ref, size_bytes=size))


def test_an_expired_redirect_is_resolved_again(hub: LocalHub, open_hub: Open) -> None:
    hub.redirect = True
    source = open_hub()
    ref = first(source)
    hub.faults.expired_redirects = 2
    assert fetch(source, ref) == random_bytes(file_name(ref))
    assert (hub.count("resolve"), hub.count("cdn")) == (3, 3)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_statuses_are_tried_again_everywhere(
    hub: LocalHub, open_hub: Open, status: int
) -> None:
    hub.redirect = True
    hub.faults.statuses = {name: [status] for name in ("info", "tree", "resolve", "cdn")}
    source = open_hub()
    ref = first(source)
    assert fetch(source, ref) == random_bytes(file_name(ref))
    assert not any(hub.faults.statuses.values())


def on_fake_time(source: HubSource, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets waits pass at once; the list they are noted in."""
    slept: list[float] = []
    client = source._client
    monkeypatch.setattr(client, "_sleep", slept.append)
    for quota in client._quotas.values():
        monkeypatch.setattr(quota, "_clock", lambda: time.monotonic() + sum(slept))
    return slept


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    source = open_hub()
    ref = first(source)
    slept = on_fake_time(source, monkeypatch)
    hub.faults = Faults(statuses={"resolve": [status]}, retry_after="70")
    fetch(source, ref)
    assert sum(slept) == pytest.approx(70, abs=5)


@pytest.mark.parametrize("stated", ["864000", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_retry_after_of_days_is_not_obeyed(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch, stated: str
) -> None:
    source = open_hub()
    ref = first(source)
    slept = on_fake_time(source, monkeypatch)
    hub.faults = Faults(statuses={"resolve": [503]}, retry_after=stated)
    fetch(source, ref)
    assert slept == [600]


@pytest.mark.parametrize(
    "faults",
    [
        Faults(rate_limit='"resolvers";r=0;t=999999999'),
        Faults(rate_limit=f'"resolvers";r=0;t={"9" * 5000}'),
        Faults(rate_limit_policy='"fixed window";"resolvers";q=1;w=999999999'),
        Faults(rate_limit_policy=f'"fixed window";"resolvers";q=1;w={"9" * 5000}'),
    ],
    ids=["pause", "pause of many digits", "pace", "pace of many digits"],
)
def test_a_rate_limit_of_years_is_not_obeyed(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    source = open_hub()
    ref = first(source)
    slept = on_fake_time(source, monkeypatch)
    hub.faults = faults
    for _ in range(4):
        before = sum(slept)
        fetch(source, ref)
        assert sum(slept) - before < 605
    assert sum(slept) > 500


def test_rate_limit_with_nothing_left_holds_all_requests(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_hub()
    ref = first(source)
    slept = on_fake_time(source, monkeypatch)
    hub.faults = Faults(rate_limit='"resolvers";r=0;t=55')
    fetch(source, ref)
    assert not slept
    fetch(source, ref)
    assert sum(slept) == pytest.approx(56, abs=5)


def test_the_quota_is_that_of_the_account() -> None:
    for token, part_count, requests in (
        (False, 1, (500, 3000)),
        (TOKEN, 1, (1000, 5000)),
        (TOKEN, 4, (250, 1250)),
    ):
        source = HubSource("a/b", token=token, part_count=part_count)
        quotas = source._client._quotas
        per_window = tuple(300 / quotas[name]._interval_s / 0.9 for name in ("api", "resolve"))
        assert per_window == pytest.approx(requests)


def test_every_worker_gets_its_file_when_a_third_of_all_requests_fail(tree: Path) -> None:
    for number in range(20, 40):
        name = f"valid_{number}_a_1.nii.gz"
        (tree / FOLDER / name).write_bytes(random_bytes(name, 20_000))
    patience = replace(QUICK, attempts=12, stall_s=0.1, slowest_bytes_per_s=200_000.0)
    faults = Faults(failure_rate=0.3, seed=1)
    with LocalHub(tree, redirect=True, page_size=7, faults=faults) as hub:
        source = HubSource(hub.repo_id, endpoint=hub.url, patience=patience)
        refs = source.list_volumes("valid")
        assert len(refs) == 23
        pool = BufferPool()
        with ThreadPoolExecutor(8) as workers:
            got = list(workers.map(lambda ref: fetch(source, ref, pool), refs))
        source.close()
    assert got == [random_bytes(file_name(ref), ref.size_bytes) for ref in refs]


def test_a_proxy_is_used_unless_the_host_is_exempt(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The local Hub takes absolute addresses, as a proxy does.
    monkeypatch.setenv("http_proxy", hub.url.replace("//", "//user:word@"))
    monkeypatch.setenv("no_proxy", "elsewhere")
    source = open_hub(endpoint="http://hub.invalid")
    ref = first(source)
    assert fetch(source, ref) == random_bytes(file_name(ref))
    monkeypatch.setenv("no_proxy", "hub.invalid")
    with pytest.raises(SourceError, match="cannot be resolved"):
        first(open_hub(endpoint="http://hub.invalid"))


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


def test_bodies_without_a_length_are_read_too(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_hub()
    ref = first(source)
    content = random_bytes(file_name(ref))

    def do_get(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(content), 70_000):
            piece = content[start : start + 70_000]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)
    for _ in range(2):
        assert fetch(source, ref) == content


# --- what is given up, and how it is said ----------------------------------------------------


def test_one_bad_file_is_its_own_failure(hub: LocalHub, open_hub: Open) -> None:
    source = open_hub()
    ref = first(source)
    hub.faults.statuses = {"resolve": [500] * QUICK.attempts}
    pool = BufferPool()
    with pytest.raises(FetchError, match=r"answered 500.*--retry-failed"):
        source.fetch(ref, pool.acquire)
    assert pool.lent_bytes == 0
    assert fetch(source, ref) == random_bytes(file_name(ref))


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


def test_gated_names_the_page_to_accept_the_terms_on(hub: LocalHub, open_hub: Open) -> None:
    hub.token, hub.gated = TOKEN, True
    page = "https://huggingface.co/datasets/local/ct-rate"
    with pytest.raises(AccessError, match=f"accept them on {page}"):
        _ = open_hub(token=TOKEN).commit
    with pytest.raises(AccessError, match=f"HF_TOKEN or run `hf auth login`.*{page}"):
        _ = open_hub().commit
    assert hub.count("info") == 2  # neither was tried again


def test_no_token_says_how_to_get_one(hub: LocalHub, open_hub: Open) -> None:
    hub.token = TOKEN
    with pytest.raises(AccessError, match="without a token; set HF_TOKEN or run `hf auth login`"):
        _ = open_hub().commit
    assert [request.token for request in hub.requests] == [None]


def test_a_repository_that_is_not_there(hub: LocalHub) -> None:
    source = HubSource("no/such", endpoint=hub.url, token="hf_other", patience=QUICK)
    with pytest.raises(AccessError, match=r"no/such does not exist.*check --repo-id"):
        _ = source.commit


def test_a_token_revoked_midway_stops_the_source(hub: LocalHub, open_hub: Open) -> None:
    hub.token = TOKEN
    source = open_hub(token=TOKEN)
    ref = first(source)
    hub.token = "hf_another"
    with pytest.raises(AccessError, match=r"refused the token \(401\).*resumes"):
        fetch(source, ref)


def test_a_bad_repository_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="wanted OWNER/NAME"):
        HubSource("not a name")


def test_redirects_in_circles_end(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_hub()
    ref = first(source)
    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", _redirect_to_itself)
    with pytest.raises(SourceError, match="redirects in circles"):
        fetch(source, ref)


def _redirect_to_itself(handler: Any) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def test_close_ends_a_stalled_transfer_at_once(hub: LocalHub, open_hub: Open) -> None:
    source = open_hub(patience=replace(QUICK, stall_s=60.0))
    ref = first(source)
    hub.faults.bodies = ["stall"]
    pool = BufferPool()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            source.fetch(ref, pool.acquire)
        except CtgpuError as error:
            failures.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    while not hub.count("resolve"):
        time.sleep(0.01)
    time.sleep(0.1)
    source.close()
    worker.join(30)
    assert not worker.is_alive()
    assert isinstance(failures[0], SourceError)
    assert pool.lent_bytes == 0


# --- secrets ---------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: LocalHub, open_hub: Open) -> None:
    hub.token, hub.redirect = TOKEN, True
    source = open_hub(token=TOKEN)
    fetch(source, first(source))
    seen = {(r.endpoint, r.token) for r in hub.requests}
    assert seen == {("info", TOKEN), ("tree", TOKEN), ("resolve", TOKEN), ("cdn", None)}


def test_the_token_is_in_no_log_error_repr_or_record(
    hub: LocalHub, open_hub: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.token, hub.redirect = TOKEN, True
    said = []

    def provoke(action: Callable[[], object]) -> None:
        with pytest.raises(CtgpuError) as caught:
            action()
        said.append("".join(traceback.format_exception(caught.value)))
        said.append(repr(caught.value))

    source = open_hub(token=TOKEN)
    said += [repr(source), repr(source._client), str(source.identity()), repr(first(source))]
    ref = first(source)
    hub.faults.statuses = {"resolve": [500] * QUICK.attempts}
    provoke(lambda: fetch(source, ref))
    hub.faults.expired_redirects = QUICK.attempts
    provoke(lambda: fetch(source, ref))
    hub.faults.bodies = ["reset"] * 20
    provoke(lambda: fetch(source, replace(ref, checksum="sha256:" + "0" * 64)))
    hub.faults = Faults()
    provoke(lambda: open_hub("no-branch", token=TOKEN).commit)
    hub.gated = True
    provoke(lambda: fetch(source, ref))
    hub.token = "hf_another"
    provoke(lambda: fetch(source, ref))
    provoke(lambda: open_hub(token=f"{TOKEN}\nX: y").commit)
    provoke(lambda: HubSource("no/such", endpoint=hub.url, token=TOKEN, patience=QUICK).commit)
    text = "\n".join([*said, caplog.text])
    assert caplog.records
    assert TOKEN not in text
    # Nor the address that was signed for us.
    assert "expires=" not in "\n".join(said)


def test_importing_the_package_imports_no_hub_library() -> None:
    code = (
        "import sys, ctgpu, ctgpu.sources, ctgpu.sources.hub.source;"
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- spooling --------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see mappings")
def test_spooled_volumes_lie_on_disk_and_leave_nothing(
    hub: LocalHub, open_hub: Open, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    source = open_hub(temp_dir=folder)
    ref = first(source)
    pool = BufferPool()
    with source.fetch(ref, pool.acquire).buffer as buffer:
        assert bytes(buffer.bytes) == random_bytes(file_name(ref))
        assert pool.lent_bytes == 0
        assert _mapped(folder)
        assert list(folder.iterdir()) == []  # nothing that a crash could leave
    del buffer
    gc.collect()
    assert not _mapped(folder)


def _mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


def test_a_spool_folder_that_cannot_be_is_a_storage_error(open_hub: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another --temp-dir"):
        open_hub(temp_dir=tmp_path / "file" / "below")


def test_a_full_spool_is_a_storage_error_not_a_crash(
    open_hub: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_hub(temp_dir=tmp_path)
    ref = first(source)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=r"No space left on device; free space there"):
        fetch(source, ref)


def test_errors_survive_pickling(hub: LocalHub, open_hub: Open) -> None:
    hub.token = TOKEN
    with pytest.raises(AccessError) as caught:
        _ = open_hub().commit
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (AccessError, str(caught.value))
