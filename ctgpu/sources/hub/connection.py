"""Connections on which nothing is waited for without bound.

A socket's own timeout starts again with every byte: a header line that comes a byte at a time, or
one ``100 Continue`` after the other, holds its reader for as long as the server likes.  Here every
read, of heads and bodies, through proxies and TLS, ends when the time that a :class:`Line` allows
is over, or when the client is closed.
"""

from __future__ import annotations

import http.client
import io
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError, ProxyError, SSLError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError

from ctgpu.errors import SourceError
from ctgpu.sources.hub.proxies import Proxies, Proxy

_E = TypeVar("_E", bound=BaseException)

# How soon a blocked read notices that its client was closed.
_GLANCE_S = 0.2


class Transient(Exception):
    """May well succeed when tried again, after `wait_s` if the server named a time."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class TunnelRefused(OSError):
    """A proxy answered CONNECT with `status` instead of 200."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the proxy answered {status}")
        self.status = status


class Line:
    """How long the other end of one connection may still take.

    Parameters
    ----------
    closed : threading.Event
        Set once the client is closed.
    """

    def __init__(self, closed: threading.Event) -> None:
        self._closed = closed
        self._until = math.inf

    def allow(self, seconds: float) -> None:
        """Let reads go on for so long from now, in place of what was left."""
        self._until = time.monotonic() + seconds

    def check(self) -> None:
        """Whether to go on waiting.

        Raises
        ------
        OSError
            If the time is over (``TimeoutError``), or the client has been closed.
        """
        if self._closed.is_set():
            raise ConnectionAbortedError
        if time.monotonic() >= self._until:
            raise TimeoutError


class _Incoming(io.RawIOBase):
    """What a socket receives, as the file of an ``http.client.HTTPResponse``."""

    def __init__(self, sock: Any, line: Line) -> None:
        self._sock = sock
        self._line = line
        # Keeps the socket open for as long as it is read, as each of its files does.
        self._file = sock.makefile("rb", buffering=0)
        self._timeout_s = sock.gettimeout()
        sock.settimeout(_GLANCE_S)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._line.check()
            with suppress(TimeoutError):
                return int(self._sock.recv_into(buffer))

    def close(self) -> None:
        if not self.closed:
            with suppress(OSError):  # closed by the other end's doing
                self._sock.settimeout(self._timeout_s)
            self._file.close()
        super().close()


class Connection(HTTPConnection):
    """An HTTP connection whose answers are read through a :class:`Line`.

    Attributes
    ----------
    line : Line
        How long its reads may take.
    answer : http.client.HTTPResponse
        The latest one; reading it reads the socket.
    """

    closed: threading.Event
    head_s: float
    answer: http.client.HTTPResponse

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.line = Line(self.closed)
        self.response_class = self.answer_of  # type: ignore[assignment]

    def answer_of(self, sock: Any, *args: Any, **options: Any) -> http.client.HTTPResponse:
        """The answer that comes in on a socket: of the server, or of a proxy to CONNECT."""
        incoming: Any = _Incoming(sock, self.line)
        self.answer = http.client.HTTPResponse(incoming, *args, **options)
        return self.answer

    def connect(self) -> None:
        """As urllib3's; the answer to CONNECT has a bounded time.

        Raises
        ------
        TunnelRefused
            If a proxy does not connect.
        """
        self.line.allow(self.head_s)
        try:
            super().connect()
        except OSError as error:
            # http.client has no other sign of it.
            if refused := re.match(r"Tunnel connection failed: (\d{3})\b", str(error)):
                raise TunnelRefused(int(refused[1])) from None
            raise

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        """As urllib3's; status line, headers and whatever comes before have a bounded time."""
        self.line.allow(self.head_s)
        return super().getresponse()


def knock(address: str, seconds: float) -> None:
    """Ask for any answer at an address, its proxy included; sends no token.

    Raises
    ------
    SourceError
        If its proxy cannot be used or refuses, or a certificate cannot be verified.
    Transient
        If no answer comes in time, or a proxy says that there is none.
    """
    proxy = Proxies().of(address)
    pools = open_pools(proxy, threading.Event(), seconds)
    try:
        answer = pools.request("HEAD", address, timeout=seconds, retries=False, redirect=False)
    except (OSError, HTTPError, http.client.HTTPException) as error:
        judge_way(error, address, proxy)
        raise Transient(describe(error, proxy)) from None
    finally:
        pools.clear()
    judge_answer(answer, address, proxy)
    if proxy is not None and address.startswith("http:") and answer.status >= 500:
        raise Transient(f"{who_answered(address, proxy)} answered {answer.status}")


