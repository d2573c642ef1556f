"""The pool recycles, the budget admits; neither ever loses a byte or deadlocks."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from ctgpu.buffers import (
    PAGE_BYTES,
    BufferPool,
    ByteBudget,
    allocate_pages,
    allocate_pinned,
    whole_pages,
)
from forking import Child

MIB = 1 << 20


@pytest.mark.parametrize(
    "size", [0, 1, PAGE_BYTES, PAGE_BYTES + 1, 2 * MIB - 1, 2 * MIB, 5 * MIB + 3]
)
def test_pages_are_aligned_and_large_enough(size):
    memory = allocate_pages(size)
    assert len(memory) >= max(size, 1)
    assert len(memory) == whole_pages(size) == whole_pages(len(memory))
    assert len(memory) % PAGE_BYTES == 0
    unit = 2 * MIB if size >= 2 * MIB else PAGE_BYTES
    assert memory.ctypes.data % unit == 0
    memory[:] = 1


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux describes mappings")


@needs_linux
@pytest.mark.parametrize("size", [2 * MIB, 5 * MIB + 3, 64 * MIB])
def test_large_memory_is_all_in_huge_pages(size):
    if not grants_huge_pages():
        pytest.skip("this system grants no huge pages, or has none left")

    def is_in_huge_pages():
        memory = allocate_pages(size)
        memory[:] = 1
        # At least: neighbours with the same properties are one mapping.
        return mapping_kib(memory)["AnonHugePages"] * 1024 >= len(memory)

    # The system may be short of them for a moment, with other tests beside this one.
    assert any(is_in_huge_pages() for _ in range(20))


@needs_linux
def test_large_memory_is_private():
    memory = allocate_pages(5 * MIB)
    memory[:] = 1
    assert mapping_kib(memory)["Anonymous"] * 1024 >= len(memory)


def test_what_surrounds_the_aligned_memory_takes_none():
    """A budget reserves what a buffer's size says."""
    held = [allocate_pages(4 * MIB) for _ in range(16)]
    before = psutil.Process().memory_info().rss
    for memory in held:
        memory[:] = 1
    grown = psutil.Process().memory_info().rss - before
    assert grown <= sum(map(len, held)) + 2 * MIB


def grants_huge_pages() -> bool:
    """Whether private memory gets any here that asks by itself."""
    pages = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return False
    memory = np.frombuffer(pages, np.uint8)
    memory[:] = 1
    return mapping_kib(memory[8 * MIB :])["AnonHugePages"] > 0


def mapping_kib(memory: np.ndarray) -> dict[str, int]:
    """What the kernel says of the mapping that `memory` begins in, in KiB."""
    facts: dict[str, int] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= memory.ctypes.data < int(span[2], 16)
        elif inside and (fact := re.match(r"(\w+): +(\d+) kB", line)):
            facts[fact[1]] = int(fact[2])
    return facts


class RefusingMap(mmap.mmap):
    """A mapping of a kernel that was built without huge pages."""

    def madvise(self, *_: int) -> None:
        raise OSError(22, "Invalid argument")


def test_a_kernel_without_huge_pages_gives_plain_ones(monkeypatch):
    monkeypatch.setattr("ctgpu.buffers.mmap.mmap", RefusingMap)
    memory = allocate_pages(5 * MIB)
    memory[:] = 7
    assert memory.ctypes.data % (2 * MIB) == 0


def test_a_system_without_advice_gives_plain_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    monkeypatch.setattr("ctgpu.buffers.mmap.mmap", RefusingMap)
    monkeypatch.setattr("ctgpu.buffers.sys.platform", "darwin")
    for memory in (allocate_pages(5 * MIB), Device().allocate(5 * MIB)):
        memory[:] = 7
        assert len(memory) == 6 * MIB


@needs_linux
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_beyond_a_limit_is_a_memory_error(limit):
    """Private memory counts as a process's data, so a limit of that holds for it as well."""
    script = f"""
import resource
from ctgpu.buffers import BufferPool, allocate_pages, allocate_pinned
resource.setrlimit(resource.{limit}, (1 << 30, 1 << 30))
pool = BufferPool()
pool.acquire(64 << 20).release()
for make in (allocate_pages, pool.acquire, lambda size: allocate_pinned(size, print, print)):
    try:
        make(4 << 30)
    except MemoryError as error:
        print(error)
pool.acquire(64 << 20).bytes[:] = 1
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout == "4294967296 bytes cannot be had: Cannot allocate memory\n" * 3


# ---- what a fork leaves -------------------------------------------------------------------------


class Device:
    """Stands for one that memory is registered with; see :func:`page_at` for what it would see."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.refuses = False

    def register(self, address: int, size_bytes: int) -> None:
        if self.refuses:
            raise PermissionError("the device refuses")
        self.registered[address] = size_bytes

    def unregister(self, address: int) -> None:
        # The memory must still be there: this would crash.
        ctypes.string_at(address, self.registered.pop(address))

    def allocate(self, size_bytes: int) -> np.ndarray:
        return allocate_pinned(size_bytes, self.register, self.unregister)


