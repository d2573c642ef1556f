"""Proxies as the environment names them: used, or refused in a sentence without the password."""

from __future__ import annotations

import base64
import json
import socket
from dataclasses import replace

import pytest
from source_cases import QUICK
from wire import JSON_HEAD, Wire, failure_of, wire

from ctgpu.checking import doctor
from ctgpu.errors import AccessError, SourceError
from ctgpu.sources.hub.proxies import Proxies, Proxy
from ctgpu.sources.hub.source import HubSource

COMMIT = "2" * 40


def open_source(scheme: str = "http") -> HubSource:
    patience = replace(QUICK, attempts=3)
    return HubSource("a/b", token=False, endpoint=f"{scheme}://hub.invalid", patience=patience)


def answer(connection: socket.socket, served: Wire) -> None:
    body = json.dumps({"sha": COMMIT}).encode()
    connection.sendall(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


@pytest.mark.parametrize("scheme", ["", "http://", "HTTP://"])
@pytest.mark.parametrize("account", ["", "user:pass%40word@"])
@pytest.mark.parametrize("end", ["", "/", " "])
def test_an_address_may_do_without_its_scheme(
    monkeypatch: pytest.MonkeyPatch, scheme: str, account: str, end: str
) -> None:
    with wire(answer) as served:
        monkeypatch.setenv("http_proxy", f"{scheme}{account}127.0.0.1:{served.port}{end}")
        source = open_source()
        assert source.commit == COMMIT
        source.close()
    assert served.heard[0].startswith(b"GET http://hub.invalid/api/")
    login = base64.b64encode(b"user:pass@word")
    assert (b"basic " + login in served.heard[0].replace(b"Basic", b"basic")) == bool(account)


@pytest.mark.parametrize(
    ("name", "stated", "shown"),
    [
        ("http_proxy", "socks5://user:secret@127.0.0.1:1080", "socks5://127.0.0.1:1080"),
        ("all_proxy", "socks5h://user:secret@127.0.0.1:1080", "socks5h://127.0.0.1:1080"),
        ("http_proxy", "ftp://127.0.0.1:21", "ftp://127.0.0.1:21"),
        ("http_proxy", "user:secret@127.0.0.1:99999", "http://127.0.0.1:99999"),
        ("http_proxy", "http://user:secret@[::1", "http://[::1"),
        ("http_proxy", "http://:3128", "http://:3128"),
        ("http_proxy", "127.0.0.1:port", "http://127.0.0.1:port"),
    ],
)
def test_a_proxy_of_another_kind_ends_it_at_once_and_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, stated: str, shown: str
) -> None:
    monkeypatch.setenv(name, stated)
    error = failure_of(lambda: open_source().commit)
    assert isinstance(error, SourceError)
    assert f"the proxy {shown} that {name} names cannot be used; wanted http://" in str(error)
    assert "secret" not in str(error)


def test_hosts_that_need_no_proxy_are_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "127.0.0.1:3128")
    monkeypatch.setenv("no_proxy", "elsewhere,10.0.0.7:8080,::1,.corp")
    proxies = Proxies()
    for address in ("http://10.0.0.7:8080/x", "http://u:p@10.0.0.7:8080", "http://[::1]:80/"):
        assert proxies.of(address) is None
    assert proxies.of("http://hub.corp") is None
    assert proxies.of("https://elsewhere.org") is None  # no https_proxy
    for address in ("http://10.0.0.7:8081/x", "http://elsewhere.org"):
        assert proxies.of(address) == Proxy("http://127.0.0.1:3128")


def refuse(status: int) -> bytes:
    return b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status


@pytest.mark.parametrize(
    ("scheme", "status", "hint"),
    [
        ("http", 407, "it wants an account"),
        ("https", 407, "it wants an account"),
        ("http", 403, "allow"),
        ("https", 403, "allow"),
        ("https", 404, "allow"),  # through HTTP, the answer of the Hub behind the proxy
    ],
)
def test_a_proxy_that_refuses_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch, scheme: str, status: int, hint: str
) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(refuse(status))

    with wire(talk) as served:
        place = f"127.0.0.1:{served.port}"
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:secret@{place}")
        error = failure_of(lambda: open_source(scheme).commit)
        assert len(served.heard) == 1
    assert isinstance(error, SourceError)
    assert f"the proxy http://{place}" in str(error)
    assert f"answered {status}" in str(error)
    assert hint in str(error)
    assert "secret" not in str(error)


