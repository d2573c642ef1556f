"""A Hugging Face Hub for one data set, served from a folder, with faults on demand.

It speaks the part of the protocol that this package and ``huggingface_hub`` use: revision, paged
tree listing, and downloads with ranges and redirects.  ``python -m ctgpu.testing.hub ROOT`` serves
a folder from a process of its own and prints the address.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from ctgpu.testing.faults import AnswerFault as AnswerFault
from ctgpu.testing.faults import BodyFault as BodyFault
from ctgpu.testing.faults import Endpoint as Endpoint
from ctgpu.testing.faults import Faults as Faults

_BODY_FAULTS: tuple[BodyFault, ...] = ("truncate", "reset", "stall", "trickle", "flip")
_CDN_LIFETIME_S = 3600
_TRICKLE_S = 0.05
# What an answer without end announces: short enough for a client to read it through.
_TRICKLED_BYTES = 10_000


@dataclass(frozen=True)
class Request:
    """One request as the server saw it."""

    endpoint: Endpoint
    path: str
    start: int
    token: str | None


class LocalHub:
    """A Hub on the loopback interface; use it as a context.

    Parameters
    ----------
    root : Path
        The data set's files; what is there at construction, or at :meth:`commit`, is served.
    repo_id : str
        Name of the data set.
    token : str, optional
        The token that is accepted; None lets everyone in.  May be changed while serving.
    gated : bool
        Whether the terms were not accepted: a right token is refused too.
    redirect : bool
        Whether downloads are redirected to another host (``localhost``), as the Hub's CDN.
    page_size : int
        Entries on one page of a listing.
    faults : Faults, optional
        What goes wrong.
    port : int
        0 takes a free one.

    Attributes
    ----------
    url : str
        To be given as ``HF_ENDPOINT`` or ``endpoint``.
    commits : dict
        Per commit, the paths served and their files; the last one is ``main``.
    requests : list of Request
        All requests so far, oldest first.
    """

    def __init__(
        self,
        root: Path,
        repo_id: str = "local/ct-rate",
        *,
        token: str | None = None,
        gated: bool = False,
        redirect: bool = False,
        page_size: int = 1000,
        faults: Faults | None = None,
        port: int = 0,
    ) -> None:
        self.root = root
        self.repo_id = repo_id
        self.token = token
        self.gated = gated
        self.redirect = redirect
        self.page_size = page_size
        self.faults = faults or Faults()
        self.commits: dict[str, dict[str, Path]] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._seen: Counter[tuple[str, str]] = Counter()
        self._trees: dict[tuple[str, str, bool], list[tuple[str, Path | None]]] = {}
        self._sha256: dict[Path, tuple[os.stat_result, str]] = {}
        self.commit()
        self._server = _Server(("127.0.0.1", port), self)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def head(self) -> str:
        """The newest commit."""
        return next(reversed(self.commits))

    def commit(self) -> str:
        """Make what the folder holds now the head of ``main``; older commits stay served."""
        files = {
            path.relative_to(self.root).as_posix(): path
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }
        listing = "".join(f"{name} {path.stat().st_size}\n" for name, path in files.items())
        text = f"{len(self.commits)}\n{listing}"
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        return sha

    def sha256(self, path: Path) -> str:
        """Checksum of a served file, computed when it is first asked for."""
        stat = path.stat()
        with self._lock:
            known = self._sha256.get(path)
        if known is None or known[0].st_mtime_ns != stat.st_mtime_ns:
            with path.open("rb") as file:
                known = stat, hashlib.file_digest(file, "sha256").hexdigest()
            with self._lock:
                self._sha256[path] = known
        return known[1]

    def tree(self, commit: str, folder: str, recursive: bool) -> list[tuple[str, Path | None]]:
        """What a commit has below a folder; folders have no path."""
        asked = commit, folder, recursive
        if asked not in self._trees:
            prefix = f"{folder}/" if folder else ""
            entries: dict[str, Path | None] = {}
            for name, path in self.commits[commit].items():
                if not name.startswith(prefix):
                    continue
                steps = name.removeprefix(prefix).split("/")
                for depth in range(1, len(steps) if recursive else min(2, len(steps))):
                    entries.setdefault(prefix + "/".join(steps[:depth]))
                if recursive or len(steps) == 1:
                    entries[name] = path
            self._trees[asked] = list(entries.items())
        return self._trees[asked]

    def count(self, endpoint: Endpoint) -> int:
        """Requests that this endpoint has had."""
        return sum(request.endpoint == endpoint for request in self.requests)

    def next_answer_fault(self, endpoint: Endpoint) -> AnswerFault | None:
        """How the next answer of an endpoint is not to end."""
        with self._lock:
            planned = self.faults.answers.get(endpoint)
            return planned.pop(0) if planned else None

    def next_fault(self, request: Request) -> tuple[int, BodyFault | None]:
        """Note a request; the status and the fault of the body it is to be answered with."""
        faults = self.faults
        with self._lock:
            self.requests.append(request)
            self._seen[request.endpoint, request.path] += 1
            number = self._seen[request.endpoint, request.path]
            planned = faults.statuses.get(request.endpoint)
            if planned:
                return planned.pop(0), None
            has_body = request.endpoint == "cdn" or (
                request.endpoint == "resolve" and not self.redirect
            )
            if has_body and faults.bodies:
                return 200, faults.bodies.pop(0)
        dice = random.Random(f"{faults.seed} {request.endpoint} {request.path} {number}")
        if dice.random() >= faults.failure_rate:
            return 200, None
        ways: list[int | BodyFault] = [429, 500, 503, 0]
        if has_body:
            ways += _BODY_FAULTS
        way = dice.choice(ways)
        return (way, None) if isinstance(way, int) else (200, way)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], hub: LocalHub) -> None:
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.connections):  # kept alive, they would be served without end
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is no error here
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    answer_fault: AnswerFault | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in :attr:`LocalHub.requests`, not printed."""

    def do_HEAD(self) -> None:
        """The same as GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer one request."""
        hub = self.server.hub
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        api, site = f"/api/datasets/{hub.repo_id}", f"/datasets/{hub.repo_id}/resolve/"
        if url.path.startswith("/cdn/"):
            endpoint: Endpoint = "cdn"
            parts = url.path.removeprefix("/cdn/").split("/", 1)
        elif url.path.startswith(site):
            endpoint = "resolve"
            parts = url.path.removeprefix(site).split("/", 1)
        elif url.path.startswith(f"{api}/tree/"):
            endpoint = "tree"
            parts = url.path.removeprefix(f"{api}/tree/").split("/", 1)
        elif url.path == api or url.path.startswith(f"{api}/revision/"):
            endpoint = "info"
            parts = [url.path.removeprefix(api).removeprefix("/revision/") or "main"]
        else:
            return self._refuse(404, "RepoNotFound")
        revision, path = unquote(parts[0]), unquote(parts[1]) if len(parts) > 1 else ""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        status, fault = hub.next_fault(Request(endpoint, path, start, token))
        self.answer_fault = hub.next_answer_fault(endpoint)
        if status == 0:
            return self._reset()
        if status != 200:
            return self._refuse(status)
        if endpoint == "cdn":
            if token is not None or float(query["expires"][0]) < time.time():
                return self._refuse(403)
        elif hub.token is not None and token is None:
            return self._refuse(401, "GatedRepo" if hub.gated else "RepoNotFound")
        elif hub.token is not None and token != hub.token:
            return self._refuse(401)
        elif hub.gated:
            return self._refuse(403, "GatedRepo")
        commit = hub.head if revision == "main" else revision
        files = hub.commits.get(commit)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        if endpoint == "info":
            return self._send_json({"id": hub.repo_id, "sha": commit})
        if endpoint == "tree":
            return self._send_tree(commit, path, query)
        if path not in files:
            return self._refuse(404, "EntryNotFound")
        if endpoint == "resolve" and hub.redirect:
            return self._send_redirect(commit, path, files[path])
        return self._send_file(commit, files[path], start, fault)

    def _send_tree(self, commit: str, folder: str, query: dict[str, list[str]]) -> None:
        hub = self.server.hub
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries = hub.tree(commit, folder, recursive)
        if not entries:
            return self._refuse(404, "EntryNotFound")
        begin = int(query.get("cursor", ["0"])[0])
        page = entries[begin : begin + hub.page_size]
        headers = {}
        if begin + hub.page_size < len(entries):
            query["cursor"] = [str(begin + hub.page_size)]
            rest = "&".join(f"{name}={quote(values[0])}" for name, values in query.items())
            headers["Link"] = f'<{hub.url}{urlsplit(self.path).path}?{rest}>; rel="next"'
        return self._send_json([self._entry(name, path) for name, path in page], headers)

    def _entry(self, name: str, path: Path | None) -> dict[str, Any]:
        if path is None:
            return {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
        size, oid = path.stat().st_size, self.server.hub.sha256(path)
        lfs = {"oid": oid, "size": size, "pointerSize": 134}
        return {"type": "file", "path": name, "size": size, "oid": oid[:40], "lfs": lfs}

    def _send_redirect(self, commit: str, name: str, path: Path) -> None:
        hub = self.server.hub
        expires = time.time() + _CDN_LIFETIME_S
        if hub.faults.expired_redirects > 0:
            hub.faults.expired_redirects -= 1
            expires = 0
        place = f"http://localhost:{hub.port}/cdn/{commit}/{quote(name)}?expires={expires}"
        headers = self._file_headers(commit, path)
        self._send_small(302, {**headers, "Location": place}, b"")

    def _file_headers(self, commit: str, path: Path) -> dict[str, str]:
        oid = f'"{self.server.hub.sha256(path)}"'
        return {
            "X-Repo-Commit": commit,
            "ETag": oid,
            "X-Linked-ETag": oid,
            "X-Linked-Size": str(path.stat().st_size),
            "Accept-Ranges": "bytes",
        }

    def _send_file(self, commit: str, path: Path, start: int, fault: BodyFault | None) -> None:
        size = path.stat().st_size
        headers = self._file_headers(commit, path)
        if start >= size > 0:
            return self._refuse(416)
        status = 200
        if "Range" in self.headers and not self.server.hub.faults.ignore_range:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        else:
            start = 0
        self._send_head(status, {**headers, "Content-Length": str(size - start)})
        if self.command == "HEAD":
            return None
        with path.open("rb") as file:
            if fault is None:
                self._copy(file.fileno(), start, size)
                return None
            middle = (start + size) // 2
            self._copy(file.fileno(), start, middle)
            if fault == "flip":
                byte = os.pread(file.fileno(), 1, middle)
                self.connection.sendall(bytes(value ^ 1 for value in byte))
                self._copy(file.fileno(), middle + 1, size)
                return None
            if fault == "trickle":
                for offset in range(middle, size):
                    if self.server.hub.closing.wait(_TRICKLE_S):
                        break
                    self.connection.sendall(os.pread(file.fileno(), 1, offset))
            if fault == "stall":
                # Until the client gives up, which the readable end of the stream shows.
                self.connection.settimeout(0.1)
                while not self.server.hub.closing.is_set():
                    try:
                        self.connection.recv(1)
                        break
                    except TimeoutError:
                        continue
        if fault == "reset":
            return self._reset()
        self.close_connection = True
        return None

    def _copy(self, file: int, start: int, stop: int) -> None:
        while start < stop:
            sent = os.sendfile(self.connection.fileno(), file, start, stop - start)
            if not sent:
                raise OSError("the file became shorter while it was served")
            start += sent

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # The server would send FIN before it closes; closed here, the socket sends RST alone.
        os.close(self.connection.detach())

    def _refuse(self, status: int, code: str | None = None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        if status in (429, 503) and self.server.hub.faults.retry_after is not None:
            headers["Retry-After"] = self.server.hub.faults.retry_after
        self._send_json({"error": code or str(status)}, headers, status)

    def _send_json(
        self, value: Any, headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        body = json.dumps(value).encode()
        self._send_small(status, {"Content-Type": "application/json", **(headers or {})}, body)

    def _send_small(self, status: int, headers: dict[str, str], body: bytes) -> None:
        trickles = self.answer_fault == "trickle_body"
        length = _TRICKLED_BYTES if trickles else len(body)
        self._send_head(status, {**headers, "Content-Length": str(length)})
        if trickles:
            self._trickle(b" ")
        elif self.command != "HEAD":
            self.wfile.write(body)

    def _trickle(self, piece: bytes) -> None:
        """Send the same again and again, until the client goes away."""
        self.close_connection = True
        while not self.server.hub.closing.wait(_TRICKLE_S):
            self.wfile.write(piece)

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        faults = self.server.hub.faults
        if self.answer_fault == "continue":
            self._trickle(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.send_response(status)
        if self.answer_fault == "trickle_head":
            self.flush_headers()
            self.wfile.write(b"X-Slow: ")
            self._trickle(b"-")
        if not self.path.startswith("/cdn/"):
            limits = {"RateLimit": faults.rate_limit, "RateLimit-Policy": faults.rate_limit_policy}
            headers |= {name: value for name, value in limits.items() if value is not None}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def main(arguments: Iterable[str] | None = None) -> None:
    """Serve a folder until the process is ended; the address is printed when it can be used."""
    parser = argparse.ArgumentParser(prog="python -m ctgpu.testing.hub", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--repo-id", default="local/ct-rate")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--redirect", action="store_true")
    parser.add_argument("--failure-rate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    faults = Faults(failure_rate=chosen.failure_rate, seed=chosen.seed)
    with LocalHub(
        chosen.root, chosen.repo_id, redirect=chosen.redirect, faults=faults, port=chosen.port
    ) as hub:
        sys.stdout.write(f"{hub.url}\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            hub.closing.wait()


if __name__ == "__main__":
    main()
