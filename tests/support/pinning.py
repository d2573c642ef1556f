"""Pinned host memory of the emulated device, for those who lend it."""

from __future__ import annotations

from ctgpu.buffers import Bytes, allocate_pinned
from support.emulated_cupy import EmulatedCupy


class Pinning:
    """Pinned memory of the emulated device, and how often it was asked for."""

    def __init__(self, cupy: EmulatedCupy) -> None:
        self._runtime = cupy.cuda.runtime
        self.sizes: list[int] = []
        self.addresses: set[int] = set()

    def allocate(self, size_bytes: int) -> Bytes:
        self.sizes.append(size_bytes)

        def register(address: int, pinned_bytes: int) -> None:
            self._runtime.hostRegister(address, pinned_bytes, 1)
            self.addresses.add(address)

        def unregister(address: int) -> None:
            self._runtime.hostUnregister(address)
            self.addresses.remove(address)

        return allocate_pinned(size_bytes, register, unregister)
