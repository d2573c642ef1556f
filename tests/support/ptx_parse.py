"""PTX text to instructions with their operands.  Says nothing about what they do.

The grammar is that of NVIDIA's "Parallel Thread Execution ISA", as far as NVRTC writes it: one
module with kernels (``.entry``), variables and statements.  Functions that were not inlined
(``.func``) are passed over; a ``call`` of one is refused when it is given a meaning.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field


class PtxError(Exception):
    """PTX that this package cannot read or give a meaning to."""


class UnknownInstructionError(PtxError):
    """An instruction, or a form of one, that nobody has taught the machine."""

    def __init__(self, line: int, text: str, why: str = "") -> None:
        super().__init__(
            f"PTX line {line}: `{text}` is not known to tests/support{why and f' ({why})'}: teach "
            "ptx_lower.py and machine/instructions.h what it does"
        )


@dataclass(frozen=True)
class Address:
    """``[base + offset]``; `base` is a register, a variable or a parameter."""

    base: str
    offset: int


@dataclass(frozen=True)
class Immediate:
    """A number's bits, as wide as the operand that it is."""

    bits: int


#: A register or another name, a number, an address, or the parts of ``{…}``.
Operand = str | Immediate | Address | tuple["Operand", ...]


@dataclass(frozen=True)
class Instruction:
    """One statement.

    Attributes
    ----------
    line : int
        Of the PTX.
    text : str
    opcode : tuple of str
        Split at its dots.
    operands : tuple
    guard : str or None
        The predicate of ``@%p`` or ``@!%p``.
    guard_value : bool
        What the guard must be.
    """

    line: int
    text: str
    opcode: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str | None
    guard_value: bool


@dataclass(frozen=True)
class Variable:
    """A variable of a state space (``global``, ``const``, ``shared`` or ``local``).

    `size_bytes` is None where the launch decides (``.extern .shared``), `initial` where nothing is
    given.
    """

    name: str
    space: str
    alignment: int
    size_bytes: int | None
    initial: bytes | None = None


@dataclass
class Entry:
    """A kernel.

    Attributes
    ----------
    name : str
    parameters : dict
        Sizes in bytes, in order.
    most_threads : int or None
        ``.maxntid`` or ``.reqntid``: threads of a block, at most.
    registers : dict
        Widths in bits; 1 for predicates.
    variables : dict
        Those declared inside, and the module's.
    instructions : list
    labels : dict
        Label to the index of the instruction that it stands before.
    """

    name: str
    parameters: dict[str, int]
    most_threads: int | None
    registers: dict[str, int] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_OF_THE_LINE = re.compile(
    r"^[ \t]*\.(?:version|target|address_size|loc|file)\b[^\n]*", re.MULTILINE
)
_FUNCTION = re.compile(
    r"(?:\.(?:visible|weak|extern)\s+)*\.(?P<kind>entry|func)\b\s*(?:\([^)]*\)\s*)?(?P<name>[\w$]+)\s*"
    r"(?:\((?P<parameters>[^)]*)\))?(?P<directives>[^{};]*)(?P<end>[{;])"
)
_VARIABLE = re.compile(
    r"(?P<extern>\.extern\s+)?(?:\.(?:visible|weak)\s+)*\.(?P<space>global|const|shared|local)\s+"
    r"(?:\.align\s+(?P<alignment>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)\s*"
    r"(?P<lengths>(?:\[\d*\])*)\s*(?:=\s*(?P<initial>.+))?$",
    re.DOTALL,
)
_STATEMENT = re.compile(
    r"\s*(?:(?P<label>[\w$]+)\s*:|(?P<open>\{)|(?P<close>\})|(?P<text>[^;{}]+(?:\{[^;{}]*\}[^;{}]*)*);)"
)
_INSTRUCTION = re.compile(
    r"(?:@(?P<not>!?)(?P<guard>[%\w$]+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<rest>.*)$"
)
_REGISTERS = re.compile(r"\.reg\s+\.(?P<type>\w+)\s+(?P<names>.+)$")
_OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+?)\s*(?:,|$)")


def width_of(type_name: str) -> int:
    """Bits of a PTX type: ``u32`` has 32, ``pred`` has 1, ``f16x2`` has 32."""
    if type_name == "pred":
        return 1
    match = re.fullmatch(r"[subf]+(\d+)(x2)?", type_name)
    if match is None:
        raise PtxError(f"`.{type_name}` is no PTX type that tests/support knows")
    return int(match[1]) * (2 if match[2] else 1)


def parse(ptx: str) -> dict[str, Entry]:
    """The kernels of a module, by name.

    Raises
    ------
    PtxError
        If the text is not PTX as NVRTC writes it.
    """
    for pattern in (_COMMENT, _OF_THE_LINE):
        ptx = pattern.sub(lambda match: "\n" * match[0].count("\n"), ptx)
    entries, outside, at = {}, "", 0
    for match in _FUNCTION.finditer(ptx):
        if match.start() < at:
            continue
        outside += ptx[at : match.start()]
        at = match.end()
        if match["end"] == "{":
            at = _end_of_block(ptx, match.end())
        if match["kind"] == "entry":
            line = 1 + ptx.count("\n", 0, match.end())
            entries[match["name"]] = _entry(match, ptx[match.end() : at - 1], line)
    outside += ptx[at:]
    statements = (text.strip() for text in outside.split(";"))
    for variable in (_variable(text) for text in statements if text):
        for entry in entries.values():
            entry.variables.setdefault(variable.name, variable)
    return entries


