"""Every instruction that the machine knows, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from support.ptx import UnknownInstructionError
from support.running import assembled, run_ptx

THREADS = 512

#: Register, load and store of a type.
HELD = {8: ("%rs", "u16"), 16: ("%rs", "u16"), 32: ("%r", "u32"), 64: ("%rd", "u64")}
REALS = {"f32": "%f", "f64": "%fd"}
TYPES = {
    **{
        f"{k}{b}": np.dtype(f"{'i' if k == 's' else 'u'}{b // 8}")
        for k in "sub"
        for b in (16, 32, 64)
    },
    "s8": np.dtype("i1"),
    "u8": np.dtype("u1"),
    "f16": np.dtype("f2"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
}


def operands(kind: str, seed: int) -> np.ndarray:
    """Values of a type: its corners, small numbers and any bits."""
    dtype, random = TYPES[kind], np.random.default_rng(seed)
    if dtype.kind == "f":
        corners = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-42, -1e-42, 65519.9, 1e30, 0.1]
        corners += [2.5, -3.5, 4294967295.0, -2147483649.0]
        with np.errstate(over="ignore"):
            values = np.array([*corners, *(random.standard_normal(THREADS) * 1000)], dtype)
    else:
        limits = np.iinfo(dtype)
        corners = [
            0,
            1,
            2,
            3,
            31,
            32,
            limits.max,
            limits.max - 1,
            limits.min,
            limits.min + 1,
            7,
            64,
        ]
        if dtype.kind == "i":
            corners += [-1, -2, -32]
        any_bits = random.integers(limits.min, limits.max, THREADS, dtype, endpoint=True)
        values = np.concatenate([np.array(corners, dtype), any_bits])
    return random.permutation(values)[:THREADS]


def register_of(kind: str, n: int) -> str:
    return f"{REALS.get(kind) or HELD[TYPES[kind].itemsize * 8][0]}{n}"


def compute(instruction: str, to: str, sources: tuple[str, ...], seed: int = 0) -> Any:
    """The results, and the operands they are of; `{d}` and `{a}`, `{b}`, `{c}` name registers."""
    given = np.zeros((THREADS, 4), np.uint64)
    values, lines, names = [], [], {"d": register_of(to, 5)}
    for n, kind in enumerate(sources):
        values.append(operands(kind, seed + n))
        given[:, n] = values[-1].view(f"u{TYPES[kind].itemsize}")
        names["abc"[n]] = register_of(kind, n + 1)
        load = kind if kind in REALS else f"u{max(TYPES[kind].itemsize * 8, 16)}"
        lines.append(f"ld.global.{load} {names['abc'[n]]}, [%rd2+{8 * n}];")
    store = to if to in REALS else f"u{max(TYPES[to].itemsize * 8, 16)}"
    lines += [instruction.format(**names), f"st.global.{store} [%rd0], {names['d']};"]
    kernel = assembled(
        " ".join(["mov.u64 %rd0, %rd1; mov.u64 %rd8, %rd2;", *lines]).replace("[%rd2", "[%rd8")
    )
    return run_ptx(kernel, given, THREADS, TYPES[to]), values


def same(got: np.ndarray, wanted: Any) -> None:
    """The same bits, except that any NaN is as good as another."""
    wanted = np.asarray(wanted)
    assert got.dtype == wanted.dtype
    if got.dtype.kind == "f":
        nan = np.isnan(wanted)
        np.testing.assert_array_equal(np.isnan(got), nan)
        got, wanted = got[~nan], wanted[~nan]
    np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), wanted.view(f"u{wanted.itemsize}"))


def exactly(function: Callable[..., int], to: str) -> Callable[..., np.ndarray]:
    """A function of Python's whole numbers, its results cut to a type."""
    bits = TYPES[to].itemsize * 8

    def apply(*arrays: np.ndarray) -> np.ndarray:
        rows = zip(*(array.tolist() for array in arrays), strict=True)
        return np.array([function(*row) % (1 << bits) for row in rows], f"u{bits // 8}").view(
            TYPES[to]
        )

    return apply


def quotient(a: int, b: int) -> int:
    """Toward zero, as the machines do it; all ones for a division by zero."""
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a - quotient(a, b) * b


INTEGERS: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "mad.lo": lambda a, b, c: a * b + c,
    "div": quotient,
    "rem": remainder,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integer_arithmetic(name: str, kind: str) -> None:
    count = 3 if name == "mad.lo" else 2
    places = ", ".join(["{a}", "{b}", "{c}"][:count])
    got, values = compute(f"{name}.{kind} {{d}}, {places};", kind, (kind,) * count)
    same(got, exactly(INTEGERS[name], kind)(*values))


