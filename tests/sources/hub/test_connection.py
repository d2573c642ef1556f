"""Servers that never come to an end: each is left in time, and at once when the client closes."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from source_cases import QUICK
from wire import JSON_HEAD, Talk, Wire, failure_of, wire

from ctgpu.buffers import BufferPool
from ctgpu.errors import FetchError, SourceError
from ctgpu.sources.hub.source import HubSource
from ctgpu.volume.ref import SampleRef

COMMIT = "1" * 40
ANSWER = json.dumps({"sha": COMMIT}).encode()
TWICE = replace(QUICK, attempts=2)
CONTENT = bytes(range(256)) * 1000
Begin = Callable[[socket.socket], None]


def open_source(served: Wire, **options: object) -> HubSource:
    options = {"endpoint": f"http://127.0.0.1:{served.port}", "patience": TWICE} | options
    return HubSource("a/b", token=False, **options)  # type: ignore[arg-type]


def after(beginning: bytes, piece: bytes, every_s: float = 0.02) -> Talk:
    """A beginning, and then the same without end."""

    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(beginning)
        served.repeat(connection, piece, every_s)

    return talk


CHUNKED = JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "nothing": after(b"", b""),
    "status line": after(b"HTTP/1.1 200 O", b"K"),
    "header line": after(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"-"),
    "header lines": after(b"HTTP/1.1 200 OK\r\n", b"X-Slow: -\r\n"),
    "100 Continue": after(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 Continue, fast": after(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0.0),
    "headers of 100 Continue": after(b"HTTP/1.1 100 Continue\r\n", b"X-Slow: -\r\n"),
    "body": after(JSON_HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
    "body without a length": after(JSON_HEAD + b"\r\n", b" "),
    "chunks": after(CHUNKED, b"1\r\n \r\n"),
    "chunk size": after(CHUNKED, b"0"),
    "chunk extension": after(CHUNKED + b"1;x=", b"-"),
    "trailer": after(CHUNKED + b"1\r\n1\r\n0\r\nX-Slow: ", b"-"),
    "trailers": after(CHUNKED + b"1\r\n1\r\n0\r\n", b"X-Slow: -\r\n"),
    "trailers, fast": after(CHUNKED + b"1\r\n1\r\n0\r\n", b"X-Slow: -\r\n" * 1000, 0.0),
}


@pytest.mark.parametrize("talk", ENDLESS.values(), ids=list(ENDLESS))
def test_an_answer_that_never_ends_is_given_up_in_time(talk: Talk) -> None:
    with wire(talk) as served:
        error = failure_of(lambda: open_source(served).commit)
        assert isinstance(error, SourceError)
        assert len(served.heard) == TWICE.attempts
    assert "127.0.0.1 cannot be used" in str(error)
    assert "no whole answer in time" in str(error) or "bytes per second came in" in str(error)


@pytest.mark.parametrize("talk", ENDLESS.values(), ids=list(ENDLESS))
def test_close_ends_an_answer_that_never_ends_at_once(talk: Talk) -> None:
    patience = replace(QUICK, stall_s=600.0)
    with wire(talk) as served:
        source = open_source(served, patience=patience)
        close_in_an_answer(source, served)
        error = failure_of(lambda: source.commit)
    assert isinstance(error, SourceError)
    assert "the source has been closed" in str(error)


def close_in_an_answer(source: HubSource, served: Wire) -> None:
    def close() -> None:
        while not served.heard:
            threading.Event().wait(0.01)
        threading.Event().wait(0.05)
        source.close()

    threading.Thread(target=close, daemon=True).start()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: -\r\n" % n for n in range(100_000)),
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"-" * (1 << 20) + b"\r\n",
        b"HTTP/1.1 " + b"2" * 100_000 + b" OK\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        JSON_HEAD + b"Content-Length: 5, 7\r\n",
        JSON_HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
    ],
    ids=["many headers", "long header", "long status", "not HTTP", "two lengths", "gzip"],
)
def test_an_answer_that_is_none_is_one_sentence(head: bytes) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(head + b"\r\n")
        connection.close()

    with wire(talk) as served:
        error = failure_of(lambda: open_source(served).commit)
    assert isinstance(error, SourceError)
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("length", "taken"),
    [("-5", False), ("9" * 400, False), ("1", False), ("1e1", False), (str(len(ANSWER)), True)],
)
def test_a_length_that_is_a_lie_is_not_believed(length: str, taken: bool) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(JSON_HEAD + f"Content-Length: {length}\r\n\r\n".encode() + ANSWER)
        connection.shutdown(socket.SHUT_WR)

    with wire(talk) as served:
        source = open_source(served)
        if taken:
            assert source.commit == COMMIT
        else:
            error = failure_of(lambda: source.commit)
            assert isinstance(error, SourceError)
            assert len(str(error)) < 300


def test_json_that_is_nested_without_end_is_no_json() -> None:
    body = b"[" * 200_000

    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    with wire(talk) as served:
        assert "not JSON" in str(failure_of(lambda: open_source(served).commit))


@pytest.mark.parametrize("status", [102, 103, 204, 300, 304])
def test_an_answer_without_a_body_or_an_address_is_tried_again(status: int) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        if len(served.heard) == 1:
            connection.sendall(b"HTTP/1.1 %d Odd\r\nContent-Length: 0\r\n\r\n" % status)
        else:
            connection.sendall(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER)

    with wire(talk) as served:
        assert open_source(served).commit == COMMIT


def fetch(source: HubSource) -> bytes:
    with source.fetch(
        SampleRef.of_file("x.npz", len(CONTENT)), BufferPool().acquire
    ).buffer as buffer:
        return bytes(buffer.bytes)


@pytest.mark.parametrize("name", ["body", "chunk extension", "trailers, fast", "header line"])
def test_a_file_that_never_comes_is_its_own_failure(name: str) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        if b"/revision/" in served.heard[-1]:
            connection.sendall(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER)
        elif name == "body":
            after(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT), b"-")(
                connection, served
            )
        else:
            ENDLESS[name](connection, served)

    with wire(talk) as served:
        error = failure_of(lambda: fetch(open_source(served)))
    assert isinstance(error, FetchError)
    assert "--retry-failed" in str(error)


@pytest.mark.parametrize(("length", "connections"), [(b"10", 1), (b"10000", 2), (b"9" * 50, 2)])
def test_the_body_of_a_redirect_is_not_waited_for(length: bytes, connections: int) -> None:
    ports = set()

    def talk(connection: socket.socket, served: Wire) -> None:
        ports.add(connection.getpeername()[1])
        if b"/there" in served.heard[-1]:
            connection.sendall(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER)
            return
        head = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: " + length
        connection.sendall(head + b"\r\n\r\n" + b"-" * 10)
        if length != b"10":
            served.repeat(connection, b"-")

    patience = replace(QUICK, stall_s=600.0)
    with wire(talk) as served:
        found: list[str] = []
        source = open_source(served, patience=patience)
        worker = threading.Thread(target=lambda: found.append(source.commit), daemon=True)
        worker.start()
        worker.join(30)
        assert found == [COMMIT]
        # What is short and there is read, so that the connection serves the next request too.
        assert len(ports) == connections


# --- TLS -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", [b"", b"\x16\x03\x03\x3f\xff", b"\0"], ids=["", "record", "zeros"]
)
def test_a_handshake_that_never_ends_is_given_up_in_time(piece: bytes) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        connection.sendall(b"\x16\x03\x03\x3f\xff" if piece == b"\0" else b"")
        served.repeat(connection, piece)

    with wire(talk, reads=False) as served:
        address = f"https://127.0.0.1:{served.port}"
        patience = replace(TWICE, connect_s=0.3)
        error = failure_of(lambda: open_source(served, endpoint=address, patience=patience).commit)
    assert isinstance(error, SourceError)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for 127.0.0.1."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", f"{path}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("a") as both:
        both.write(Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def server_side(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_files_come_whole_through_tls(server_side: ssl.SSLContext) -> None:
    def talk(connection: socket.socket, served: Wire) -> None:
        content = ANSWER if b"/revision/" in served.heard[-1] else CONTENT
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
        connection.sendall(content)

    with wire(talk, tls=server_side) as served:
        source = open_source(served, endpoint=f"https://127.0.0.1:{served.port}")
        assert [fetch(source) for _ in range(3)] == [CONTENT] * 3


@pytest.mark.parametrize("name", ["nothing", "header line", "body", "chunk extension"])
@pytest.mark.parametrize("closes", [False, True])
def test_answers_that_never_end_are_left_through_tls_too(
    server_side: ssl.SSLContext, name: str, closes: bool
) -> None:
    with wire(ENDLESS[name], tls=server_side) as served:
        patience = replace(TWICE, stall_s=600.0 if closes else 0.15)
        source = open_source(served, endpoint=f"https://127.0.0.1:{served.port}", patience=patience)
        if closes:
            close_in_an_answer(source, served)
        error = failure_of(lambda: source.commit)
    assert isinstance(error, SourceError)
    assert ("closed" in str(error)) == closes
