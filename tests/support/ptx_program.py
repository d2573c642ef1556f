"""A kernel as the machine in ``machine/`` takes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from support.ptx_parse import Entry


@dataclass(frozen=True)
class Given:
    """What a register holds before the kernel starts.

    `kind` is ``number`` (`value`), ``special`` (`value` of ``_SPECIAL``), ``size`` (of the launch:
    `name` is ``ntid.x`` or so), ``parameter`` (`name`, `offset` and `size_bytes`), ``argument``
    (the address of the parameter `name`) or ``variable`` (that of the module's variable `name`, for
    a generic or a global access).
    """

    kind: str
    value: int = 0
    name: str = ""
    offset: int = 0
    size_bytes: int = 0


@dataclass
class Operation:
    """``Operation`` of machine/warp.h; `name` stands for its handler."""

    name: str
    instruction: int
    bits: int = 0
    bits_from: int = 0
    flush: bool = False
    space: int = 0
    count: int = 1
    read_only: bool = False
    target: str | None = None
    to: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    offset: int = 0
    guard: int = -1
    guard_value: bool = True


@dataclass
class Program:
    """A kernel as operations."""

    entry: Entry
    operations: list[Operation]
    first_operation: list[int]  # of every instruction
    given: dict[int, Given]  # by register
    registers: int
    shared: dict[str, tuple[int, int | None]]  # variable: offset and size
    local_bytes: int