def connection_of(response: urllib3.BaseHTTPResponse) -> Connection:
    """The connection of an answer that has not been read to its end."""
    return cast(Connection, response.connection)


def open_pools(proxy: Proxy | None, closed: threading.Event, head_s: float) -> urllib3.PoolManager:
    """Pools of connections, direct or through a proxy.

    Parameters
    ----------
    proxy : Proxy or None
        Through which one.
    closed : threading.Event
        Ends all reads once it is set.
    head_s : float
        Time in seconds for an answer up to its body.
    """

    class Plain(Connection):
        pass

    class Encrypted(Connection, HTTPSConnection):
        pass

    Plain.closed = Encrypted.closed = closed
    Plain.head_s = Encrypted.head_s = head_s

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Encrypted

    # Enough idle connections for many workers; more are made where needed.
    options: dict[str, Any] = {"num_pools": 16, "maxsize": 64}
    if proxy is None:
        pools = urllib3.PoolManager(**options)
    else:
        account = unquote(proxy.account) if proxy.account else None
        login = urllib3.make_headers(proxy_basic_auth=account) if account else None
        pools = urllib3.ProxyManager(proxy.address, proxy_headers=login, **options)
    pools.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}
    return pools


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def cause_of(error: BaseException, kind: type[_E]) -> _E | None:
    """The error of one kind among what an error was raised from, itself included."""
    return next((cause for cause in _causes(error) if isinstance(cause, kind)), None)


def judge_way(error: BaseException, url: str, proxy: Proxy | None) -> None:
    """Raise what an error of a request means, where it is not that the other end failed.

    Raises
    ------
    SourceError
        If a proxy refuses, or a certificate cannot be verified.
    Transient
        If a proxy is busy.
    """
    if proxy is not None and (refused := cause_of(error, TunnelRefused)):
        _judge_proxy(proxy, refused.status)
    if _is_certificate_error(error):
        whose = urlsplit(url).hostname
        if proxy is not None and isinstance(error, ProxyError):
            whose = f"the proxy {proxy.address}"
        raise SourceError(
            f"the certificate of {whose} cannot be verified; set SSL_CERT_FILE to a file with the "
            "certificates this network needs"
        ) from None


def judge_answer(answer: urllib3.BaseHTTPResponse, url: str, proxy: Proxy | None) -> None:
    """Raise if an answer is a proxy's refusal, or may be one.

    Raises
    ------
    SourceError
    """
    if proxy is None:
        return
    if answer.status == 407:
        _judge_proxy(proxy, answer.status)
    # Of an encrypted answer a proxy knows nothing; with this header it is the Hub's.
    if answer.status == 403 and url.startswith("http:") and "X-Error-Code" not in answer.headers:
        host = urlsplit(url).hostname
        raise SourceError(
            f"{who_answered(url, proxy)} answered 403; allow {host} there, or list it in no_proxy "
            "where it can be reached without"
        )


def who_answered(url: str, proxy: Proxy | None) -> str:
    """In words, whose the answer to a request is."""
    host = urlsplit(url).hostname or ""
    if proxy is not None and url.startswith("http:"):
        return f"the proxy {proxy.address}, or {host} behind it,"
    return host


def _judge_proxy(proxy: Proxy, status: int) -> NoReturn:
    """Raise what the refusal of a proxy means."""
    if status in (408, 429) or status >= 500:
        raise Transient(f"the proxy {proxy.address} answered {status}")
    hint = "it does not let this request pass; allow it there, or set no_proxy"
    if status == 407:
        hint = (
            "it wants an account; set http_proxy or https_proxy to http://USER:PASSWORD@HOST:PORT"
        )
    raise SourceError(f"the proxy {proxy.address} answered {status}: {hint}") from None


def _is_certificate_error(error: BaseException) -> bool:
    """Whether the other end could not show who it is."""
    return any(
        "CERTIFICATE_VERIFY_FAILED" in str(cause) and isinstance(cause, SSLError | OSError)
        for cause in _causes(error)
    )


def describe(error: BaseException, proxy: Proxy | None = None) -> str:
    """A network error in a few words, without URLs; of addresses, with the proxy's alone."""
    words = _in_words(error)
    if proxy is None:
        return words
    if isinstance(error, ProxyError):
        return f"the proxy {proxy.address}: {words}"
    return f"{words}, through the proxy {proxy.address}"


def _in_words(error: BaseException) -> str:
    if cause_of(error, NameResolutionError):
        return "the name cannot be resolved"
    for cause in _causes(error):
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
            return os.strerror(cause.errno).lower()
    if cause_of(error, TimeoutError) or isinstance(error, HTTPTimeoutError):
        return "no whole answer in time"
    return "the connection broke"