@pytest.mark.parametrize("name", ["min", "max"])
def test_arithmetic_of_pairs(name: str) -> None:
    got, values = compute(f"{name}.s16x2 {{d}}, {{a}}, {{b}};", "u32", ("u32", "u32"))
    a, b, got = (np.ascontiguousarray(value).view("i2") for value in (*values, got))
    same(got, {"min": np.minimum, "max": np.maximum}[name](a, b))


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_multiplication_to_twice_the_width_and_to_the_high_half(kind: str) -> None:
    bits = TYPES[kind].itemsize * 8
    wide = f"{kind[0]}{2 * bits}"
    got, values = compute(f"mul.wide.{kind} {{d}}, {{a}}, {{b}};", wide, (kind, kind))
    same(got, exactly(lambda a, b: a * b, wide)(*values))
    got, values = compute(f"mad.wide.{kind} {{d}}, {{a}}, {{b}}, {{c}};", wide, (kind, kind, wide))
    same(got, exactly(lambda a, b, c: a * b + c, wide)(*values))
    got, values = compute(f"mul.hi.{kind} {{d}}, {{a}}, {{b}};", kind, (kind, kind))
    same(got, exactly(lambda a, b: a * b >> bits, kind)(*values))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bits_and_shifts(bits: int) -> None:
    kind = f"b{bits}"
    for name, function in {
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }.items():
        got, values = compute(f"{name}.{kind} {{d}}, {{a}}, {{b}};", kind, (kind, kind))
        same(got, function(*values))
    got, values = compute(f"not.{kind} {{d}}, {{a}};", kind, (kind,))
    same(got, ~values[0])
    got, values = compute(f"shl.{kind} {{d}}, {{a}}, {{b}};", kind, (kind, "u32"))
    same(got, exactly(lambda a, n: a << min(n, 99), kind)(*values))
    for shifted in (f"s{bits}", f"u{bits}"):
        got, values = compute(f"shr.{shifted} {{d}}, {{a}}, {{b}};", shifted, (shifted, "u32"))
        same(got, exactly(lambda a, n: a >> min(n, 99), shifted)(*values))
    got, values = compute(f"neg.s{bits} {{d}}, {{a}};", f"s{bits}", (f"s{bits}",))
    same(got, exactly(lambda a: -a, f"s{bits}")(*values))
    got, values = compute(f"abs.s{bits} {{d}}, {{a}};", f"s{bits}", (f"s{bits}",))
    same(got, exactly(abs, f"s{bits}")(*values))