def page_at(address: int) -> Callable[[], int]:
    """Hold on to the page that is at an address, as a driver does; the result reads its first byte.

    A pipe into which memory is spliced holds its pages, wherever the address leads later.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    reading, writing = os.pipe()
    span = (ctypes.c_size_t * 2)(address, PAGE_BYTES)
    spliced = libc.vmsplice(writing, ctypes.byref(span), ctypes.c_size_t(1), 0)
    os.close(writing)
    if spliced != PAGE_BYTES:
        os.close(reading)
        pytest.skip(f"memory cannot be spliced here: {os.strerror(ctypes.get_errno())}")

    def read() -> int:
        with open(reading, "rb") as file:
            return file.read()[0]

    return read


def shared_pages(size_bytes: int) -> np.ndarray:
    """Memory that a child writes into its parent's, as that of some drivers."""
    return np.frombuffer(mmap.mmap(-1, size_bytes), np.uint8)


@needs_linux
@pytest.mark.parametrize("size", [PAGE_BYTES, 6 * MIB])
def test_after_a_fork_the_device_sees_what_this_process_writes(size):
    memory = Device().allocate(size)
    memory[:] = 1
    pages = [page_at(memory.ctypes.data + offset) for offset in (0, size - PAGE_BYTES)]
    child = Child(lambda: bytes([memory.min(), memory.max()]))
    memory[:] = 2
    assert child.sees() == bytes([0, 0])
    assert [read() for read in pages] == [2, 2]


@needs_linux
def test_plain_memory_is_copied_for_a_child():
    """Which is right for all but a device: it is left with the page of before."""
    memory = allocate_pages(6 * MIB)
    memory[:] = 1
    read = page_at(memory.ctypes.data)
    child = Child(lambda: bytes([memory.min(), memory.max()]))
    memory[:] = 2
    assert child.sees() == bytes([1, 1])
    assert read() == 1


@needs_linux
def test_a_child_may_use_and_free_what_it_has_of_pinned_memory():
    device = Device()
    memory = [device.allocate(6 * MIB)]
    memory[0][:] = 1

    def use_and_free() -> bytes:
        memory[0][:] = 3
        memory.clear()
        gc.collect()
        later = [allocate_pages(6 * MIB) for _ in range(4)]
        for n, pages in enumerate(later):
            pages[:] = n
        return bytes([len(device.registered), *(pages[-1] for pages in later)])

    child = Child(use_and_free)
    assert child.sees() == bytes([1, 0, 1, 2, 3])
    assert memory[0].min() == memory[0].max() == 1
    memory.clear()
    assert device.registered == {}


@needs_linux
def test_an_older_kernel_leaves_a_child_without_pinned_memory(monkeypatch):
    advice: list[int] = []

    class OlderMap(mmap.mmap):
        def madvise(self, option: int) -> None:  # type: ignore[override]
            if option == 18:  # MADV_WIPEONFORK
                raise OSError(22, "Invalid argument")
            advice.append(option)
            super().madvise(option)

    monkeypatch.setattr("ctgpu.buffers.mmap.mmap", OlderMap)
    memory = Device().allocate(6 * MIB)
    assert mmap.MADV_DONTFORK in advice
    memory[:] = 1
    read = page_at(memory.ctypes.data)
    child = Child(lambda: b"not touched")
    memory[:] = 2
    assert child.sees() == b"not touched"
    assert read() == 2


def test_memory_is_registered_until_nothing_refers_to_it():
    device = Device()
    memory = device.allocate(6 * MIB)
    assert device.registered == {memory.ctypes.data: 6 * MIB}
    view = np.ndarray((MIB,), np.float16, buffer=memory[: 2 * MIB].data)[5:7]
    del memory
    gc.collect()
    assert len(device.registered) == 1
    del view
    gc.collect()
    assert device.registered == {}


def test_what_the_device_refuses_is_given_back():
    device = Device()
    device.refuses = True
    before = psutil.Process().memory_info().vms
    for _ in range(8):
        with pytest.raises(PermissionError):
            device.allocate(64 * MIB)
    gc.collect()
    assert psutil.Process().memory_info().vms - before < 64 * MIB
    assert device.registered == {}


@pytest.mark.parametrize("allocate", [allocate_pages, Device().allocate, shared_pages])
def test_a_child_takes_memory_of_its_own(allocate):
    pool = BufferPool(allocate=allocate)
    lent = pool.acquire(4 * MIB)
    lent.bytes[:] = 1
    idle = pool.acquire(6 * MIB)
    parents = idle.bytes
    parents[:] = 1
    idle.release()

    def use() -> bytes:
        before = pool.idle_bytes
        lent.release()
        with pool.acquire(6 * MIB) as buffer:
            buffer.bytes[:] = 3
        return bytes([before])

    child = Child(use)
    assert child.sees() == b"\0"
    assert parents.min() == parents.max() == lent.bytes.min() == lent.bytes.max() == 1
    assert (pool.idle_bytes, pool.lent_bytes) == (6 * MIB, 4 * MIB)


def test_a_child_does_not_wait_for_a_thread_that_it_has_not():
    """Forked while another thread had the pool's lock."""
    pool = BufferPool()
    held, leave = threading.Event(), threading.Event()

    class Slow(list):
        def __iter__(self):
            held.set()
            assert leave.wait(60)
            return super().__iter__()

    pool._idle = Slow()  # looked through with the lock held
    thread = threading.Thread(target=pool.acquire, args=(1,))
    thread.start()
    assert held.wait(60)
    child = Child(lambda: bytes([len(pool.acquire(PAGE_BYTES).bytes) == PAGE_BYTES]))
    seen = child.sees()
    leave.set()
    thread.join()
    assert seen == b"\1"


# ---- the pool -----------------------------------------------------------------------------------


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
