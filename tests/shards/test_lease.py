from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ctgpu
from ctgpu.errors import StorageError
from ctgpu.shards import lease as lease_module
from ctgpu.shards.lease import (
    Lease,
    LeaseHeld,
    LeaseLost,
    LeasesBlocked,
    LeaseSession,
    identity,
    process_start,
)
from ctgpu.shards.names import lease_name, session_name, shard_name
from ctgpu.spec import Spec
from ctgpu.testing.ctrate import lay_out_ct_rate
from support.phantoms import chest

_HOLD = """
import sys
from pathlib import Path
from ctgpu.shards.lease import LeaseSession
session = LeaseSession(Path(sys.argv[1]))
session.acquire(int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""

SMALL = Spec(target_spacing_mm=(4.0, 4.0, 6.0), shape_hwd=(72, 72, 36))


def _lay_out_one(source: Path) -> None:
    lay_out_ct_rate(source, {"valid_1_a_1": chest((64, 60, 40))})


class Clock:
    """Monotonic seconds, by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds shard 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path), "0"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def _foreign(
    folder: Path, slot: int = 0, *, session: str = "foreign", host: str = "elsewhere"
) -> Path:
    """A lease on shard 0 by a process of another host."""
    path = folder / lease_name(shard_name(0), slot)
    owner = {"host": host, "pid": 1, "started": "1", "session": session, "id": f"{session}{slot}"}
    path.write_text(json.dumps(owner))
    return path


def test_one_session_at_a_time(tmp_path: Path) -> None:
    with LeaseSession(tmp_path) as one, LeaseSession(tmp_path) as two:
        held = one.acquire(0)
        with pytest.raises(LeaseHeld, match=f"process {os.getpid()} on"):
            two.acquire(0)
        two.acquire(1)
        held.confirm()
        held.release()
        held.release()
        two.acquire(0).confirm()
        with pytest.raises(LeaseHeld):
            one.acquire(0)
    assert os.listdir(tmp_path) == []


def test_a_live_process_is_never_robbed(holder: subprocess.Popen[bytes], tmp_path: Path) -> None:
    clock = Clock()
    with LeaseSession(tmp_path, clock=clock) as session:
        for clock.now in (0.0, 1e6):
            with pytest.raises(LeaseHeld, match=str(holder.pid)):
                session.acquire(0)


