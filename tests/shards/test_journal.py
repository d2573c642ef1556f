"""What a journal is believed about a shard that is not finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash
from shard_samples import MASKS, fail, make_plan, pack

from ctgpu.shards.journal import Journal, JournalHeader, read_journal
from ctgpu.shards.writer import ShardWriter


@pytest.mark.parametrize("cut", [1, 30, 500])
def test_a_torn_or_garbled_journal_is_believed_up_to_there(cut: int, tmp_path: Path) -> None:
    plan = make_plan()
    first = ShardWriter(tmp_path, plan, 0)
    for sample in plan.samples[:3]:
        first.append(pack(plan, sample))
    first.abandon()
    journal = tmp_path / "shard-000000.journal"
    content = journal.read_bytes()
    for damaged, kept in (
        (content[:-cut], {1: 2, 30: 2, 500: 1}[cut]),
        (b"\0" * 4096, 0),
        (b"", 0),
    ):
        journal.write_bytes(damaged)
        again = ShardWriter(tmp_path, plan, 0)
        assert len(again.done) == kept
        again.abandon()


def test_a_journal_line_is_believed_whole_or_not_at_all(tmp_path: Path) -> None:
    plan = make_plan()
    first = ShardWriter(tmp_path, plan, 0)
    first.skip(fail(plan.samples[0]))
    first.abandon()
    journal = tmp_path / "shard-000000.journal"
    journal.write_bytes(journal.read_bytes().replace(b"not a volume", b"got a volume"))
    again = ShardWriter(tmp_path, plan, 0)
    assert again.failed == []
    again.abandon()


def test_a_journal_of_other_samples_is_not_believed(tmp_path: Path) -> None:
    plan = make_plan()
    first = ShardWriter(tmp_path, plan, 0)
    first.append(pack(plan, plan.samples[0]))
    first.abandon()
    changed = [replace(sample, checksum="sha256:11") for sample in plan.samples]
    for other in (
        replace(plan, fingerprint="0" * 16),
        replace(plan, samples=changed),
        replace(plan, masks=MASKS),
    ):
        again = ShardWriter(tmp_path, other, 0)
        assert again.done == []
        again.abandon()


def test_lines_come_back_up_to_the_first_that_is_not_intact(tmp_path: Path) -> None:
    plan = make_plan()
    header = JournalHeader.of(0, plan)
    path = tmp_path / "shard-000000.journal"
    assert read_journal(path, header) == (0, [])
    journal = Journal(path, 0)
    journal.begin(header)
    header_bytes = path.stat().st_size
    assert read_journal(path, header) == (header_bytes, [])
    entries = [fail(sample) for sample in plan.samples[:3]]
    for entry in entries:
        journal.append(entry)
    journal.sync()
    journal.close()
    found_bytes, lines = read_journal(path, header)
    assert found_bytes == header_bytes
    assert [line.entry for line in lines] == entries
    assert lines[-1].end == path.stat().st_size
    # What is gone on with begins where what is believed ends.
    again = Journal(path, lines[1].end)
    again.append(entries[0])
    again.close()
    assert [line.entry for line in read_journal(path, header)[1]] == [*entries[:2], entries[0]]


@pytest.mark.parametrize("change", [{"shard_index": 1}, {"fingerprint": "f" * 16}, {"samples": ""}])
def test_the_journal_of_another_shard_says_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    plan = make_plan()
    header = JournalHeader.of(0, plan)
    path = tmp_path / "shard-000000.journal"
    journal = Journal(path, 0)
    journal.begin(header)
    journal.append(fail(plan.samples[0]))
    journal.close()
    assert read_journal(path, replace(header, **change)) == (0, [])


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"[]",
        b'{"failure":{"key":"../up","path":"a","stage":"s","error_class":"E","message":""}}',
        b'{"sample":{"key":"a","study_id":"a","start":0,"end":1,"members":{}}}',
    ],
)
def test_a_line_with_its_checksum_that_says_nothing_ends_what_is_believed(
    tmp_path: Path, text: bytes
) -> None:
    plan = make_plan()
    header = JournalHeader.of(0, plan)
    path = tmp_path / "shard-000000.journal"
    journal = Journal(path, 0)
    journal.begin(header)
    journal.append(fail(plan.samples[0]))
    journal.close()
    sealed = xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"
    with path.open("ab") as file:
        file.write(sealed)
    assert [line.entry for line in read_journal(path, header)[1]] == [fail(plan.samples[0])]


def test_what_is_no_file_is_not_taken_for_a_missing_journal(tmp_path: Path) -> None:
    path = tmp_path / "shard-000000.journal"
    path.mkdir()
    with pytest.raises(OSError):  # noqa: PT011  (whichever it is, it is not passed over)
        read_journal(path, JournalHeader.of(0, make_plan()))