def test_bits_that_are_counted_moved_and_chosen() -> None:
    for bits in (32, 64):
        kind = f"b{bits}"
        got, values = compute(f"popc.{kind} {{d}}, {{a}};", "u32", (kind,))
        same(got, exactly(lambda a: a.bit_count(), "u32")(*values))
        got, values = compute(f"clz.{kind} {{d}}, {{a}};", "u32", (kind,))
        same(got, exactly(lambda a: bits - a.bit_length(), "u32")(*values))  # noqa: B023
        got, values = compute(f"brev.{kind} {{d}}, {{a}};", kind, (kind,))
        same(got, exactly(lambda a: int(f"{a:0{bits}b}"[::-1], 2), kind)(*values))  # noqa: B023
        got, values = compute(f"bfi.{kind} {{d}}, {{a}}, {{b}}, 5, 9;", kind, (kind, kind))
        same(got, exactly(lambda a, b: b & ~(511 << 5) | (a & 511) << 5, kind)(*values))
        for sign in "su":
            got, values = compute(f"bfe.{sign}{bits} {{d}}, {{a}}, 3, 7;", f"{sign}{bits}", (kind,))
            wanted = exactly(
                lambda a: (a >> 3 & 127) - (128 if sign == "s" and a >> 9 & 1 else 0),  # noqa: B023
                f"{sign}{bits}",
            )
            same(got, wanted(*values))
    got, values = compute("bfi.b64 {d}, {a}, {b}, 32, 32;", "b64", ("b64", "b64"))
    same(got, exactly(lambda a, b: b & 0xFFFFFFFF | a << 32, "b64")(*values))

    def permuted(a: int, b: int, selector: int) -> int:
        pool, result = (b << 32 | a).to_bytes(8, "little"), 0
        for n in range(4):
            nibble = selector >> 4 * n & 15
            byte = pool[nibble & 7]
            result |= ((0xFF if byte & 0x80 else 0) if nibble & 8 else byte) << 8 * n
        return result

    got, values = compute("prmt.b32 {d}, {a}, {b}, {c};", "b32", ("b32",) * 3)
    same(got, exactly(permuted, "b32")(*values))
    shifts = {
        "shf.l.wrap": lambda a, b, n: (b << 32 | a) << (n & 31) >> 32,
        "shf.l.clamp": lambda a, b, n: (b << 32 | a) << min(n, 32) >> 32,
        "shf.r.wrap": lambda a, b, n: (b << 32 | a) >> (n & 31),
        "shf.r.clamp": lambda a, b, n: (b << 32 | a) >> min(n, 32),
    }
    for name, function in shifts.items():
        got, values = compute(f"{name}.b32 {{d}}, {{a}}, {{b}}, {{c}};", "b32", ("b32",) * 3)
        same(got, exactly(function, "b32")(*values))


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64", "f32", "f64"])
def test_comparisons_and_selection(kind: str) -> None:
    for name, function in COMPARISONS.items():
        text = f"setp.{name}.{kind} %p1, {{a}}, {{b}}; selp.u32 {{d}}, 7, 9, %p1;"
        got, (a, b) = compute(text, "u32", (kind, kind))
        wanted = function(a, b)
        if kind[0] == "f" and name == "ne":  # ordered: false where either is NaN
            wanted &= ~np.isnan(a) & ~np.isnan(b)
        same(got, np.where(wanted, 7, 9).astype("u4"))
    got, (a, b) = compute(
        f"setp.lt.{kind} %p1, {{a}}, {{b}}; setp.gt.and.{kind} %p2, {{b}}, {{a}}, %p1;"
        f"setp.gt.or.{kind} %p3, {{a}}, {{b}}, !%p2; selp.u32 {{d}}, 7, 9, %p3;",
        "u32",
        (kind, kind),
    )
    same(got, np.where((a > b) | ~(a < b), 7, 9).astype("u4"))


