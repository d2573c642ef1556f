"""PTX instructions to the operations of the machine in ``machine/``.

The machine knows few operations and only registers.  So constants, parameters, special registers
and addresses of variables get registers of their own, and an instruction that does two things
becomes two operations.  What is not found here or in the machine's table is an
:class:`~support.ptx_parse.UnknownInstructionError`, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from support.ptx_parse import (
    Address,
    Entry,
    Immediate,
    Instruction,
    Operand,
    PtxError,
    UnknownInstructionError,
    width_of,
)
from support.ptx_program import Given, Operation, Program

# As in machine/memory.h.
SPACES = {"generic": 0, "global": 1, "const": 1, "shared": 2, "local": 3}
WINDOWS = {"global": 0, "const": 0, "shared": 1 << 60, "local": 1 << 61}
#: Between shared variables, so that one that is overrun does not reach the next.
_GAP_BYTES = 256

#: What says how a cache is used: it changes no value.
_CACHE_HINTS = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "weak"}
_IS_CACHE_HINT = re.compile(r"L[12]::\w+")

#: Special registers that differ from thread to thread, as PresetKind in machine.cpp counts them.
_SPECIAL = {
    name: n + 1
    for n, name in enumerate(
        ("tid.x", "tid.y", "tid.z", "ctaid.x", "ctaid.y", "ctaid.z", "laneid", "warpid")
    )
}


def lower(entry: Entry) -> Program:
    """The operations of a kernel.

    Raises
    ------
    UnknownInstructionError
        For an instruction without a meaning here.
    PtxError
        For a name that was not declared.
    """
    return _Lowering(entry).program()


class _Lowering:
    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._registers: dict[str, int] = {}
        self._given: dict[Given, int] = {}
        self._count = 0
        self._operations: list[Operation] = []
        self._index = 0
        self._at: Instruction
        self._nothing = self._given_register(Given("number", 0))
        self._shared, self._local, self._local_bytes = self._lay_out()

    def program(self) -> Program:
        first = []
        for index, instruction in enumerate(self._entry.instructions):
            self._index, self._at = index, instruction
            first.append(len(self._operations))
            self._lower()
        first.append(len(self._operations))
        self._operations.append(Operation("exit", len(first) - 2))  # a body may end without `ret`
        for operation in self._operations:
            if operation.target is not None and operation.target not in self._entry.labels:
                raise PtxError(f"there is no label {operation.target}")
        return Program(
            self._entry,
            self._operations,
            first,
            {register: given for given, register in self._given.items()},
            self._count,
            self._shared,
            self._local_bytes,
        )

    def _lay_out(self) -> tuple[dict[str, tuple[int, int | None]], dict[str, int], int]:
        shared, local, end, local_end = {}, {}, 0, 0
        ordered = sorted(self._entry.variables.values(), key=lambda v: v.size_bytes is None)
        for variable in ordered:  # those that the launch sizes come last, and share their place
            size = variable.size_bytes
            if variable.space == "shared":
                begin = -(-end // variable.alignment) * variable.alignment
                shared[variable.name] = (begin, size)
                end = begin + size + _GAP_BYTES if size is not None else end
            elif variable.space == "local":
                local[variable.name] = -(-local_end // variable.alignment) * variable.alignment
                local_end = local[variable.name] + (size or 0)
        return shared, local, local_end

    # ---- Registers -----------------------------------------------------------------------------

    def _new_register(self) -> int:
        self._count += 1
        return self._count - 1

    def _given_register(self, given: Given) -> int:
        if given not in self._given:
            self._given[given] = self._new_register()
        return self._given[given]

    def _number(self, value: int, bits: int = 64) -> int:
        return self._given_register(Given("number", value % (1 << bits)))

    def _register(self, name: str) -> int:
        if name not in self._entry.registers:
            raise self._unknown(f"{name} is not a register")
        if name not in self._registers:
            self._registers[name] = self._new_register()
        return self._registers[name]

    def _source(self, operand: Operand, bits: int) -> int:
        """The register with an operand's value."""
        if isinstance(operand, Immediate):
            return self._number(operand.bits, bits)
        if not isinstance(operand, str):
            raise self._unknown("an operand of this kind is not expected here")
        if operand.startswith("!"):
            negated = self._new_register()
            self._add("not.b", [negated], [self._register(operand[1:])], bits=1)
            return negated
        if operand in self._entry.registers:
            return self._register(operand)
        if operand == "WARP_SZ":
            return self._number(32)
        if operand.startswith("%"):
            return self._special(operand[1:])
        return self._address_of(operand)

    def _special(self, name: str) -> int:
        if name in _SPECIAL:
            return self._given_register(Given("special", _SPECIAL[name]))
        if re.fullmatch(r"n(?:tid|ctaid)\.[xyz]", name):
            return self._given_register(Given("size", name=name))
        raise self._unknown(f"%{name} is neither a declared register nor a special one known here")

    def _address_of(self, name: str) -> int:
        if name in self._shared:
            return self._number(self._shared[name][0])
        if name in self._local:
            return self._number(self._local[name])
        if name in self._entry.variables:
            return self._given_register(Given("variable", name=name))
        if name in self._entry.parameters:
            return self._given_register(Given("argument", name=name))
        raise self._unknown(f"{name} is not declared")

    # ---- Operations ----------------------------------------------------------------------------

    def _unknown(self, why: str = "") -> UnknownInstructionError:
        return UnknownInstructionError(self._at.line, self._at.text, why)

    def _add(self, name: str, to: list[int], sources: list[int], **others: object) -> None:
        guard = self._at.guard
        self._operations.append(
            Operation(
                name,
                self._index,
                to=to,
                sources=sources,
                guard=-1 if guard is None else self._register(guard),
                guard_value=self._at.guard_value,
                **others,  # type: ignore[arg-type]
            )
        )

    def _lower(self) -> None:
        opcode = self._at.opcode
        special: Callable[[], None] | None = getattr(self, f"_lower_{opcode[0]}", None)
        if special is not None:
            special()
            return
        try:
            modifiers, kind, bits = list(opcode[:-1]), opcode[-1], width_of(opcode[-1])
        except PtxError as error:
            raise self._unknown(str(error)) from error
        # `rn` is what these do by themselves; for the rest it stays part of the name.
        if opcode[0] in ("add", "sub", "mul", "fma") and "rn" in modifiers and kind[0] == "f":
            modifiers.remove("rn")
        flush = "ftz" in modifiers
        if flush:
            modifiers.remove("ftz")
        name = ".".join(modifiers) + self._suffix(kind)
        self._compute(name, bits, flush=flush)

    @staticmethod
    def _suffix(kind: str) -> str:
        """How the machine's table ends its names: ``.s``, ``.u``, ``.b``, a float type, a pair."""
        if kind.endswith("x2"):
            return f".{kind}"
        return ".b" if kind == "pred" else f".{kind}" if kind[0] == "f" else f".{kind[0]}"

    def _compute(
        self, name: str, bits: int, bits_from: int | None = None, **others: object
    ) -> None:
        """Register = operation of the operands."""
        to, *sources = self._at.operands
        if not isinstance(to, str):
            raise self._unknown("its result is no register")
        wide = bits if bits_from is None else bits_from
        # Of a multiplication to twice the width, what is added has the width of the result.
        widths = (wide, wide, bits)
        registers = [self._source(*pair) for pair in zip(sources, widths, strict=False)]
        self._add(name, [self._register(to)], registers, bits=bits, bits_from=wide, **others)

    # ---- Instructions with rules of their own: `_lower_` and their name ------------------------

    def _lower_mov(self) -> None:
        bits = width_of(self._at.opcode[-1])
        to, source = self._at.operands
        if isinstance(to, tuple):
            part = bits // len(to)
            for n, name in enumerate(to):
                if name != "_":
                    self._add(
                        "unpack",
                        [self._register(str(name))],
                        [self._source(source, bits)],
                        bits=part,
                        offset=n * part,
                    )
        elif isinstance(source, tuple):
            part = bits // len(source)
            whole = self._source(source[0], part)
            for n, name in enumerate(source[1:], start=1):
                sources = [whole, self._source(name, part)]
                whole = self._register(str(to)) if n == len(source) - 1 else self._new_register()
                self._add("pack", [whole], sources, bits=(n + 1) * part, offset=n * part)
        else:
            self._compute("mov.b", bits)

    def _lower_selp(self) -> None:
        self._compute("selp.b", width_of(self._at.opcode[-1]))

    def _lower_shr(self) -> None:
        kind = self._at.opcode[-1]
        self._compute("shr" + (".s" if kind[0] == "s" else ".u"), width_of(kind))

    def _lower_mul(self) -> None:
        self._multiply()

    def _lower_mad(self) -> None:
        self._multiply()

    def _multiply(self) -> None:
        opcode, kind = self._at.opcode, self._at.opcode[-1]
        if kind[0] == "f":
            flush = "ftz" in opcode
            rest = [part for part in opcode[1:-1] if part not in ("rn", "ftz")]
            name = {"mul": "mul", "mad": "fma"}[opcode[0]]
            self._compute(".".join([name, *rest, kind]), width_of(kind), flush=flush)
            return
        bits = width_of(kind)
        result = 2 * bits if "wide" in opcode else bits
        self._compute(".".join(opcode[:-1]) + f".{kind[0]}", result, bits)

    def _lower_call(self) -> None:
        raise self._unknown("only what is inlined can run")

    def _lower_popc(self) -> None:
        self._compute("popc.b", 32, width_of(self._at.opcode[-1]))

    def _lower_clz(self) -> None:
        self._compute("clz.b", 32, width_of(self._at.opcode[-1]))

    def _lower_setp(self) -> None:
        opcode, kind = list(self._at.opcode), self._at.opcode[-1]
        bits, suffix = (
            width_of(kind),
            f".{kind}" if kind[0] == "f" else ".s" if kind[0] == "s" else ".u",
        )
        flush = "ftz" in opcode
        name = f"setp.{opcode[1]}{suffix}"
        to, a, b, *combined = self._at.operands
        join = [part for part in opcode[2:-1] if part != "ftz"]
        if len(join) != len(combined) or "|" in str(to):
            raise self._unknown("two results, or a form of combining that is not known")
        result = self._register(str(to))
        compared = self._new_register() if join else result
        sources = [self._source(a, bits), self._source(b, bits)]
        # The result is one bit; `bits` is what the operands are extended from.
        self._add(name, [compared], sources, bits=bits, flush=flush)
        if join:
            self._add(f"{join[0]}.b", [result], [compared, self._source(combined[0], 1)], bits=1)

    def _lower_cvt(self) -> None:
        *_, to, source = self._at.opcode
        rounding = [part for part in self._at.opcode[1:-2] if part != "ftz"]
        flush = "ftz" in self._at.opcode
        bits, bits_from = width_of(to), width_of(source)
        ends = [to if to[0] == "f" else to[0], source if source[0] == "f" else source[0]]
        if to[0] == "f" or source[0] == "f":
            name = ".".join(["cvt", *rounding, *ends])
            self._compute(name, bits, bits_from, flush=flush)
            return
        self._compute(".".join(["cvt", *rounding, ends[1]]), bits, bits_from)
        result = str(self._at.operands[0])
        held = self._entry.registers[result]
        if to[0] == "s" and held > bits:  # a narrow signed value fills its register
            register = self._register(result)
            self._add("cvt.s", [register], [register], bits=held, bits_from=bits)

    def _lower_cvta(self) -> None:
        *_, space, kind = self._at.opcode
        if space not in WINDOWS or kind != "u64":
            raise self._unknown()
        to, source = self._at.operands
        sources = [self._source(source, 64), self._number(WINDOWS[space])]
        step = "sub.u" if self._at.opcode[1] == "to" else "add.u"
        self._add(step, [self._register(str(to))], sources, bits=64)

    def _lower_bfi(self) -> None:
        bits = width_of(self._at.opcode[-1])
        to, a, b, position, length = self._at.operands
        if not (isinstance(position, Immediate) and isinstance(length, Immediate)):
            raise self._unknown("its place is not a number")
        inserted = ((1 << length.bits) - 1 << position.bits) % (1 << bits)
        moved, cut, kept = (self._new_register() for _ in range(3))
        self._add("shl.b", [moved], [self._source(a, bits), self._number(position.bits)], bits=bits)
        self._add("and.b", [cut], [moved, self._number(inserted)], bits=bits)
        self._add(
            "and.b", [kept], [self._source(b, bits), self._number(~inserted, bits)], bits=bits
        )
        self._add("or.b", [self._register(str(to))], [cut, kept], bits=bits)

    def _lower_bfe(self) -> None:
        kind = self._at.opcode[-1]
        bits = width_of(kind)
        to, a, position, length = self._at.operands
        if not (isinstance(position, Immediate) and isinstance(length, Immediate) and length.bits):
            raise self._unknown("its place is not a number")
        above = bits - position.bits - length.bits
        if above < 0:
            raise self._unknown("it reaches beyond the register")
        result = self._register(str(to))
        self._add("shl.b", [result], [self._source(a, bits), self._number(above)], bits=bits)
        down = self._number(bits - length.bits)
        self._add(f"shr.{kind[0]}", [result], [result, down], bits=bits)

    def _lower_bra(self) -> None:
        if self._at.opcode[1:] not in ((), ("uni",)):
            raise self._unknown()
        self._add("bra", [], [], target=str(self._at.operands[0]))

    def _lower_ret(self) -> None:
        self._add("exit", [], [])

    _lower_exit = _lower_ret

    def _lower_bar(self) -> None:
        opcode = [part for part in self._at.opcode if part not in ("cta", "aligned")]
        if opcode == ["bar", "warp", "sync"]:
            self._add("bar.warp.sync", [], [self._source(self._at.operands[0], 32)])
        elif opcode[1:] == ["sync"] and self._at.operands == (Immediate(0),):
            self._add("bar.sync", [], [])
        else:
            raise self._unknown("only barrier 0 of all threads")

    _lower_barrier = _lower_bar

    def _lower_shfl(self) -> None:
        to, *others = self._at.operands
        value, _, predicate = str(to).partition("|")
        result = [self._register(name) for name in (value, predicate) if name]
        name = ".".join(self._at.opcode[:-1])
        self._add(name, result, [self._source(other, 32) for other in others], bits=32)

    def _lower_vote(self) -> None:
        to, predicate, members = self._at.operands
        sources = [self._source(predicate, 1), self._source(members, 32)]
        name = ".".join(self._at.opcode[:-1])
        bits = width_of(self._at.opcode[-1])
        self._add(name, [self._register(str(to))], sources, bits=bits)

    def _lower_activemask(self) -> None:
        self._add("activemask", [self._register(str(self._at.operands[0]))], [], bits=32)

    # ---- Memory --------------------------------------------------------------------------------

    def _lower_ld(self) -> None:
        to, address = self._at.operands
        space, count, read_only = self._access()
        names = to if isinstance(to, tuple) else (to,)
        kind = self._at.opcode[-1]
        bits = width_of(kind)
        assert isinstance(address, Address)
        if space == "param":
            if address.base not in self._entry.registers:
                self._load_parameters(address, names, bits)
                return
            space = "generic"  # arguments are memory where something takes their address
        held = [self._entry.registers[str(name)] for name in names if name != "_"]
        if len(names) != count or len(set(held)) > 1:
            raise self._unknown("its registers are not those of one vector")
        base, offset = self._base(address)
        self._add(
            "ld.s" if kind[0] == "s" else "ld.u",
            [-1 if name == "_" else self._register(str(name)) for name in names],
            [base],
            bits=bits,
            bits_from=max(held, default=bits),
            space=SPACES[space],
            count=count,
            read_only=read_only,
            offset=offset,
        )

    def _lower_st(self) -> None:
        address, values = self._at.operands
        space, count, _ = self._access()
        if space == "param":
            raise self._unknown("an argument of a call: only what is inlined can run")
        names = values if isinstance(values, tuple) else (values,)
        bits = width_of(self._at.opcode[-1])
        assert isinstance(address, Address)
        if len(names) != count:
            raise self._unknown("its registers are not those of one vector")
        base, offset = self._base(address)
        self._add(
            "st",
            [],
            [base, *(self._source(name, bits) for name in names)],
            bits=bits,
            space=SPACES[space],
            count=count,
            offset=offset,
        )

    def _access(self) -> tuple[str, int, bool]:
        """Space, elements, and whether the load promises that nobody writes there."""
        space, count, read_only = "generic", 1, False
        for part in self._at.opcode[1:-1]:
            if part in SPACES or part == "param":
                space = part
            elif part in ("v2", "v4"):
                count = int(part[1])
            elif part == "nc":
                read_only = True
            elif part not in _CACHE_HINTS and not _IS_CACHE_HINT.fullmatch(part):
                raise self._unknown(f".{part}")
        if count * width_of(self._at.opcode[-1]) > 128:
            raise self._unknown("wider than 16 bytes")
        return space, count, read_only

    def _base(self, address: Address) -> tuple[int, int]:
        if re.fullmatch(r"\d+", address.base):
            return self._nothing, int(address.base) + address.offset
        return self._source(address.base, 64), address.offset

    def _load_parameters(self, address: Address, names: tuple[Operand, ...], bits: int) -> None:
        sizes = self._entry.parameters
        for n, name in enumerate(names):
            offset = address.offset + n * bits // 8
            if address.base not in sizes or offset + bits // 8 > sizes[address.base]:
                raise self._unknown("there is no such parameter")
            given = Given("parameter", name=address.base, offset=offset, size_bytes=bits // 8)
            signed = self._at.opcode[-1][0] == "s"
            held = self._entry.registers[str(name)]
            self._add(
                "cvt.s" if signed else "cvt.u",
                [self._register(str(name))],
                [self._given_register(given)],
                bits=held,
                bits_from=bits,
            )