def _end_of_block(ptx: str, begin: int) -> int:
    depth = 1
    for brace in re.finditer(r"[{}]", ptx[begin:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return begin + brace.end()
    raise PtxError("a `{` of the PTX is never closed")


def _entry(match: re.Match[str], body: str, line: int) -> Entry:
    parameters = {}
    for text in filter(None, map(str.strip, (match["parameters"] or "").split(","))):
        declared = re.search(r"\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?$", text)
        if declared is None:
            raise PtxError(f"`{text}` is no parameter of a kernel")
        parameters[declared[2]] = width_of(declared[1]) // 8 * int(declared[3] or 1)
    threads = re.search(r"\.(?:max|req)ntid\s+([\d,\s]+)", match["directives"])
    most = None
    if threads:
        most = 1
        for size in threads[1].split(","):
            most *= int(size)
    entry = Entry(match["name"], parameters, most)
    _Body(entry, line).read(body)
    return entry


class _Body:
    """Reads statements; names of registers hold inside the braces around them."""

    def __init__(self, entry: Entry, line: int) -> None:
        self._entry = entry
        self._line = line
        self._scopes: list[dict[str, str]] = [{}]
        self._opened = 0

    def read(self, body: str) -> None:
        at = 0
        while body[at:].strip():
            match = _STATEMENT.match(body, at)
            if match is None:
                raise PtxError(f"PTX line {self._line}: `{body[at:].split()[0]}` is no statement")
            kind = match.lastgroup or ""
            self._line += body.count("\n", at, match.start(kind))
            if kind == "label":
                self._entry.labels[match["label"]] = len(self._entry.instructions)
            elif kind == "open":
                self._scopes.append({})
                self._opened += 1
            elif kind == "close":
                self._scopes.pop()
            else:
                self._statement(" ".join(match["text"].split()))
            self._line += body.count("\n", match.start(kind), match.end())
            at = match.end()

    def _statement(self, text: str) -> None:
        registers = _REGISTERS.match(text)
        if registers:
            for name in registers["names"].split(","):
                self._declare(name.strip(), width_of(registers["type"]))
        elif text.startswith((".pragma", ".param")):
            pass  # advice to the assembler; room for a call's arguments: the call is refused
        elif text.startswith("."):
            variable = _variable(text)
            self._entry.variables[variable.name] = variable
        else:
            self._instruction(text)

    def _declare(self, name: str, bits: int) -> None:
        many = re.fullmatch(r"(.+)<(\d+)>", name)
        names = [f"{many[1]}{n}" for n in range(int(many[2]))] if many else [name]
        for one in names:
            own = one if len(self._scopes) == 1 else f"{one}@{self._opened}"
            self._scopes[-1][one] = own
            self._entry.registers[own] = bits

    def _instruction(self, text: str) -> None:
        match = _INSTRUCTION.match(text)
        if match is None:
            raise PtxError(f"PTX line {self._line}: `{text}` is no instruction")
        operands, rest, at = [], match["rest"], 0
        while at < len(rest):
            part = _OPERAND.match(rest, at)
            if part is None:
                raise PtxError(f"PTX line {self._line}: `{rest[at:]}` in `{text}` is no operand")
            operands.append(self._operand(part[1]))
            at = part.end()
        self._entry.instructions.append(
            Instruction(
                line=self._line,
                text=text,
                opcode=tuple(match["opcode"].split(".")),
                operands=tuple(operands),
                guard=self._name(match["guard"]) if match["guard"] else None,
                guard_value=not match["not"],
            )
        )

    def _operand(self, text: str) -> Operand:
        if text.startswith("{"):
            return tuple(self._operand(part.strip()) for part in text[1:-1].split(","))
        if text.startswith("["):
            base, sign, offset = re.fullmatch(
                r"\[\s*([^\s+-]+)\s*([+-]?)\s*(-?\w*)\s*\]", text
            ).groups()
            distance = int(offset, 0) if offset else 0
            return Address(self._name(base), -distance if sign == "-" else distance)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
            return Immediate(int(text[2:], 16))
        if re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0))
        return "|".join(map(self._name, text.split("|")))

    def _name(self, name: str) -> str:
        """The register that the name means here; other names mean themselves."""
        if name.startswith("!"):
            return "!" + self._name(name[1:])
        return next((scope[name] for scope in reversed(self._scopes) if name in scope), name)


def _variable(text: str) -> Variable:
    match = _VARIABLE.match(text)
    if match is None:
        raise PtxError(f"`{text}` is neither a variable nor a kernel")
    bits, kind = width_of(match["type"]), match["type"][0]
    lengths = re.findall(r"\[(\d*)\]", match["lengths"])
    size: int | None = bits // 8
    for length in lengths:
        size = size * int(length) if length and size is not None else None
    initial = None
    if match["initial"] is not None and size is not None:
        numbers = re.findall(r"[^\s{},]+", match["initial"])
        initial = b"".join(_bytes_of(number, bits // 8, kind) for number in numbers)
        initial = initial.ljust(size, b"\0")
    alignment = int(match["alignment"] or bits // 8)
    return Variable(match["name"], match["space"], alignment, size, initial)


def _bytes_of(number: str, size: int, kind: str) -> bytes:
    if number[:2].lower() in ("0f", "0d") and kind == "f":
        return int(number[2:], 16).to_bytes(size, "little")
    try:
        return (int(number.rstrip("U"), 0) % (1 << 8 * size)).to_bytes(size, "little")
    except ValueError:
        pass
    try:
        return struct.pack("<f" if size == 4 else "<d", float(number))
    except ValueError as error:
        raise PtxError(f"`{number}` is no value that a variable can begin with") from error
