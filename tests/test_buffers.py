"""The pool recycles, the budget admits; neither ever loses a byte or deadlocks."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ctgpu.buffers import PAGE_BYTES, BufferPool, ByteBudget

MIB = 1 << 20


def test_memory_is_used_again():
    pool = BufferPool()
    first = pool.acquire(5 * MIB)
    address = first.bytes.ctypes.data
    assert first.size_bytes == len(first.bytes) == 5 * MIB
    assert len(first.capacity) == pool.lent_bytes == 6 * MIB
    first.release()
    assert (pool.lent_bytes, pool.idle_bytes) == (0, 6 * MIB)
    second = pool.acquire(4 * MIB)
    assert second.bytes.ctypes.data == address
    assert pool.idle_bytes == 0


def test_a_small_volume_does_not_take_a_large_buffer():
    pool = BufferPool()
    pool.acquire(100 * MIB).release()
    pool.acquire(10 * MIB)
    assert pool.idle_bytes == 100 * MIB


def test_the_smallest_buffer_that_fits_is_taken():
    pool = BufferPool()
    held = [pool.acquire(size * MIB) for size in (14, 10, 12)]
    addresses = [buffer.bytes.ctypes.data for buffer in held]
    for buffer in held:
        buffer.release()
    assert pool.acquire(10 * MIB).bytes.ctypes.data == addresses[1]
    assert pool.acquire(10 * MIB).bytes.ctypes.data == addresses[2]


def test_a_released_buffer_cannot_be_used():
    pool = BufferPool()
    with pool.acquire(10) as buffer:
        view = buffer.array((2, 2), np.uint8, offset=3, order="F")
        view[:] = [[1, 2], [3, 4]]
        assert buffer.bytes.tolist()[3:7] == [1, 3, 2, 4]
    for use in ("bytes", "capacity"):
        with pytest.raises(ValueError, match="released"):
            getattr(buffer, use)
    buffer.release()
    assert (pool.lent_bytes, pool.idle_bytes) == (0, PAGE_BYTES)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_buffer_is_released_on_any_error_and_on_nothing_else(error):
    pool = BufferPool()
    buffer = pool.acquire(10)
    with buffer.released_on_error():
        buffer.bytes[:] = 7
    assert pool.lent_bytes == PAGE_BYTES
    assert buffer.bytes.tolist() == [7] * 10
    for _ in range(2):  # the second finds it released, which is harmless
        with pytest.raises(error), buffer.released_on_error():
            raise error
        assert (pool.lent_bytes, pool.idle_bytes) == (0, PAGE_BYTES)


def test_a_view_cannot_leave_its_buffer():
    with BufferPool().acquire(10) as buffer, pytest.raises((TypeError, ValueError)):
        buffer.array((11,), np.uint8)


def test_idle_memory_yields_to_the_limit_oldest_first():
    pool = BufferPool(limit_bytes=30 * MIB)
    held = [pool.acquire(size * MIB) for size in (4, 8, 12)]
    for buffer in held:
        buffer.release()
    assert pool.idle_bytes == 24 * MIB
    large = pool.acquire(20 * MIB)
    assert pool.idle_bytes + pool.lent_bytes <= 30 * MIB
    large.release()
    assert pool.idle_bytes <= 30 * MIB


def test_a_loan_beyond_the_limit_is_granted_and_not_kept():
    pool = BufferPool(limit_bytes=4 * MIB)
    with pool.acquire(10 * MIB):
        assert pool.lent_bytes == 10 * MIB
    assert (pool.lent_bytes, pool.idle_bytes) == (0, 0)


def test_the_engine_chooses_the_memory():
    asked: list[int] = []

    def allocate(size_bytes: int) -> np.ndarray:
        asked.append(size_bytes)
        return np.zeros(size_bytes, np.uint8)

    pool = BufferPool(allocate=allocate)
    pool.acquire(1000).release()
    pool.acquire(1000)
    assert asked == [1000]


def test_a_failed_allocation_leaves_the_pool_as_it_was():
    def fail(size_bytes: int) -> np.ndarray:
        raise MemoryError

    pool = BufferPool(allocate=fail)
    with pytest.raises(MemoryError):
        pool.acquire(10)
    assert (pool.lent_bytes, pool.idle_bytes) == (0, 0)


def test_memory_that_no_array_was_made_of_goes_back_at_once():
    pool = BufferPool()
    pool.acquire(1 << 16).release_with_arrays()
    assert (pool.lent_bytes, pool.idle_bytes) == (0, 1 << 16)


@pytest.mark.slow
def test_memory_is_lent_until_nobody_holds_a_view_of_an_array():
    pool = BufferPool()
    buffer = pool.acquire(1 << 16)
    array = buffer.array((4, 1 << 12), "<f4")
    row, address = array[1], array.ctypes.data
    buffer.release_with_arrays()
    with pytest.raises(ValueError, match="was released"):
        buffer.bytes  # noqa: B018
    del array
    gc.collect()
    assert (pool.lent_bytes, pool.idle_bytes) == (1 << 16, 0)
    del row
    assert (pool.lent_bytes, pool.idle_bytes) == (0, 1 << 16)
    with pool.acquire(1 << 16) as again:
        assert again.bytes.ctypes.data == address


def test_an_array_may_be_collected_in_the_middle_of_anything():
    """Also in a thread that holds the pool's lock, which the collector may not wait for."""
    pool = BufferPool()
    buffer = pool.acquire(1 << 16)
    array = buffer.array((1 << 16,), "u1")
    buffer.release_with_arrays()
    with pool._lock:
        del array
    assert (pool.lent_bytes, pool.idle_bytes) == (0, 1 << 16)


