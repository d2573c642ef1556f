"""Runs PTX on this machine's CPU, with every access checked: a GPU's stand-in for tests.

    kernel = Kernel(nvrtc.compile(source, options))
    counts = kernel.launch(blocks, threads, [np.uint64(out.ctypes.data)], [Buffer(out)])

What a sanitizer would find on a GPU ends the launch with a :class:`KernelFault`: accesses beyond
any buffer, misaligned, or to memory that is read-only; races; barriers that not all threads reach;
and values that nobody wrote, once they reach global memory or decide an address or a branch.

Who does what:

- ``ptx_parse.py`` reads the text: kernels, variables, instructions with their operands;
- ``ptx_lower.py`` turns each instruction into operations of the machine (``ptx_program.py``);
- ``machine/`` runs those, in C++: ``memory.h`` has the checks, ``warp.h`` registers, of which it
  knows what nobody wrote, ``instructions.h`` the arithmetic, ``accesses.h`` loads, stores and
  shuffles, ``machine.cpp`` lanes, barriers and blocks;
- this file launches, and puts faults into words.

To teach it an instruction: an entry in the table of ``instructions.h``, and where its text has
modifiers of its own a ``_lower_…`` in ``ptx_lower.py``.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support.compiling import compiled
from support.ptx_lower import lower
from support.ptx_parse import PtxError, UnknownInstructionError, Variable, parse
from support.ptx_program import Given, Operation, Program

__all__ = ["Buffer", "Counts", "Kernel", "KernelFault", "PtxError", "UnknownInstructionError"]

_MACHINE = Path(__file__).resolve().parent / "machine" / "machine.cpp"
#: Operations of one warp up to a barrier; a kernel that does more is taken to be endless.
MOST_OPERATIONS = 20_000_000

# FaultKind of machine/memory.h.
_FAULTS = (
    "none",
    "out of bounds",
    "misaligned",
    "write to read-only memory",
    "race",
    "write to memory that the kernel reads as read-only",
    "unwritten address",
    "unwritten branch",
    "unwritten store",
    "divergent barrier",
    "divergent warp",
    "endless",
    "too many barriers",
    "no memory",
)
_SENTENCES = {
    "out of bounds": "reaches {size} bytes at {address:#x}, {where}",
    "misaligned": "reaches {size} bytes at {address:#x}, which is no multiple of {size}",
    "write to read-only memory": "writes {size} bytes at {address:#x}, {where}",
    "race": "reaches {size} bytes at {address:#x} ({where}) that {other} reached with no barrier "
    "between the two, one of them writing",
    "write to memory that the kernel reads as read-only": "reaches {size} bytes at {address:#x} "
    "({where}) that this launch writes and also reads by a load that says .nc",
    "unwritten address": "uses an address that depends on what nobody wrote",
    "unwritten branch": "decides by what nobody wrote",
    "unwritten store": "stores {size} bytes at {address:#x} ({where}) that depend on what nobody "
    "wrote",
    "divergent barrier": "waits at a barrier that {other} does not reach",
    "divergent warp": "names lanes that are not there with it",
    "endless": "still runs after very many instructions without a barrier",
    "no memory": "reaches {size} bytes at {address:#x} ({where}): following accesses there takes "
    "more memory than this machine has",
    "too many barriers": "is one barrier more than races can be followed over",
}


_OTHERS = {-1: "another thread", -2: "a thread of another block"}


class KernelFault(Exception):
    """What a kernel did that it must not.

    Attributes
    ----------
    kind : str
        Such as ``"out of bounds"`` or ``"race"``.
    line : int
        Of the PTX.
    block, thread : int
        Counted through, x first.
    """

    def __init__(self, kind: str, sentence: str, line: int, block: int, thread: int) -> None:
        super().__init__(f"{kind}: {sentence}")
        self.kind, self.line, self.block, self.thread = kind, line, block, thread


@dataclass(frozen=True)
class Buffer:
    """Global memory of a launch: an array of this process, at its own address.

    Attributes
    ----------
    array : numpy.ndarray
        Contiguous.
    writable : bool
        Whether the kernel may write to it.
    undefined : numpy.ndarray or None
        uint8, as many as `array` has bytes: bits that nobody has written yet.  The launch clears
        what the kernel writes.  None: everything is written.
    name : str
        For messages.
    """

    array: npt.NDArray[Any]
    writable: bool = True
    undefined: npt.NDArray[np.uint8] | None = None
    name: str = "a buffer"

    @classmethod
    def blank(cls, shape: Any, dtype: Any, name: str = "a buffer") -> Buffer:
        """Memory to write to, of which nothing is written yet."""
        array = (
            np.full(shape, 0xA5, np.dtype(dtype)) if dtype == np.uint8 else np.zeros(shape, dtype)
        )
        return cls(array, undefined=np.full(array.nbytes, 0xFF, np.uint8), name=name)

    @property
    def address(self) -> int:
        """Of its first byte."""
        return int(self.array.ctypes.data)

    @property
    def is_written(self) -> bool:
        """Whether every byte has been."""
        return self.undefined is None or not self.undefined.any()


@dataclass(frozen=True)
class Counts:
    """Instructions that a launch executed, by opcode such as ``"ld.shared.f32"``.

    `threads` counts every thread's, `warps` those that a warp issues for all of its lanes at once,
    and `wavefronts` the passes in which shared memory serves these: as many as the different words
    of 4 bytes that a warp wants of one of the 32 banks.
    """

    threads: Counter[str]
    warps: Counter[str]
    wavefronts: Counter[str]


class Kernel:
    """A kernel that can be launched.

    Parameters
    ----------
    ptx : str
        A module.
    name : str, optional
        Of the kernel, where there are several.

    Raises
    ------
    UnknownInstructionError
        For an instruction that the machine was not taught.
    PtxError
        Where `ptx` cannot be read, or has no such kernel.
    """

    def __init__(self, ptx: str, name: str | None = None) -> None:
        entries = parse(ptx)
        if name is None and len(entries) == 1:
            name = next(iter(entries))
        if name not in entries:
            raise PtxError(f"the PTX has the kernels {', '.join(entries) or 'none'}, not {name}")
        self.entry = entries[name]
        self._program = lower(self.entry)
        self._library = _machine()
        self._operations = self._packed(self._program)
        # Variables of the module live as long as it does.
        self._variables = {
            variable.name: _buffer_of(variable)
            for variable in self.entry.variables.values()
            if variable.space in ("global", "const") and variable.size_bytes
        }

    def launch(
        self,
        blocks: int | Sequence[int],
        threads: int | Sequence[int],
        arguments: Sequence[Any],
        memory: Sequence[Buffer],
        *,
        shared_bytes: int = 0,
        most_operations: int = MOST_OPERATIONS,
    ) -> Counts:
        """Run every block.

        Parameters
        ----------
        blocks, threads : int or up to three
            Of the grid and of a block: x, y, z.
        arguments : sequence of NumPy scalars
            As wide as the kernel's parameters.
        memory : sequence of Buffer
            All that the kernel may reach.
        shared_bytes : int
            For the ``extern`` shared variable.
        most_operations : int
            See :data:`MOST_OPERATIONS`.

        Raises
        ------
        KernelFault
            At the first thing that a kernel must not do.
        ValueError
            Where blocks, threads or arguments do not fit the kernel.
        """
        grid, block = _three(blocks), _three(threads)
        self._check(grid, block, arguments)
        passed = {
            name: Buffer(_aligned(_bytes_of(argument)), writable=False, name="the arguments")
            for name, argument in zip(self.entry.parameters, arguments, strict=True)
        }
        buffers = [*memory, *self._variables.values(), *passed.values()]
        shared = [
            (offset, shared_bytes if size is None else size)
            for offset, size in self._program.shared.values()
        ]
        sizes = {
            f"{name}.{axis}": size
            for name, all_axes in (("ntid", block), ("nctaid", grid))
            for axis, size in zip("xyz", all_axes, strict=True)
        }
        presets = [
            self._preset(r, given, passed, sizes) for r, given in self._program.given.items()
        ]
        counts = np.zeros((3, len(self._program.operations)), np.uint64)
        held = (  # what the addresses below point at
            self._operations,
            (_Preset * len(presets))(*presets),
            (_Allocation * len(buffers))(*map(_allocation, buffers)),
            (_Allocation * len(shared))(*(_Allocation(at, n, None, True) for at, n in shared)),
        )
        launch = _Launch(
            *map(ctypes.addressof, held),
            *(row.ctypes.data for row in counts),
            most_operations,
            *(len(self._program.operations), len(presets), len(buffers), len(shared)),
            *(self._program.registers, self._program.local_bytes),
            (ctypes.c_int * 3)(*grid),
            (ctypes.c_int * 3)(*block),
        )
        fault = self._library.machine_run(ctypes.byref(launch))
        if fault.kind:
            raise self._fault(fault, buffers)
        return self._counts(counts)

    def _counts(self, by_operation: npt.NDArray[np.uint64]) -> Counts:
        first = self._program.first_operation[:-1]  # without the `ret` that was added at the end
        names = [".".join(instruction.opcode) for instruction in self.entry.instructions]
        counts = Counts(Counter(), Counter(), Counter())
        for name, threads, warps in zip(names, *by_operation[:2, first].tolist(), strict=True):
            counts.threads[name] += threads
            counts.warps[name] += warps
        for operation, passes in zip(self._program.operations, by_operation[2], strict=True):
            if passes:
                counts.wavefronts[names[operation.instruction]] += int(passes)
        return counts

    def _check(
        self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]
    ) -> None:
        threads = int(np.prod(block))
        most = self.entry.most_threads or 1024
        if min(grid) < 1 or not 1 <= threads <= most:
            raise ValueError(f"{grid} blocks of {block} threads; a block may have 1 to {most}")
        sizes = [np.asarray(argument).dtype.itemsize for argument in arguments]
        if sizes != list(self.entry.parameters.values()):
            wanted = list(self.entry.parameters.values())
            raise ValueError(f"arguments of {sizes} bytes where {self.entry.name} takes {wanted}")

    def _preset(
        self, register: int, given: Given, passed: dict[str, Buffer], sizes: dict[str, int]
    ) -> _Preset:
        if given.kind == "special":
            return _Preset(register, given.value, 0)
        if given.kind == "parameter":
            part = passed[given.name].array[given.offset :][: given.size_bytes]
            return _Preset(register, 0, int.from_bytes(part.tobytes(), "little"))
        if given.kind == "argument":
            return _Preset(register, 0, passed[given.name].address)
        if given.kind == "variable":
            if given.name not in self._variables:
                raise PtxError(f"the variable {given.name} has no size")
            return _Preset(register, 0, self._variables[given.name].address)
        return _Preset(register, 0, sizes[given.name] if given.kind == "size" else given.value)

    def _packed(self, program: Program) -> Any:
        packed = (_Operation * len(program.operations))()
        for target, operation in zip(packed, program.operations, strict=True):
            target.handler = self._library.machine_find(operation.name.encode())
            if target.handler < 0:
                at = self.entry.instructions[operation.instruction]
                raise UnknownInstructionError(at.line, at.text, f"no operation {operation.name}")
            _pack(target, operation, program)
        return packed

    def _fault(self, fault: _Fault, buffers: Sequence[Buffer]) -> KernelFault:
        index = self._program.operations[fault.operation].instruction
        at = self.entry.instructions[index]
        kind = _FAULTS[fault.kind]
        sentence = _SENTENCES[kind].format(
            size=fault.size,
            address=fault.address,
            where=_place(fault.address, buffers),
            other=_OTHERS.get(fault.other, f"thread {fault.other}"),
        )
        who = f"thread {fault.thread} of block {fault.block}"
        return KernelFault(
            kind,
            f"{who} {sentence}: PTX line {at.line}: {at.text}",
            at.line,
            fault.block,
            fault.thread,
        )


def _three(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    given = [int(size) for size in np.atleast_1d(sizes)]
    x, y, z = (*given, 1, 1, 1)[:3]
    return x, y, z


def _bytes_of(argument: Any) -> bytes:
    return np.asarray(argument).tobytes()


def _aligned(data: bytes) -> npt.NDArray[np.uint8]:
    """What lies at a multiple of its alignment, whatever memory NumPy gives."""
    memory = np.zeros(len(data) + 256, np.uint8)
    array = memory[-memory.ctypes.data % 256 :][: len(data)]
    array[:] = np.frombuffer(data, np.uint8)
    return array


def _buffer_of(variable: Variable) -> Buffer:
    initial = variable.initial or bytes(variable.size_bytes or 0)
    return Buffer(_aligned(initial), variable.space == "global", name=variable.name)


def _place(address: int, buffers: Sequence[Buffer]) -> str:
    """Where an address of global memory lies, in words."""
    for buffer in buffers:
        if 0 <= address - buffer.address < buffer.array.nbytes:
            return f"byte {address - buffer.address} of {buffer.name}"
    near = [
        (address - buffer.address - buffer.array.nbytes, buffer)
        for buffer in buffers
        if address >= buffer.address
    ]
    if near and address > 1 << 32:
        distance, buffer = min(near, key=lambda pair: pair[0])
        return f"{distance} bytes after the end of {buffer.name}"
    return "in no buffer"


# ---- The machine -------------------------------------------------------------------------------


class _Operation(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int)
            for name in ("handler", "guard", "guard_value", "bits", "bits_from")
        ),
        *((name, ctypes.c_int) for name in ("flush", "space", "count", "read_only", "target")),
        ("to", ctypes.c_int * 4),
        ("sources", ctypes.c_int * 5),
        ("offset", ctypes.c_longlong),
    )


class _Preset(ctypes.Structure):
    _fields_ = (("register", ctypes.c_int), ("kind", ctypes.c_int), ("value", ctypes.c_uint64))


class _Allocation(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("undefined", ctypes.c_void_p),
        ("writable", ctypes.c_int),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("operations", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("presets", "global_memory", "shared")),
        *((name, ctypes.c_void_p) for name in ("thread_counts", "warp_counts", "wavefronts")),
        ("most_operations", ctypes.c_uint64),
        *((name, ctypes.c_int) for name in ("n_operations", "n_presets", "n_global", "n_shared")),
        *((name, ctypes.c_int) for name in ("registers", "local_bytes")),
        *((name, ctypes.c_int * 3) for name in ("blocks", "threads")),
    )


class _Fault(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int)
            for name in ("kind", "operation", "block", "thread", "other", "size")
        ),
        ("address", ctypes.c_uint64),
    )


def _allocation(buffer: Buffer) -> _Allocation:
    if not buffer.array.flags.c_contiguous and not buffer.array.flags.f_contiguous:
        raise ValueError(f"{buffer.name} is not contiguous")
    undefined = None if buffer.undefined is None else buffer.undefined.ctypes.data
    return _Allocation(buffer.address, buffer.array.nbytes, undefined, buffer.writable)


def _pack(target: Any, operation: Operation, program: Program) -> None:
    for name in ("bits", "bits_from", "flush", "space", "count", "read_only", "offset", "guard"):
        setattr(target, name, getattr(operation, name))
    target.guard_value = operation.guard_value
    target.to[:] = [*operation.to, *[-1] * (4 - len(operation.to))]
    target.sources[:] = [*operation.sources, *[0] * (5 - len(operation.sources))]
    if operation.target is not None:
        target.target = program.first_operation[program.entry.labels[operation.target]]


@functools.cache
def _machine() -> ctypes.CDLL:
    """``machine/machine.cpp``; the test is skipped where there is no compiler."""
    machine = ctypes.CDLL(str(compiled(_MACHINE, "-std=c++20", "-O3", "-march=native")))
    machine.machine_find.argtypes = (ctypes.c_char_p,)
    machine.machine_run.argtypes = (ctypes.c_void_p,)
    machine.machine_run.restype = _Fault
    return machine
