"""Files that come in broken, slowly, or not as they were listed."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
from source_cases import (
    FOLDER,
    QUICK,
    VOLUME_BYTES,
    Open,
    fetch,
    file_name,
    first,
    random_bytes,
    starts,
)

from ctgpu.buffers import BufferPool
from ctgpu.errors import CtgpuError, FetchError, SourceError
from ctgpu.sources.hub.connection import Transient
from ctgpu.sources.hub.transfer import Patience, Throughput, Transfer
from ctgpu.testing.hub import BodyFault, Faults, LocalHub


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


# --- what has come in --------------------------------------------------------------------------


def answer_of(status: int, **headers: str) -> urllib3.HTTPResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return urllib3.HTTPResponse(status=status, headers=named)


def test_a_transfer_knows_what_is_left_and_how_far_it_ever_was() -> None:
    transfer = Transfer(memoryview(bytearray(10)))
    transfer.received = 7
    assert (len(transfer.rest), transfer.is_complete) == (3, False)
    transfer.begin(answer_of(206, Content_Range="bytes 7-9/10", Content_Length="3"))
    transfer.received = 10
    assert (len(transfer.rest), transfer.is_complete) == (0, True)
    # A server that sends all again takes back what was there, and no progress.
    transfer.begin(answer_of(200, Content_Length="10"))
    assert (transfer.received, transfer.furthest) == (0, 10)


@pytest.mark.parametrize("stated", ["bytes 6-9/10", "bytes 7-8/10", "bytes 7-9", "", "7-9/10"])
def test_another_range_than_the_one_asked_for_starts_again(stated: str) -> None:
    transfer = Transfer(memoryview(bytearray(10)))
    transfer.received = 7
    with pytest.raises(Transient, match="another range"):
        transfer.begin(answer_of(206, Content_Range=stated))
    assert transfer.received == 0


def test_a_length_that_does_not_fit_what_is_left_starts_again() -> None:
    transfer = Transfer(memoryview(bytearray(10)))
    transfer.received = 7
    with pytest.raises(Transient, match="announced 4 bytes where 10 are listed"):
        transfer.begin(answer_of(206, Content_Range="bytes 7-9/10", Content_Length="4"))
    assert transfer.received == 0
    transfer.begin(answer_of(200))


class FakeLine:
    """Notes the times that it is given."""

    def __init__(self) -> None:
        self.allowed: list[float] = []

    def allow(self, seconds: float) -> None:
        self.allowed.append(seconds)


def test_each_piece_gives_time_for_the_next_and_too_few_of_them_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("ctgpu.sources.hub.transfer.time.monotonic", lambda: now[0])
    patience = Patience(stall_s=10.0, slowest_bytes_per_s=100.0)
    line = FakeLine()
    watch = Throughput(patience, line)  # type: ignore[arg-type]
    watch.saw(1)
    now[0] += 10
    watch.saw(999)  # just enough in these ten seconds
    now[0] += 9.9
    watch.saw(1)  # too early to judge
    now[0] += 0.1
    with pytest.raises(Transient, match="only 0 bytes per second"):
        watch.saw(1)
    assert line.allowed == [10.0] * 5