def test_no_two_threads_hold_the_same_memory():
    pool = BufferPool()

    def work(mark: int) -> bool:
        for _ in range(200):
            with pool.acquire(PAGE_BYTES) as buffer:
                buffer.bytes[:] = mark
                if (buffer.bytes != mark).any():
                    return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    assert pool.lent_bytes == 0
    assert pool.idle_bytes <= 8 * PAGE_BYTES


def test_the_budget_admits_what_fits():
    budget = ByteBudget(100)
    first, second = budget.admit(60), budget.admit(40)
    assert budget.used_bytes == budget.peak_bytes == 100
    first.release()
    first.release()
    assert budget.used_bytes == 40
    second.release()
    assert (budget.used_bytes, budget.peak_bytes) == (0, 100)


def waiting(budget: ByteBudget, size_bytes: int) -> tuple[threading.Thread, list[object]]:
    """A thread that asks for admission, and where its answer will be."""
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(budget.admit(size_bytes)), daemon=True)
    thread.start()
    return thread, answers


def test_what_does_not_fit_waits_until_it_does():
    budget = ByteBudget(100)
    first, second = budget.admit(60), budget.admit(30)
    thread, answers = waiting(budget, 50)
    second.release()
    thread.join(0.05)
    assert answers == []
    first.release()
    thread.join(10)
    assert [r.size_bytes for r in answers] == [50]
    assert budget.peak_bytes == 90


def test_one_larger_than_the_budget_is_admitted_alone():
    budget = ByteBudget(100)
    first = budget.admit(10)
    thread, answers = waiting(budget, 500)
    thread.join(0.05)
    assert answers == []
    first.release()
    thread.join(10)
    assert budget.used_bytes == 500
    other, later = waiting(budget, 1)
    other.join(0.05)
    assert later == []
    answers[0].release()
    other.join(10)
    assert budget.used_bytes == 1


def test_closing_wakes_everyone():
    budget = ByteBudget(100)
    held = budget.admit(100)
    thread, answers = waiting(budget, 1)
    budget.close()
    thread.join(10)
    assert answers == [None]
    assert budget.admit(1) is None
    held.release()


def test_shrinking_makes_room():
    budget = ByteBudget(100)
    first = budget.admit(90)
    thread, answers = waiting(budget, 50)
    assert first.try_resize(40)
    thread.join(10)
    assert len(answers) == 1
    assert budget.used_bytes == 90


def test_only_the_oldest_may_grow_beyond_the_budget():
    budget = ByteBudget(100)
    first, second = budget.admit(50), budget.admit(30)
    assert second.try_resize(50)
    assert not second.try_resize(51)
    assert second.size_bytes == 50
    # The writer waits for the oldest, so refusing it would stop everything.
    assert first.try_resize(80)
    assert budget.peak_bytes == 130
    first.release()
    assert second.try_resize(300)
    assert budget.used_bytes == 300


def test_the_budget_holds_under_many_threads():
    budget = ByteBudget(100)
    over: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            reservation = budget.admit(int(rng.integers(1, 60)))
            if budget.used_bytes > 100:
                over.append(budget.used_bytes)
            reservation.release()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert over == []
    assert 0 < budget.peak_bytes <= 100
    assert budget.used_bytes == 0