def test_comparisons_of_what_may_be_no_number() -> None:
    for kind in ("f32", "f64"):
        for name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
            if name == "equ":
                continue
            text = f"setp.{name}.{kind} %p1, {{a}}, {{b}}; selp.u32 {{d}}, 7, 9, %p1;"
            got, (a, b) = compute(text, "u32", (kind, kind))
            wanted = COMPARISONS[name[:2]](a, b) | np.isnan(a) | np.isnan(b)
            same(got, np.where(wanted, 7, 9).astype("u4"))
        for name, wanted_of in (
            ("nan", lambda a, b: np.isnan(a) | np.isnan(b)),
            ("num", lambda a, b: ~np.isnan(a) & ~np.isnan(b)),
        ):
            text = f"setp.{name}.{kind} %p1, {{a}}, {{b}}; selp.u32 {{d}}, 7, 9, %p1;"
            got, (a, b) = compute(text, "u32", (kind, kind))
            same(got, np.where(wanted_of(a, b), 7, 9).astype("u4"))


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_arithmetic_of_reals_rounds_once(kind: str) -> None:
    for name, function in {
        "add.rn": np.add,
        "add": np.add,
        "sub.rn": np.subtract,
        "mul.rn": np.multiply,
        "div.rn": np.divide,
    }.items():
        got, values = compute(f"{name}.{kind} {{d}}, {{a}}, {{b}};", kind, (kind, kind))
        same(got, function(*values))
    for name, function in {"neg": np.negative, "abs": np.abs, "sqrt.rn": np.sqrt}.items():
        got, values = compute(f"{name}.{kind} {{d}}, {{a}};", kind, (kind,))
        same(got, function(*values))
    for name, function in {"min": np.fmin, "max": np.fmax}.items():
        got, (a, b) = compute(f"{name}.{kind} {{d}}, {{a}}, {{b}};", kind, (kind, kind))
        wanted = function(a, b)
        zero = (a == 0) & (b == 0)  # -0 is the smaller one
        negative = np.signbit(a) | np.signbit(b) if name == "min" else np.signbit(a) & np.signbit(b)
        wanted[zero] = np.where(negative, -0.0, 0.0)[zero]
        same(got, wanted)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_fused_multiply_add_rounds_once() -> None:
    got, (a, b, c) = compute("fma.rn.f32 {d}, {a}, {b}, {c};", "f32", ("f32",) * 3)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    for x, y, z, result in zip(*(v[finite].tolist() for v in (a, b, c, got)), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if np.isfinite(result):
            below, above = (
                np.nextafter(np.float32(result), np.float32(s)) for s in (-np.inf, np.inf)
            )
            apart = abs(Fraction(result) - exact)
            for near in (below, above):
                assert not np.isfinite(near) or apart <= abs(Fraction(float(near)) - exact)
    product = np.float32(1 + 2**-12)
    kernel = assembled(
        "ld.global.f32 %f1, [%rd2]; fma.rn.f32 %f2, %f1, %f1, 0fBF800000;st.global.f32 [%rd1], %f2;"
    )
    given = np.zeros((1, 4), np.uint64)
    given[0, 0] = product.view(np.uint32)
    assert run_ptx(kernel, given, 1, np.float32)[0] == np.float32(2**-11 + 2**-24)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_ftz_flushes_subnormal_operands_and_results() -> None:
    def flush(x: np.ndarray) -> np.ndarray:
        small = (np.abs(x) < np.finfo(np.float32).tiny) & (x != 0)
        return np.where(small, np.copysign(np.float32(0), x), x).astype(np.float32)

    got, (a, b) = compute("add.ftz.f32 {d}, {a}, {b};", "f32", ("f32", "f32"))
    same(got, flush(flush(a) + flush(b)))
    got, (a,) = compute("mul.ftz.f32 {d}, {a}, 0f3F800000;", "f32", ("f32",))
    same(got, flush(a))
    got, (a,) = compute("mul.f32 {d}, {a}, 0f3F800000;", "f32", ("f32",))
    same(got, a)
    got, (a, b) = compute("max.ftz.f32 {d}, {a}, {b};", "f32", ("f32", "f32"), seed=5)
    assert not ((np.abs(got) < np.finfo(np.float32).tiny) & (got != 0)).any()
    got, (a,) = compute(
        "setp.eq.ftz.f32 %p1, {a}, 0f00000000; selp.u32 {d}, 1, 0, %p1;", "u32", ("f32",)
    )
    same(got, (flush(a) == 0).astype("u4"))


@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_whole_numbers_to_other_widths_and_to_reals(source: str) -> None:
    for to in ("s16", "u16", "s32", "u32", "s64", "u64"):
        got, values = compute(f"cvt.{to}.{source} {{d}}, {{a}};", to, (source,))
        same(got, values[0].astype(TYPES[to]))
    for to in ("f32", "f64"):
        got, values = compute(f"cvt.rn.{to}.{source} {{d}}, {{a}};", to, (source,))
        same(got, values[0].astype(TYPES[to]))


def test_a_narrow_signed_value_fills_its_register() -> None:
    got, values = compute("cvt.s8.s32 %rs1, {a}; cvt.s32.s16 {d}, %rs1;", "s32", ("s32",))
    same(got, values[0].astype("i1").astype("i4"))
    got, values = compute("cvt.u8.u32 %rs1, {a}; cvt.u32.u16 {d}, %rs1;", "u32", ("u32",))
    same(got, values[0].astype("u1").astype("u4"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_reals_to_other_reals() -> None:
    got, (a,) = compute("cvt.rn.f32.f64 {d}, {a};", "f32", ("f64",))
    same(got, a.astype("f4"))
    got, (a,) = compute("cvt.f64.f32 {d}, {a};", "f64", ("f32",))
    same(got, a.astype("f8"))
    got, (a,) = compute("cvt.rn.f16.f32 {d}, {a};", "f16", ("f32",))
    same(got, a.astype("f2"))
    got, (a,) = compute("cvt.f32.f16 {d}, {a};", "f32", ("f16",))
    same(got, a.astype("f4"))
    got, (a, b) = compute("cvt.rn.f16x2.f32 {d}, {a}, {b};", "u32", ("f32", "f32"))
    halves = got.copy().view("f2").reshape(-1, 2)
    same(halves[:, 0], b.astype("f2"))
    same(halves[:, 1], a.astype("f2"))


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("to", ["s32", "u32", "s64", "u64", "s16"])
def test_reals_to_whole_numbers_keep_to_the_range(source: str, to: str) -> None:
    limits = np.iinfo(TYPES[to])
    for rounding, function in {"rzi": int, "rni": round}.items():
        text = f"cvt.{rounding}.{to}.{source} {{d}}, {{a}};"
        got, (a,) = compute(text, to, (source,))
        wanted = [
            0
            if np.isnan(x)
            else limits.max
            if x == np.inf
            else limits.min
            if x == -np.inf
            else min(max(function(x), limits.min), limits.max)
            for x in a.tolist()
        ]
        same(got, np.array(wanted, TYPES[to]))
    for rounding, floor in {
        "rmi": np.floor,
        "rpi": np.ceil,
        "rzi": np.trunc,
        "rni": np.rint,
    }.items():
        got, (a,) = compute(f"cvt.{rounding}.{source}.{source} {{d}}, {{a}};", source, (source,))
        same(got, floor(a))


def test_registers_are_packed_and_unpacked() -> None:
    got, (a,) = compute(
        "mov.b32 {{%rs1, %rs2}}, {a}; mov.b32 {d}, {{%rs2, %rs1}};", "u32", ("u32",)
    )
    same(got, a << 16 | a >> 16)
    got, (a,) = compute("mov.b64 {{%r1, %r2}}, {a}; mov.b64 {d}, {{%r2, %r1}};", "u64", ("u64",))
    same(got, a << np.uint64(32) | a >> np.uint64(32))
    got, (a,) = compute(
        "mov.b64 {{%rs1, %rs2, %rs3, %rs4}}, {a}; mov.b64 {d}, {{%rs4, %rs3, %rs2, %rs1}};",
        "u64",
        ("u64",),
    )
    same(got, a.view("u2").reshape(-1, 4)[:, ::-1].copy().view("u8").ravel())
    got, (a,) = compute("mov.b64 {{_, %r2}}, {a}; mov.b32 {d}, %r2;", "u32", ("u64",))
    same(got, (a >> np.uint64(32)).astype("u4"))
    got, (a,) = compute("mov.b32 {d}, {a};", "u32", ("f32",))
    same(got, a.view("u4"))


def test_narrow_loads_extend_and_vectors_come_in_order() -> None:
    given = np.random.default_rng(3).integers(0, 2**63, (THREADS, 4), np.uint64)
    first = given[:, 0].copy()
    for kind, register in (("s8", "%r1"), ("u8", "%r1"), ("s16", "%r1"), ("u16", "%r1")):
        kernel = assembled(f"ld.global.{kind} {register}, [%rd2]; st.global.u32 [%rd1], %r1;")
        wanted = first.view(TYPES[kind])[:: 8 // TYPES[kind].itemsize].astype("i4")
        same(run_ptx(kernel, given, THREADS, np.int32), wanted)
    kernel = assembled(
        "ld.global.v4.u32 {%r1, _, %r3, %r4}, [%rd2+16]; xor.b32 %r1, %r1, %r3;"
        "st.global.v2.u32 [%rd1], {%r4, %r1};"
    )
    words = given[:, 2:].copy().view("u4")
    pairs = np.stack([words[:, 3], words[:, 0] ^ words[:, 2]], 1)
    same(run_ptx(kernel, given, THREADS), pairs.copy().view("u8").ravel())


def test_an_instruction_nobody_taught_is_named() -> None:
    for text in (
        "sin.approx.f32 %f1, %f2",
        "add.sat.s32 %r1, %r1, %r2",
        "add.f16 %rs1, %rs1, %rs2",
        "div.full.f32 %f1, %f1, %f2",
        "cvt.rz.f32.f64 %f1, %fd1",
        "cvt.f32.s32 %f1, %r1",
        "atom.global.add.u32 %r1, [%rd1], %r2",
        "red.global.add.u32 [%rd1], %r2",
        "call foo",
        "bar.sync 1",
        "bar.sync 0, 64",
        "bar.arrive 0, 64",
        "ld.acquire.gpu.global.u32 %r1, [%rd2]",
        "ld.global.v8.u32 {%r1}, [%rd2]",
        "bra.conv L",
        "bfi.b32 %r1, %r2, %r3, %r4, 3",
        "setp.lt.s32 %p1|%p2, %r1, %r2",
        "mov.u32 %r1, %clock",
        "add.s32 %r1, %r77, 1",
        "prmt.b32.f4e %r1, %r2, %r3, %r4",
        "cp.async.ca.shared.global [%r1], [%rd2], 16",
        "trap",
    ):
        with pytest.raises(UnknownInstructionError) as caught:
            assembled(f"{text};\nL:")
        assert f"`{text}`" in str(caught.value)
        assert "PTX line" in str(caught.value)