def test_a_proxy_that_is_busy_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(refuse(503))

    with wire(talk) as served:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{served.port}")
        error = failure_of(lambda: open_source("https").commit)
        assert len(served.heard) == 3
    assert f"the proxy http://127.0.0.1:{served.port} answered 503" in str(error)


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with wire(answer) as served:
        pass
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", f"user:secret@127.0.0.1:{served.port}")
        error = failure_of(lambda scheme=scheme: open_source(scheme).commit)
        assert f"the proxy http://127.0.0.1:{served.port}: connection refused" in str(error)
        assert "secret" not in str(error)


def test_a_proxy_that_refuses_after_a_redirect_ends_it_at_once_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        if b"http://hub.invalid/" in served.heard[-1]:
            there = b"Location: http://files.invalid/x\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(b"HTTP/1.1 302 Found\r\n" + there)
        else:
            connection.sendall(refuse(403))

    with wire(talk) as served:
        place = f"127.0.0.1:{served.port}"
        monkeypatch.setenv("http_proxy", f"http://user:secret@{place}")
        error = failure_of(lambda: open_source().commit)
        assert len(served.heard) == 2
    assert isinstance(error, SourceError)
    assert f"the proxy http://{place}, or files.invalid behind it, answered 403" in str(error)
    assert "allow files.invalid there" in str(error)
    assert "secret" not in str(error)


def test_what_the_hub_itself_refuses_through_a_proxy_is_not_the_proxys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        said = b"X-Error-Code: GatedRepo\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(b"HTTP/1.1 403 No\r\n" + said)

    with wire(talk) as served:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{served.port}")
        error = failure_of(lambda: open_source().commit)
    assert isinstance(error, AccessError)
    assert "a/b cannot be read without a token" in str(error)


def doctor_of(
    monkeypatch: pytest.MonkeyPatch, scheme: str, port: int, proxy_scheme: str = "http"
) -> doctor.Check:
    """What ``ctgpu doctor`` says of a Hub behind the proxy at a port."""
    monkeypatch.setenv(f"{scheme}_proxy", f"{proxy_scheme}://user:secret@127.0.0.1:{port}")
    monkeypatch.setenv("HF_ENDPOINT", f"{scheme}://hub.invalid")
    monkeypatch.setattr(doctor, "_HUB_TIMEOUT_S", 5.0 if proxy_scheme == "http" else 0.3)
    check = doctor._endpoint()
    assert check.facts["endpoint"] == f"{scheme}://hub.invalid"
    assert check.facts["reachable"] == (check.status == "ok")
    assert "secret" not in check.text
    return check


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("status", "hint"), [(407, "it wants an account"), (403, "allow"), (503, "answered 503);")]
)
def test_doctor_names_a_proxy_that_refuses(
    monkeypatch: pytest.MonkeyPatch, scheme: str, status: int, hint: str
) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(refuse(status))

    with wire(talk) as served:
        check = doctor_of(monkeypatch, scheme, served.port)
        assert len(served.heard) == 1
    assert check.status == "missing"
    assert check.text.startswith(
        f"{scheme}://hub.invalid cannot be reached (the proxy http://127.0.0.1:{served.port}"
    )
    assert f"answered {status}" in check.text
    assert hint in check.text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_doctor_names_a_proxy_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with wire(answer) as served:
        pass
    check = doctor_of(monkeypatch, scheme, served.port)
    assert check.status == "missing"
    assert f"(the proxy http://127.0.0.1:{served.port}: connection refused)" in check.text


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
def test_doctor_names_a_proxy_that_breaks_off_or_says_nothing(
    monkeypatch: pytest.MonkeyPatch, scheme: str, proxy_scheme: str
) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        connection.close()

    with wire(talk) as served:
        check = doctor_of(monkeypatch, scheme, served.port, proxy_scheme)
    assert check.status == "missing"
    assert f"the proxy {proxy_scheme}://127.0.0.1:{served.port}" in check.text


def test_doctor_takes_any_other_answer_through_a_proxy_for_the_hubs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with wire(lambda connection, served: connection.sendall(refuse(404))) as served:
        assert doctor_of(monkeypatch, "http", served.port).status == "ok"


@pytest.mark.parametrize("piece", [b"X-Slow: -\r\n", b"-", b""])
def test_a_proxy_that_never_ends_its_answer_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, piece: bytes
) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n" if piece else b"")
        served.repeat(connection, piece)

    with wire(talk) as served:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{served.port}")
        error = failure_of(lambda: open_source("https").commit)
        assert len(served.heard) == 3
    assert isinstance(error, SourceError)
    assert "in time" in str(error)
