"""What happens in a build, told to those who watch it."""

from __future__ import annotations

import io
import json
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from ctgpu.building import events
from ctgpu.building.events import Event, Listing, Planned, SampleWritten, ShardCommitted, ignore
from ctgpu.building.pipeline import Failure
from ctgpu.cli.display import Display
from ctgpu.cli.terminal import Console
from support.building import builds
from support.phantoms import COARSE_SPEC

EVENTS = get_args(Event)
EXAMPLES: dict[str, Any] = {
    "source": {"kind": "folder", "location": "here"},
    "counts": {"listed": 6},
    "tables": (),
    "failure": Failure("decode", "DecodeError", "cut short"),
    **dict.fromkeys(("key", "path", "holder", "data_set", "orientation"), "a"),
}


def example(kind: type) -> Any:
    return kind(**{one.name: EXAMPLES.get(one.name, 1) for one in fields(kind)})


def test_every_event_of_the_module_is_one() -> None:
    defined = {k for k in vars(events).values() if isinstance(k, type) and is_dataclass(k)}
    assert set(EVENTS) == {kind for kind in defined if kind.__module__ == events.__name__}


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_cannot_be_changed_by_one_who_watches(kind: type) -> None:
    event = example(kind)
    with pytest.raises(FrozenInstanceError):
        setattr(event, fields(kind)[0].name, None)
    assert event == example(kind)


@pytest.mark.parametrize("kind", EVENTS)
def test_the_display_takes_every_event(kind: type) -> None:
    with Display(Console(file=io.StringIO())) as display:
        display(Planned({}, 6, 2, 2, 6))
        display(example(kind))


def test_one_who_watches_may_do_nothing() -> None:
    for kind in EVENTS:
        ignore(example(kind))


def test_they_come_in_order_and_add_up(tmp_path: Path, source: Path) -> None:
    told: list[Event] = []
    build = builds(spec=COARSE_SPEC, samples_per_shard=4)
    report = build(tmp_path / "out", source, watch=told.append)
    assert [type(event) for event in told[:2]] == [Listing, Planned]
    planned = told[1]
    assert isinstance(planned, Planned)
    assert (planned.samples, planned.shards, planned.data_set) == (6, 2, "CT-RATE")
    assert (planned.pending_samples, planned.pending_shards) == (6, 2)
    written = [event for event in told if isinstance(event, SampleWritten)]
    assert sum(event.stored_bytes for event in written) == report.stored_bytes
    committed = [event for event in told if isinstance(event, ShardCommitted)]
    assert [(event.shard, event.samples) for event in committed] == [(0, 4), (1, 2)]
    for event in committed:
        name = f"shard-{event.shard:06d}.tar"
        assert event.size_bytes == (tmp_path / "out" / name).stat().st_size
    again: list[Event] = []
    build(tmp_path / "out", watch=again.append)
    (planned,) = again
    assert isinstance(planned, Planned)
    assert (planned.pending_samples, planned.pending_shards, planned.tables) == (0, 0, ())
    assert json.loads(report.to_json())["written"] == len(written)
