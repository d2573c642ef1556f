"""The Hub client against a server that misbehaves in every way we know."""

from __future__ import annotations

import logging
import pickle
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from source_cases import FOLDER, QUICK, TOKEN, Open, fetch, file_name, first, random_bytes

from ctgpu.buffers import BufferPool
from ctgpu.errors import AccessError, CtgpuError, FetchError, SourceError
from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import Faults, LocalHub


def test_one_connection_serves_many_requests(hub: LocalHub, open_hub: Open) -> None:
    accepted = []
    take = hub._server.get_request
    hub._server.get_request = lambda: accepted.append(1) or take()  # type: ignore[method-assign]
    source = open_hub()
    for ref in source.list_volumes("valid") * 3:
        fetch(source, ref)
    assert hub.count("resolve") == 9
    assert len(accepted) == 1


# --- what is tried again ---------------------------------------------------------------------


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


def test_errors_survive_pickling(hub: LocalHub, open_hub: Open) -> None:
    hub.token = TOKEN
    with pytest.raises(AccessError) as caught:
        _ = open_hub().commit
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (AccessError, str(caught.value))