def test_a_killed_process_of_this_host_is_seen_at_once(
    holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    holder.kill()
    # Not waited for: a zombie still has its process id.
    while process_start(holder.pid) is not None:
        time.sleep(0.01)
    with LeaseSession(tmp_path, clock=Clock()) as session:
        session.acquire(0).confirm()


@pytest.mark.slow
def test_a_session_clears_what_killed_ones_left(
    holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    holder.kill()
    holder.wait()
    with LeaseSession(tmp_path):
        pass
    assert not list(tmp_path.glob("*.lease.*"))


def test_a_recycled_process_id_is_seen(tmp_path: Path) -> None:
    with LeaseSession(tmp_path) as one:
        one.acquire(0)
        path = tmp_path / lease_name(shard_name(0), 0)
        owner = json.loads(path.read_text())
        path.write_text(json.dumps(owner | {"started": "before"}))
        with LeaseSession(tmp_path) as two:
            two.acquire(0).confirm()


def test_another_host_is_dead_after_a_minute_without_heartbeat(tmp_path: Path) -> None:
    clock = Clock()
    path = _foreign(tmp_path)
    beat = tmp_path / session_name("foreign")
    beat.write_text("1")
    with LeaseSession(tmp_path, clock=clock) as session:
        for clock.now, text in ((0.0, "1"), (59.0, "1"), (59.9, "2"), (119.0, "2")):
            beat.write_text(text)
            with pytest.raises(LeaseHeld, match="on elsewhere"):
                session.acquire(0)
        # A clock set wrong on the other host is of no account.
        os.utime(beat, (1e10, 1e10))
        clock.now = 120.0
        session.acquire(0).confirm()
        assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 3}', '{"pid": "x"}', "\udcff"])
def test_a_lease_that_says_nothing_dies_after_a_minute(content: str, tmp_path: Path) -> None:
    path = tmp_path / lease_name(shard_name(0), 0)
    path.write_text(content, errors="surrogateescape")
    clock = Clock()
    with LeaseSession(tmp_path, clock=clock) as session:
        with pytest.raises(LeaseHeld):
            session.acquire(0)
        clock.now = 60.0
        session.acquire(0).confirm()


def test_who_waits_takes_what_a_lost_host_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _foreign(tmp_path)
    clock = Clock()
    (tmp_path / session_name("foreign")).write_text("1")

    def pause(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(lease_module.time, "sleep", pause)
    with LeaseSession(tmp_path, clock=clock) as session:
        session.acquire_unless_alive(0).confirm()
    assert 60 <= clock.now < 62


def test_who_waits_goes_away_once_the_holder_shows_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _foreign(tmp_path)
    clock = Clock()
    (tmp_path / session_name("foreign")).write_text("1")

    def pause(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 5:
            (tmp_path / session_name("foreign")).write_text("2")

    monkeypatch.setattr(lease_module.time, "sleep", pause)
    with LeaseSession(tmp_path, clock=clock) as session, pytest.raises(LeaseHeld):
        session.acquire_unless_alive(0)
    assert clock.now < 8
    assert path.exists()


@pytest.mark.slow
def test_who_waits_does_not_wait_for_a_process_of_this_host(
    holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    session = LeaseSession(tmp_path, clock=Clock())
    with session, pytest.raises(LeaseHeld, match=str(holder.pid)):
        session.acquire_unless_alive(0)


def test_the_one_taken_for_dead_notices(tmp_path: Path) -> None:
    clock = Clock()
    # Its host paused it, so the heartbeat stands still.
    with LeaseSession(tmp_path, beat_every_s=1e6) as paused:
        held = paused.acquire(0)
        path = tmp_path / lease_name(shard_name(0), 0)
        owner = json.loads(path.read_text())
        content = json.dumps(owner | {"host": "elsewhere"})
        path.write_text(content)
        held._content = content
        with LeaseSession(tmp_path, clock=clock) as session:
            with pytest.raises(LeaseHeld):
                session.acquire(0)
            clock.now = 60.0
            taken = session.acquire(0)
            with pytest.raises(LeaseLost, match=r"shard-000000\.tar: another process took"):
                held.confirm()
            held.release()
            taken.confirm()


def test_the_heart_beats(tmp_path: Path) -> None:
    with LeaseSession(tmp_path, beat_every_s=0.001) as session:
        beats = set()
        while len(beats) < 3:
            beats.add(session._alive.read_bytes())
    assert "ctgpu-lease" not in {thread.name for thread in threading.enumerate()}


def test_a_dead_taker_does_not_block_the_next(tmp_path: Path) -> None:
    clock = Clock()
    for slot in range(3):
        _foreign(tmp_path, slot)
    with LeaseSession(tmp_path, clock=clock) as session:
        clock.now = 59.0
        with pytest.raises(LeaseHeld):
            session.acquire(0)
        clock.now = 60.0
        session.acquire(0).confirm()
        assert len(list(tmp_path.glob("*.lease.*"))) == 1


def test_four_dead_leases_stop_the_build_and_are_named(tmp_path: Path) -> None:
    clock = Clock()
    for slot in range(4):
        _foreign(tmp_path, slot)
    with LeaseSession(tmp_path, clock=clock) as session:
        with pytest.raises(LeaseHeld):
            session.acquire(0)
        clock.now = 60.0
        with pytest.raises(LeasesBlocked) as caught:
            session.acquire(0)
        with pytest.raises(LeasesBlocked):
            session.acquire_unless_alive(0)
        assert session.acquire(1)
    assert caught.value.exit_code == 3
    for slot in range(4):
        assert lease_name(shard_name(0), slot) in str(caught.value)
    assert "remove these files" in str(caught.value)


def test_four_dead_leases_of_this_host_stop_a_build(tmp_path: Path) -> None:
    _lay_out_one(tmp_path / "source")
    (folder := tmp_path / "out").mkdir()
    gone = json.dumps({**identity(), "pid": 2**22 + 1, "session": "gone"})
    for slot in range(4):
        (folder / lease_name(shard_name(0), slot)).write_text(gone)
    with pytest.raises(StorageError, match=r"lease\.0, .*lease\.3 are leases of processes"):
        ctgpu.build(folder, source=tmp_path / "source", device="cpu", spec=SMALL)
    for path in folder.glob("*.lease.*"):
        path.unlink()
    report = ctgpu.build(folder, source=tmp_path / "source", device="cpu", spec=SMALL)
    assert report.exit_code == 0


_DEEP = "[" * 60_000


@pytest.mark.parametrize(
    "content",
    [
        _DEEP,
        '{"host": ' + _DEEP,
        '{"host": "elsewhere", "pid": 1, "session": "a\\u0000b"}',
        '{"host": "elsewhere", "pid": 1, "session": "\\ud800"}',
        '{"host": "elsewhere", "pid": 1, "session": "../../../../etc/passwd"}',
        '{"host": "elsewhere", "pid": 1, "session": {"a": 1}}',
        '{"host": ["elsewhere"], "pid": {"a": 1}, "session": null}',
        '{"host": "\\ud800", "pid": "\\u0000", "session": "x"}',
        '{"host": "elsewhere", "pid": 1e999, "session": "x"}',
        '{"host": "elsewhere", "pid": ' + "9" * 5_000 + ', "session": "x"}',
        "\x00\x01\xff",
        "null",
        "x" * 60_000,
    ],
    ids=lambda content: content[:40].encode("unicode_escape").decode(),
)
def test_a_lease_that_is_none_of_ours_is_waited_for_and_taken(content: str, tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / lease_name(shard_name(0), 0)
    path.write_text(content, errors="surrogatepass")
    with LeaseSession(tmp_path, clock=clock) as session:
        with pytest.raises(LeaseHeld) as caught:
            session.acquire(0)
        assert len(str(caught.value)) < 400
        clock.now = 60.0
        session.acquire(0).confirm()
    assert not path.exists()


def test_a_lease_of_this_host_with_a_nonsensical_number_is_dead(tmp_path: Path) -> None:
    for pid in (10**400, -1, "1", None, 1.5, True):
        (tmp_path / lease_name(shard_name(0), 0)).write_text(
            json.dumps({**identity(), "pid": pid, "session": "x"})
        )
        with LeaseSession(tmp_path) as session:
            session.acquire(0).confirm()


@pytest.mark.parametrize("kind", ["pipe", "folder", "zeros", "long", "deep"])
def test_what_is_no_lease_file_is_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / lease_name(shard_name(0), 0)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "deep":
        path.write_text("[" * 200_000)
    else:
        path.write_bytes(bytes(1 << 20))
    with pytest.raises(StorageError, match=r"lease\.0 cannot be read: it .*remove it"):
        LeaseSession(tmp_path)
    assert not list(tmp_path.glob(".session-*"))


def test_a_lease_that_appears_during_a_takeover_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the dead lease over, finishes, and a third begins, all meanwhile."""
    clock = Clock()
    _foreign(tmp_path)
    write = lease_module.disk.write_new_file

    def meanwhile(path: Path, data: bytes) -> None:
        write(path, data)
        if path.name == lease_name(shard_name(0), 1):
            _foreign(tmp_path, session="third")

    with LeaseSession(tmp_path, clock=clock) as session:
        with pytest.raises(LeaseHeld):
            session.acquire(0)
        clock.now = 60.0
        monkeypatch.setattr(lease_module.disk, "write_new_file", meanwhile)
        with pytest.raises(LeaseHeld):
            session.acquire(0)
    (left,) = tmp_path.glob("*.lease.*")
    assert json.loads(left.read_text())["session"] == "third"


def test_of_many_takers_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads race for shards whose holders were killed; no two are ever inside at a time."""
    shards = 20
    inside = [0] * shards
    most = [0] * shards
    wins: list[int] = []
    lock = threading.Lock()
    start = threading.Barrier(4)
    for index in range(shards):
        dead = {"host": lease_module._host(), "pid": 2**22 + 5, "started": "1", "id": str(index)}
        (tmp_path / lease_name(shard_name(index), 0)).write_text(json.dumps(dead))
    with monkeypatch.context() as patch:
        # Made now, they would clear the dead leases before the race.
        patch.setattr(LeaseSession, "_clear_dead", lambda self: None)
        sessions = [LeaseSession(tmp_path) for _ in range(4)]

    def take(session: LeaseSession) -> None:
        start.wait()
        for index in range(shards):
            try:
                held: Lease = session.acquire(index)
            except LeaseHeld:
                continue
            with lock:
                wins.append(index)
                inside[index] += 1
                most[index] = max(most[index], inside[index])
            time.sleep(0.002)
            held.confirm()
            with lock:
                inside[index] -= 1
            held.release()

    threads = [threading.Thread(target=take, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
    assert max(most) == 1
    assert set(wins) == set(range(shards))


def test_process_start_tells_processes_apart() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid())
    assert process_start(os.getpid()) != process_start(1)
    assert process_start(2**22 + 5) is None
