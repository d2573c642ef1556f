"""What goes wrong at the local Hub, on demand."""

from __future__ import annotations

import http.client
import socket
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from hub_cases import FILE, TOKEN, get

from ctgpu.testing.faults import Faults
from ctgpu.testing.hub import LocalHub, Request


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


def test_nothing_goes_wrong_unless_it_is_asked_for(hub: LocalHub) -> None:
    content = (hub.root / FILE).read_bytes()
    assert hub.faults == Faults()
    assert [get(hub)[1] for _ in range(3)] == [content] * 3
    # What one Hub is told is no other's.
    hub.faults.bodies.append("flip")
    assert Faults().bodies == []


def test_an_expired_redirect_is_refused_where_it_leads(hub: LocalHub) -> None:
    hub.redirect = True
    hub.faults.expired_redirects = 1
    places = [get(hub)[0].headers["Location"] for _ in range(2)]
    assert hub.faults.expired_redirects == 0
    with pytest.raises(HTTPError, match="403"):
        urlopen(places[0])
    with urlopen(places[1]) as answer:
        assert answer.read() == (hub.root / FILE).read_bytes()


def test_slow_bodies_begin_and_do_not_end(hub: LocalHub) -> None:
    for fault in ("stall", "trickle"):
        hub.faults.bodies = [fault]
        with socket.create_connection(("127.0.0.1", hub.port), timeout=0.5) as connection:
            head = f"GET /datasets/{hub.repo_id}/resolve/main/{FILE} HTTP/1.1\r\n"
            connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
            seen = b""
            while len(seen.partition(b"\r\n\r\n")[2]) < 50_000:
                seen += connection.recv(1 << 16)
            assert len(seen.partition(b"\r\n\r\n")[2]) < 100_000
        assert hub.faults.bodies == []
