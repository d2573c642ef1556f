"""Hand-offs: the earliest sample first, and an end for those who wait."""

from __future__ import annotations

import threading

import pytest

from ctgpu.buffers import ByteBudget
from ctgpu.building.channel import Channel, Item


@pytest.fixture
def budget() -> ByteBudget:
    return ByteBudget(1 << 20)


def item_of(budget: ByteBudget, payload: object = None) -> Item:
    reservation = budget.admit(1)
    assert reservation is not None
    return Item(reservation.order, reservation, payload)


def test_the_earliest_comes_first_whatever_is_put_first(budget: ByteBudget) -> None:
    channel = Channel(budget.changed, 1)
    # Payloads that nothing can bring into an order.
    items = [item_of(budget, object()) for _ in range(5)]
    for place in (3, 0, 4, 1, 2):
        channel.put(items[place])
    assert [channel.get() for _ in items] == items


def test_of_what_is_there_a_batch_takes_no_more_than_it_has_room_for(budget: ByteBudget) -> None:
    channel = Channel(budget.changed, 1)
    items = [item_of(budget) for _ in range(3)]
    for item in reversed(items):
        channel.put(item)
    assert channel.get_waiting(2) == items[:2]
    assert channel.get_waiting(2) == items[2:]
    assert channel.get_waiting(2) == []


def test_the_end_comes_when_all_producers_are_done_and_nothing_is_left(budget: ByteBudget) -> None:
    channel = Channel(budget.changed, 2)
    item = item_of(budget)
    channel.done()
    channel.put(item)
    channel.done()
    assert channel.get() is item
    assert channel.get() is None


def test_one_that_is_not_taken_yet_holds_back_the_later_ones(budget: ByteBudget) -> None:
    channel = Channel(budget.changed, 1)
    items = [item_of(budget) for _ in range(2)]
    for item in items:
        channel.put(item)
    asked: list[Item] = []
    taken: list[Item | None] = []
    accepts = threading.Event()

    def accept(item: Item) -> bool:
        asked.append(item)
        return accepts.is_set()

    waiting = threading.Thread(target=lambda: taken.append(channel.get(accept)))
    waiting.start()
    while not asked:
        with budget.changed:
            budget.changed.notify_all()
    accepts.set()
    with budget.changed:
        budget.changed.notify_all()
    waiting.join(60)
    assert taken == [items[0]]
    assert all(item is items[0] for item in asked)


@pytest.mark.parametrize("ends", ["done", "stop"])
def test_those_who_wait_are_woken_at_the_end(budget: ByteBudget, ends: str) -> None:
    channel = Channel(budget.changed, 1)
    found: list[Item | None] = []
    threads = [threading.Thread(target=lambda: found.append(channel.get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    getattr(channel, ends)()
    for thread in threads:
        thread.join(60)
    assert found == [None, None, None]


def test_what_is_left_of_one_that_is_stopped_is_given_back_once(budget: ByteBudget) -> None:
    channel = Channel(budget.changed, 1)
    items = [item_of(budget) for _ in range(2)]
    for item in items:
        channel.put(item)
    assert channel.stop() == items
    assert channel.get() is None
    assert channel.stop() == []
