"""Data sets that somebody tampered with: each command ends, with its work done or one sentence."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import corpus
import pytest

import ctgpu
from ctgpu.checking.facts import inspect_samples
from ctgpu.checking.recipe import Recipe
from ctgpu.checking.verify import verify_folder
from ctgpu.errors import CtgpuError, StorageError, UsageError
from ctgpu.loading.catalogue import find_shards
from ctgpu.shards.card import Card
from ctgpu.shards.index import index_text
from ctgpu.shards.journal import JournalHeader, read_journal
from ctgpu.shards.manifest import manifest_text, write_manifest
from ctgpu.shards.plan import Plan
from ctgpu.shards.reader import ShardReader
from ctgpu.shards.record import ShardRecord, ShardSummary
from ctgpu.viewing import write_view

# Two shards are committed, of one all samples but one failed; two are begun.
BEGUN = Path(__file__).parent.parent / "golden/1ecd6b5/ct-rate"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A data set half built, and its source beside it."""
    shutil.copytree(BEGUN, tmp_path, dirs_exist_ok=True)
    write_manifest(tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def bounded() -> Iterator[None]:
    """Neither hangs nor eats the machine's memory."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it hangs")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    usual = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def build(folder: Path) -> None:
    ctgpu.build(folder, source=folder.parent / "source", device="cpu")


def verify(folder: Path) -> None:
    for finding in verify_folder(folder).findings:
        assert "\n" not in finding.problem


def load(folder: Path) -> None:
    for shard in find_shards(folder)[1]:
        with ShardReader(shard.path) as reader:
            for entry in shard.samples:
                for extension in entry.members:
                    reader.read(entry, extension)


def inspect(folder: Path) -> None:
    for _ in inspect_samples(folder):
        pass


def view(folder: Path) -> None:
    write_view(folder, folder.parent / "view.html", num_samples=1)


COMMANDS: tuple[Callable[[Path], object], ...] = (
    *(inspect, load, view, verify, write_manifest, build),
)
PLACES = (
    "plan.json",
    "manifest.json",
    "failures.jsonl",
    "shard-000000.tar",
    "shard-000000.json",
    "shard-000000.idx",
    "shard-000002.tar.partial",
    "shard-000002.journal",
)


def one_sentence(command: Callable[[Path], object], folder: Path) -> str | None:
    """What the command says against the folder; None if it does its work."""
    try:
        command(folder)
    except CtgpuError as error:
        message = str(error)
        assert "\n" not in message
        assert 20 < len(message) < 800
        return message
    return None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux's devices and limits")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", corpus.NO_FILES)
def test_what_is_no_file_hangs_and_harms_nothing(
    kind: str, place: str, begun: Path, bounded: None
) -> None:
    corpus.put_in_place(begun / place, kind)
    said = {command.__name__: one_sentence(command, begun) for command in COMMANDS}
    assert said["verify"] is None
    if place in ("plan.json", "shard-000000.json", "shard-000000.tar"):
        # What the data set consists of is not replaced unasked.
        assert place in str(said["build"])
        assert place in str(said["write_manifest"])
    if said["build"] is None:
        # An index of a shard that is finished is made with the shard alone.
        left = {finding.file for finding in verify_folder(begun).findings}
        assert left == ({place} if place == "shard-000000.idx" else set())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux's devices and limits")
@pytest.mark.parametrize("kind", corpus.NO_FILES)
def test_what_is_no_file_is_named_by_verify(kind: str, begun: Path, bounded: None) -> None:
    build(begun)
    for place in PLACES[1:6]:
        kept = (begun / place).read_bytes()
        corpus.put_in_place(begun / place, kind)
        found = [finding.file for finding in verify_folder(begun).findings]
        # A record that is a link to nothing is as if it were gone, and so is a tar.
        assert found[0].partition(".")[0] == place.partition(".")[0]
        (shutil.rmtree if kind == "folder" else os.unlink)(begun / place)
        (begun / place).write_bytes(kept)
    assert verify_folder(begun).findings == []


@pytest.mark.parametrize("place", PLACES)
def test_a_file_larger_than_any_of_its_kind_is_not_read(place: str, begun: Path) -> None:
    os.truncate(begun / place, 1 << 40)
    for command in COMMANDS:
        one_sentence(command, begun)


def use_plan(folder: Path) -> None:
    plan = Plan.load(folder)
    assert plan.differences(plan) == []
    assert manifest_text(folder, plan)
    for sample in plan.samples:
        assert ".." not in sample.path.split("/")
        assert "/" not in sample.key


def use_record(folder: Path) -> None:
    record = ShardRecord.load(folder / "shard-000000.json")
    index_text(record)
    record.to_json()
    for entry in record.samples:
        assert entry.placement().end <= record.size_bytes


def use_summary(folder: Path) -> None:
    ShardSummary.load(folder / "shard-000000.json")


def use_card(folder: Path) -> None:
    assert Card.load(folder).spec.size_bytes > 0


def use_recipe(folder: Path) -> None:
    (folder / "plan.json").unlink(missing_ok=True)
    assert Recipe.beside(folder / "shard-000000.tar").spec.size_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "uses"),
    [
        ("plan.json", (use_plan,)),
        ("shard-000000.json", (use_record, use_summary, load)),
        ("manifest.json", (use_card, use_recipe)),
    ],
    ids=["plan", "record", "manifest"],
)
def test_json_of_any_content_is_used_or_refused_in_a_sentence(
    place: str, uses: tuple[Callable[[Path], object], ...], begun: Path
) -> None:
    valid = (begun / place).read_bytes()
    refused = 0
    variants = list(corpus.hostile_json(valid))
    for name, content in variants:
        (begun / place).write_bytes(content)
        for use in uses:
            try:
                refused += one_sentence(use, begun) is not None
            except Exception as error:
                raise AssertionError(f"{place}, where {name}") from error
    assert len(variants) > 300
    assert refused > 300


TYPES: dict[str, list[tuple[tuple[str | int, ...], object]]] = {
    "plan.json": [
        (("samples", 0, 0), "../../../evil"),
        (("samples", 0, 0), "a.b"),
        (("samples", 0, 0), ""),
        (("samples", 0, 1), None),
        (("samples", 0, 2), "/etc/passwd"),
        (("samples", 0, 2), "a/../../b.npz"),
        (("samples", 0, 2), "a\0.npz"),
        (("samples", 0, 3), -1),
        (("samples", 0, 3), True),
        (("samples", 0, 3), 2**63),
        (("samples", 0, 4), 5),
        (("samples", 0, 5), "v9"),
        (("samples", 0), []),
        (("samples",), {}),
        (("samples_per_shard",), 0),
        (("samples_per_shard",), True),
        (("samples_per_shard",), 2.0),
        (("fingerprint",), "../x"),
        (("fingerprint",), "0" * 15),
        (("class_names",), "abc"),
        (("class_names",), [1]),
        (("source",), {}),
        (("source", "kind"), "ftp"),
        (("source", "path"), 3),
        (("source", "path"), {}),
        (("source", "path"), "/a\0"),
        (("selection",), []),
        (("selection", "seed"), "0"),
        (("selection", "limit"), [1]),
        (("selection", "other"), {"a": 1}),
        (("spec", "shape_hwd"), [1, 2]),
        (("spec", "shape_hwd"), [True, 2, 3]),
        (("spec", "pad_value"), "0"),
        (("spec", "hu_window"), [10**400, 1]),
        (("spec", "layout"), []),
        (("split",), 1),
        (("dataset",), None),
    ],
    "shard-000000.json": [
        (("shard_index",), 1),
        (("size_bytes",), 2**63),
        (("size_bytes",), 1024),
        (("fingerprint",), "x"),
        (("num_samples",), True),
        (("samples", 0, "key"), "../../../evil"),
        (("samples", 0, "study_id"), 5),
        (("samples", 0, "start"), 512),
        (("samples", 0, "end"), 2**62),
        (("samples", 0, "labelled"), 1),
        (("samples", 0, "members", "bin"), [1024, 10**30, "0" * 32]),
        (("samples", 0, "members", "bin", 2), "x" * 32),
        (("samples", 0, "members", "cls", 2), "0" * 31),
        (("samples", 0, "members"), {}),
        (
            ("failures",),
            [{"key": "../x", "path": "", "stage": "", "error_class": "", "message": ""}],
        ),
        (("failures",), 3),
        (("run",), json.loads("[" * 50 + "]" * 50)),
        (("run",), {"deep": json.loads("[" * 50 + "]" * 50)}),
    ],
    "manifest.json": [
        (("fingerprint",), None),
        (("class_names",), [None]),
        (("spec", "pad_value"), "0"),
        (("planned_shards",), "3"),
    ],
}
CHANGES = [(place, *change) for place, changes in TYPES.items() for change in changes]


@pytest.mark.parametrize(
    ("place", "field", "value"),
    CHANGES,
    ids=[f"{p}-{'.'.join(map(str, f))}-{str(v)[:12]}".replace("\0", "0") for p, f, v in CHANGES],
)
def test_a_field_of_another_type_or_range_is_refused(
    place: str, field: tuple[str | int, ...], value: Any, begun: Path
) -> None:
    path = begun / place
    values = json.loads(path.read_bytes())
    inner = values
    for step in field[:-1]:
        inner = inner[step]
    inner[field[-1]] = value
    path.write_text(json.dumps(values))
    with pytest.raises((UsageError, StorageError), match=place) as caught:
        {"plan.json": use_plan, "shard-000000.json": use_record, "manifest.json": use_card}[place](
            begun
        )
    assert "\n" not in str(caught.value)


def test_a_plan_whose_keys_lead_out_makes_nothing_and_is_named(begun: Path) -> None:
    path = begun / "plan.json"
    path.write_bytes(path.read_bytes().replace(b'["valid_6_a_1"', b'["../../../evil"'))
    before = sorted(os.listdir(begun))
    with pytest.raises(UsageError, match=r"plan\.json is damaged .*'\.\./\.\./\.\./evil'"):
        build(begun)
    assert sorted(os.listdir(begun)) == before
    assert [f.file for f in verify_folder(begun).findings] == ["plan.json"]


def test_fields_that_nobody_knows_are_left_alone(begun: Path) -> None:
    for place in ("plan.json", "manifest.json", "shard-000000.json"):
        path = begun / place
        path.write_bytes(path.read_bytes().replace(b"{", b'{"later": [{"a": null}], ', 1))
    assert Plan.load(begun).differences(Plan.load(BEGUN / "shards")) == []
    assert Card.load(begun) == Card.load(BEGUN / "shards")
    # The summary of a record is its first line, whatever is in it.
    name = "shard-000000.json"
    assert ShardSummary.load(begun / name) == ShardSummary.load(BEGUN / "shards" / name)
    assert ShardRecord.load(begun / name) == ShardRecord.load(BEGUN / "shards" / name)


def test_names_that_are_no_utf8_stay_readable(begun: Path) -> None:
    path = begun / "plan.json"
    values = json.loads(path.read_bytes())
    values["dataset"] = values["source"]["location"] = "M\udcfcller"
    values["source"]["path"] = "/data/M\udcfcller"
    path.write_text(json.dumps(values))
    plan = Plan.load(begun)
    assert os.fsencode(plan.source["path"]) == b"/data/M\xfcller"
    write_manifest(begun)
    assert Card.load(begun).spec == plan.spec


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["sample", "failure"])
def test_a_journal_of_any_content_is_believed_up_to_the_first_odd_line(
    entry: str, tmp_path: Path
) -> None:
    from ctgpu.shards import journal as journal_module

    record = ShardRecord.load(BEGUN / "shards/shard-000001.json")
    known = (record.samples if entry == "sample" else record.failures)[0]
    header = JournalHeader(1, record.fingerprint, "0" * 32)
    path = tmp_path / "journal"
    journal = journal_module.Journal(path, 0)
    journal.begin(header)
    journal.close()
    begin = path.read_bytes()
    line = json.dumps({entry: known.to_dict()}).encode()
    good = journal_module._seal(line)
    path.write_bytes(begin + good)
    kept, lines = read_journal(path, header)
    assert (kept, [line.entry for line in lines]) == (len(begin), [known])
    for name, content in corpus.hostile_json(line):
        sealed = journal_module._seal(content)
        path.write_bytes(begin + good + sealed + good)
        kept, lines = read_journal(path, header)
        assert kept == len(begin), name
        assert lines[0].entry == known
        # And no header is anything but the one that is expected.
        path.write_bytes(sealed + good)
        assert read_journal(path, header) == (0, []), name
