"""Memory in whole pages, huge or pinned ones, and what a fork leaves of it."""

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
from pathlib import Path

import numpy as np
import psutil
import pytest

from ctgpu.buffers import PAGE_BYTES, BufferPool, allocate_pages, allocate_pinned, whole_pages
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
