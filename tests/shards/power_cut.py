"""A stand-in for the name ``os`` in the modules that write, which can fail, kill and cut the power.

It passes every call on to the system, counts those that change something, and keeps a model of
what would have survived a loss of power: the content of a file up to its last ``fsync``, the
entries of the folder, those of folders in it included, up to its last ``fsync``.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ctgpu.shards import disk, folder, journal, writer


class Killed(BaseException):
    """The process is gone: nothing it does from here on has an effect."""


@dataclass
class _Content:
    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def after(self, keep: Callable[[], bool]) -> bytes:
        """The content with some of the writes that were never synced."""
        data = bytearray(self.synced)
        for offset, written in self.pending:
            if not keep():
                continue
            if written is None:
                del data[offset:]
                data.extend(bytes(offset - len(data)))
            else:
                data.extend(bytes(max(0, offset - len(data))))
                data[offset : offset + len(written)] = written
        return bytes(data)


class Machine:
    """Behaves as the module :mod:`os`, until call number `at`.

    Parameters
    ----------
    path : Path
        The only folder whose changes count.
    at : int or None
        The changing call, from 0, at which `fault` strikes; None for never.
    fault : callable
        Called with the name of the call; raises.
    """

    def __init__(
        self, path: Path, at: int | None = None, fault: Callable[[str], None] | None = None
    ) -> None:
        self._path = path
        self._at = at
        self.fault = fault
        self.calls: list[str] = []
        self.renames: list[tuple[int, str]] = []
        self.dead = False
        self._open: dict[int, _Content] = {}
        self._names = {
            self._name(p): _Content(p.read_bytes()) for p in path.rglob("*") if p.is_file()
        }
        self._durable = dict(self._names)
        self._pending: list[Callable[[dict[str, _Content]], object]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of ``os`` wherever the output folder is written."""
        for module in (disk, folder, journal, writer):
            if hasattr(module, "os"):
                patch.setattr(module, "os", self)

    @property
    def outcomes(self) -> list[tuple[bool, ...]]:
        """What a loss of power could do to the folder: which of its unsynced changes are kept."""
        return list(itertools.product((False, True), repeat=len(self._pending)))

    def survivors(self, outcome: tuple[bool, ...], chance: random.Random, target: Path) -> None:
        """Write to `target` what is left in one of the outcomes."""
        names = dict(self._durable)
        for change, kept in zip(self._pending, outcome, strict=True):
            if kept:
                change(names)
        share = chance.choice([0.0, 0.5, 0.9])
        for name, content in names.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content.after(lambda: chance.random() < share))

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._strike("open")
        fd = os.open(path, flags, mode)
        if not flags & os.O_DIRECTORY:
            name = self._name(path)
            if name not in self._names:
                content = _Content()
                self._change(lambda names: names.update({name: content}))
            self._open[fd] = self._names[name]
        return fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        if not self.dead:
            try:
                self._strike("close")
            except OSError:
                os.close(fd)
                raise
        os.close(fd)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        try:
            self._strike("pwrite")
        except BaseException:
            if len(self.calls) - 1 == self._at:
                # Half of it had got there.
                half = memoryview(data)[: len(data) // 2].tobytes()
                os.pwrite(self._buffered(fd), half, offset)
                self._open[fd].pending.append((offset, half))
            raise
        self._open[fd].pending.append((offset, bytes(data)))
        return os.pwrite(fd, data, offset)

    def ftruncate(self, fd: int, size: int) -> None:
        self._strike("ftruncate")
        self._open[fd].pending.append((size, None))
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        self._strike("fsync")
        os.fsync(fd)
        content = self._open.get(fd)
        if content is None:
            self._durable, self._pending = dict(self._names), []
        else:
            content.synced, content.pending = content.after(lambda: True), []

    def rename(self, old: Any, new: Any) -> None:
        self._strike("rename")
        os.rename(old, new)
        before, after = self._name(old), self._name(new)
        self.renames.append((len(self.calls) - 1, after))

        def change(names: dict[str, _Content]) -> None:
            for name in [n for n in names if n == before or n.startswith(f"{before}/")]:
                names[after + name.removeprefix(before)] = names.pop(name)

        self._change(change)

    def link(self, old: Any, new: Any) -> None:
        self._strike("link")
        os.link(old, new)
        content = self._names[self._name(old)]
        self._change(lambda names: names.update({self._name(new): content}))

    def unlink(self, path: Any) -> None:
        if Path(path).exists():
            self._strike("unlink")
        os.unlink(path)
        self._change(lambda names: names.pop(self._name(path), None))

    def lose_unsynced(self) -> None:
        """What a failed ``fsync`` does: pages that never reached the disk count as clean."""
        for name, content in self._names.items():
            (self._path / name).write_bytes(content.after(lambda: False))

    def _name(self, path: Any) -> str:
        return Path(path).relative_to(self._path).as_posix()

    def _buffered(self, fd: int) -> int:
        # A torn write need not be aligned, so does not go through O_DIRECT.
        content = self._open[fd]
        return min(other for other, c in self._open.items() if c is content)

    def _change(self, change: Callable[[dict[str, _Content]], object]) -> None:
        change(self._names)
        self._pending.append(change)

    def _strike(self, call: str) -> None:
        if self.dead:
            raise Killed
        self.calls.append(call)
        if self.fault is not None and len(self.calls) - 1 == self._at:
            self.fault(call)

    def kill(self, call: str) -> None:
        """A fault: the process dies before the call has any effect, but for half of a write."""
        self.dead = True
        raise Killed
