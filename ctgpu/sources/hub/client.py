"""HTTP as the Hub needs it: retries, ranges, redirects, quotas, and a token that stays secret.

Every request goes through :meth:`HubClient._open`; everything that may pass by itself is a
:class:`Transient` there and tried again by :meth:`HubClient._persist`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from ctgpu.errors import AccessError, FetchError, SourceError
from ctgpu.sources.hub.connection import (
    Transient,
    connection_of,
    describe,
    judge_answer,
    judge_way,
    open_pools,
    who_answered,
)
from ctgpu.sources.hub.proxies import Proxies, Proxy
from ctgpu.sources.hub.quota import ACCOUNT_QUOTA, ANONYMOUS_QUOTA, RequestQuota, stated_wait_s
from ctgpu.sources.hub.transfer import Patience, Throughput, Transfer

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: The Hub itself: where quotas are known, terms are accepted and tokens are made.
DEFAULT_ENDPOINT = "https://huggingface.co"

_MAX_REDIRECTS = 5
_SMALL_FILE_LIMIT_BYTES = 1 << 30
# New bytes that a failed attempt must have brought not to count as one that brought nothing.
_PROGRESS_BYTES = 1 << 20
# A redirect's own body, read so that its connection can be used again: no more, and no longer.
_REDIRECT_BODY_BYTES = 1 << 14
_REDIRECT_BODY_S = 0.25
# Of what reading a chunked body allocates.
_PIECE_BYTES = 1 << 20


class NotFoundError(Exception):
    """The server says that there is no such thing; the message is its error code."""


class _Exhausted(Exception):
    """All attempts failed; the message is the last reason."""


class HubClient:
    """Requests to one data set's Hub, from any number of threads.

    Parameters
    ----------
    endpoint : str
        Address of the Hub; the token is sent nowhere else.
    repo_id : str
        The data set, for messages.
    token : str or None
        Access token; None asks anonymously.
    patience : Patience
        How long a failing network is tolerated.
    part_count : int
        Processes that share the account's quotas.

    Raises
    ------
    AccessError
        If the token holds characters that no token has.
    """

    def __init__(
        self,
        endpoint: str,
        repo_id: str,
        token: str | None,
        patience: Patience,
        part_count: int = 1,
    ) -> None:
        token = token.strip() if token else None
        if token and not re.fullmatch(r"[!-~]+", token):
            raise AccessError(
                "the Hub token holds blanks or other characters that no token has; "
                "correct HF_TOKEN or run `hf auth login`"
            )
        self._origin = _origin(endpoint)
        self._host = self._origin[1]
        self._repo_id = repo_id
        self._token = token
        self._patience = patience
        quotas: tuple[int | None, int | None] = (None, None)
        if self._host == urlsplit(DEFAULT_ENDPOINT).hostname:
            quotas = ACCOUNT_QUOTA if token else ANONYMOUS_QUOTA
        self._quotas = {
            name: RequestQuota(requests, part_count=part_count)
            for name, requests in zip(("api", "resolve"), quotas, strict=True)
        }
        self._timeout = urllib3.Timeout(connect=patience.connect_s, read=patience.stall_s)
        self._proxies = Proxies()
        self._pools: dict[Proxy | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._host!r}, {self._repo_id!r})"

    def get_json(self, url: str, *, attempts: int | None = None) -> tuple[Any, str | None]:
        """The JSON at a URL of the Hub's API, and the URL of its next page.

        Parameters
        ----------
        url : str
            Where.
        attempts : int, optional
            Fewer attempts than usual.

        Raises
        ------
        AccessError, SourceError
            If the Hub refuses, or cannot be reached.
        NotFoundError
            If there is no such thing.
        """

        def attempt() -> tuple[Any, str | None]:
            with self._open(url, "api") as response:
                body = self._read_all(response)
                try:
                    value = json.loads(body)
                except (ValueError, RecursionError):
                    raise Transient("it answered with something that is not JSON") from None
                return value, self._next_page(url, response.headers.get("Link", ""))

        return self._source_answers(attempt, attempts)

    def get_bytes(self, url: str) -> bytes:
        """A small file as a whole, as the Hub's checksum has it; errors as :meth:`get_json`'s."""

        def attempt() -> bytes:
            stated: list[str] = []
            with self._open(url, "resolve", stated=stated) as response:
                body = self._read_all(response)
            if not all(_has_checksum(body, checksum) for checksum in stated):
                raise Transient("its checksum is not the one that the Hub states")
            return body

        return self._source_answers(attempt)

    def download(
        self, url: str, target: memoryview, *, name: str, sha256: str | None, probe_url: str
    ) -> None:
        """Fill `target` with a file, from wherever the last attempt left off.

        Parameters
        ----------
        url : str
            Where; resolved again by every attempt, for redirects expire.
        target : memoryview
            Writable bytes, exactly as many as the file has.
        name : str
            The file, for messages.
        sha256 : str or None
            Its checksum in hexadecimal digits, where known.
        probe_url : str
            A small answer of the API, asked for when all attempts failed, to tell a bad file from
            a bad source.

        Raises
        ------
        FetchError
            If this file cannot be had.
        AccessError, SourceError
            If the Hub refuses or is gone.
        """
        transfer = Transfer(target)

        def attempt() -> None:
            if not transfer.is_complete:
                with self._open(url, "resolve", transfer.received) as response:
                    transfer.begin(response)
                    self._receive(response, transfer)
            if sha256 is not None and hashlib.sha256(target).hexdigest() != sha256:
                transfer.received = 0
                raise Transient("its sha256 is not the one that the Hub lists")

        try:
            self._persist(name, attempt, progress=lambda: transfer.furthest)
        except _Exhausted as failure:
            reason = str(failure)
        except NotFoundError as failure:
            raise FetchError(
                f"{name} is not in {self._repo_id} at the pinned revision ({failure})"
            ) from None
        else:
            return
        with suppress(NotFoundError):
            self.get_json(probe_url, attempts=4)
        raise FetchError(
            f"{name} could not be fetched from {self._host}: {reason}, after "
            f"{self._patience.attempts} attempts that brought nothing new; "
            "it may be retried with --retry-failed"
        )

    def close(self) -> None:
        """Give up all transfers and connections; threads that wait get a :class:`SourceError`.

        They get it within a moment, except for those that wait for a connection.
        """
        self._closed.set()
        with self._lock:
            pools = list(self._pools.values())
        for pool in pools:
            pool.clear()

    def _source_answers(self, attempt: Callable[[], _T], attempts: int | None = None) -> _T:
        try:
            return self._persist(self._repo_id, attempt, attempts=attempts)
        except _Exhausted as failure:
            raise SourceError(
                f"{self._host} cannot be used: {failure}; check the network (and HF_ENDPOINT), "
                "then run the same command again: it resumes, or pass --source for a local copy"
            ) from None

    def _persist(
        self,
        name: str,
        attempt: Callable[[], _T],
        *,
        attempts: int | None = None,
        progress: Callable[[], int] = lambda: 0,
    ) -> _T:
        """Run `attempt` until it succeeds, or fails too often in a row without progress."""
        patience = self._patience
        allowed = min(attempts or patience.attempts, patience.attempts)
        failures, reached = 0, progress()
        while True:
            self._check_open()
            try:
                return attempt()
            except Transient as failure:
                reason, wait_s = str(failure), failure.wait_s
            if progress() >= reached + _PROGRESS_BYTES:
                failures, reached = 0, progress()
            failures += 1
            if failures >= allowed:
                raise _Exhausted(reason)
            if wait_s is None:
                longest = min(patience.longest_wait_s, patience.first_wait_s * 2 ** (failures - 1))
                wait_s = longest * random.uniform(0.5, 1.0)
            _log.info("%s: %s; trying again in %.1f s", name, reason, wait_s)
            self._sleep(wait_s)

    def _sleep(self, seconds: float) -> None:
        self._closed.wait(seconds)
        self._check_open()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise SourceError(f"{self._host} was given up: the source has been closed")

    @contextmanager
    def _open(
        self, url: str, quota: str, start: int = 0, stated: list[str] | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """A good answer to GET, its body unread; redirects are followed.

        The checksum that the Hub states, before it redirects, is added to `stated`.
        Whatever goes wrong with the network inside the context becomes :class:`Transient`.
        """
        for _ in range(_MAX_REDIRECTS):
            own = _origin(url) == self._origin
            proxy = self._proxies.of(url)
            headers = {"User-Agent": "ctgpu", "Accept-Encoding": "identity"}
            if own:
                self._quotas[quota].acquire(self._sleep)
                if self._token:
                    headers["Authorization"] = f"Bearer {self._token}"
            if start:
                headers["Range"] = f"bytes={start}-"
            response: urllib3.BaseHTTPResponse | None = None
            try:
                response = self._pool(proxy).request(
                    "GET",
                    url,
                    headers=headers,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=self._timeout,
                )
                if own:
                    self._quotas[quota].learn(response.headers)
                    if stated is not None:
                        stated += _checksums(response)
                if location := response.get_redirect_location():
                    url = _follow(url, location)
                    _pass_over(response)
                    continue
                self._judge(response, url, quota, proxy)
                yield response
                return
            except (OSError, HTTPError, http.client.HTTPException) as error:
                self._check_open()
                judge_way(error, url, proxy)
                # The original names signed URLs, which are secrets of a kind: not chained.
                reason = f"{urlsplit(url).hostname}: {describe(error, proxy)}"
                raise Transient(reason) from None
            finally:
                if response is not None:
                    # A no-op for a body that was read to its end, whose connection is kept.
                    response.close()
        raise Transient("it redirects in circles")

    def _pool(self, proxy: Proxy | None) -> urllib3.PoolManager:
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = open_pools(proxy, self._closed, self._patience.stall_s)
            return self._pools[proxy]

    def _next_page(self, url: str, links: str) -> str | None:
        """The address that a ``Link`` header names as the one after `url`."""
        stated = re.search(r'<([^<>]+)>\s*;\s*rel="?next"?', links)
        if stated is None:
            return None
        with suppress(ValueError):
            following: str = urljoin(url, stated[1])
            if _origin(following) == self._origin:
                return following
        raise SourceError(
            f"{self._host} goes on with its listing at another address, which the token must not "
            "be sent to; set HF_ENDPOINT to the address that the Hub gives itself"
        )

    def _judge(
        self, response: urllib3.BaseHTTPResponse, url: str, quota: str, proxy: Proxy | None
    ) -> None:
        """Raise unless the answer is good."""
        status, code = response.status, response.headers.get("X-Error-Code", "")
        if status in (200, 206):
            return
        judge_answer(response, url, proxy)
        own = _origin(url) == self._origin
        answered = f"{who_answered(url, proxy)} answered {status}"
        if status in (408, 425, 429) or status < 400 or status >= 500:
            wait_s = stated_wait_s(response.headers)
            if status == 429 and wait_s is not None and own:
                self._quotas[quota].pause(wait_s)
                wait_s = 0.0  # all workers wait at the quota, this one too
            raise Transient(answered, wait_s)
        if status == 416 or not own:
            # A range or a signed address that is no longer good: the next attempt asks again.
            if status == 401 and self._token:
                answered += (
                    f" after a redirect, for the token goes to HF_ENDPOINT ({self._host}) only"
                )
            raise Transient(answered)
        page = f"{DEFAULT_ENDPOINT}/datasets/{self._repo_id}"
        login = "set HF_TOKEN or run `hf auth login`"
        if code == "GatedRepo" and self._token:
            raise AccessError(
                f"{self._repo_id} is gated and this account has not accepted its terms; "
                f"accept them on {page} and run the same command again"
            )
        if status in (401, 403) and self._token is None:
            raise AccessError(
                f"{self._repo_id} cannot be read without a token; {login} "
                f"(where the data set is gated, accept its terms on {page} first)"
            )
        if code == "RepoNotFound":
            hint = "" if self._token else f", and {login} if it is private"
            raise AccessError(
                f"{self._repo_id} does not exist on {self._host}, or this account may not see it; "
                f"check --repo-id{hint}"
            )
        if status in (401, 403):
            raise AccessError(
                f"{self._host} refused the token ({status}): it was revoked, has expired or may "
                f"not read {self._repo_id}; make one on {DEFAULT_ENDPOINT}/settings/tokens, "
                f"{login}, then run the same command again: it resumes"
            )
        raise NotFoundError(code if re.fullmatch(r"\w{1,40}", code) else f"status {status}")

    def _read_all(self, response: urllib3.BaseHTTPResponse) -> bytes:
        body = bytearray()
        watch = Throughput(self._patience, connection_of(response).line)
        while piece := response.read1(1 << 16):
            self._check_open()
            body += piece
            watch.saw(len(piece))
            if len(body) > _SMALL_FILE_LIMIT_BYTES:
                raise SourceError(f"{self._host} sent over a gigabyte where a table was wanted")
        stated = response.headers.get("Content-Length")
        if stated is not None and stated != str(len(body)):
            raise Transient(f"the answer ended after {len(body)} of {stated[:20]} bytes")
        return bytes(body)

    def _receive(self, response: urllib3.BaseHTTPResponse, transfer: Transfer) -> None:
        # urllib3's own readinto() allocates and copies.  The answer it wraps reads into place,
        # one recv() at a time, which is also what lets the throughput be watched.
        connection = connection_of(response)
        answer = connection.answer
        in_place = answer.fp is not None and not answer.chunked
        readinto = answer.fp.readinto1 if in_place else answer.readinto1
        watch = Throughput(self._patience, connection.line)
        while not transfer.is_complete:
            count = readinto(transfer.rest if in_place else transfer.rest[:_PIECE_BYTES])
            self._check_open()
            if not count:
                raise Transient(
                    f"the transfer ended after {transfer.received} of {len(transfer.target)} bytes"
                )
            transfer.received += count
            watch.saw(count)
        if in_place:
            # All was read behind urllib3's back: the connection is as good as new.
            answer.close()
            response.release_conn()


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", parts.port or default


def _follow(url: str, location: str) -> str:
    """Where a redirect leads."""
    with suppress(ValueError):
        target = urljoin(url, location)
        scheme, host, _ = _origin(target)
        if scheme in ("http", "https") and re.fullmatch(r"[\w.:-]{1,255}", host, re.ASCII):
            return target
    raise Transient("it redirects to something that is no address")


def _pass_over(response: urllib3.BaseHTTPResponse) -> None:
    """Read the short body of a redirect as far as it is there already, to keep its connection."""
    length = response.headers.get("Content-Length", "")
    if re.fullmatch(r"\d{1,9}", length) and int(length) <= _REDIRECT_BODY_BYTES:
        connection_of(response).line.allow(_REDIRECT_BODY_S)
        response.drain_conn()


def _checksums(response: urllib3.BaseHTTPResponse) -> list[str]:
    """What the Hub states of a file: its sha256, or git's sha1 of a file that is not in LFS."""
    headers = response.headers
    tag = headers.get("X-Linked-ETag") or headers.get("ETag") or ""
    if "X-Repo-Commit" not in headers:
        return []
    return re.findall(r'^(?:W/)?"?([0-9a-f]{64}|[0-9a-f]{40})"?$', tag)


def _has_checksum(body: bytes, checksum: str) -> bool:
    if len(checksum) == 64:
        return hashlib.sha256(body).hexdigest() == checksum
    blob = b"blob %d\0" % len(body) + body
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == checksum
