// What each instruction computes.
//
// Registers are 64 bits wide here.  An integer narrower than that lies in the low bits, the rest
// zero: operands are extended as their type says, the result is cut to its width.  The table at the
// end is all that is known; ptx_lower.py names its entries.
//
// Each entry has two functions: one for values, one for the bits of its result that are unknown
// because an operand's are.  `Bits` carries both.

#ifndef CTGPU_TESTS_INSTRUCTIONS_H
#define CTGPU_TESTS_INSTRUCTIONS_H

#include "../../../kernels/preprocess_math.h"
#include "warp.h"

#include <cmath>
#include <map>
#include <string>
#include <type_traits>

namespace machine {

using i64 = std::int64_t;
using Op = const Operation &;

struct Bits {
    u64 value, unknown;
};

// ---- Lane by lane ------------------------------------------------------------------------------

// Where one unknown bit makes all of the result unknown.
struct All {
    u64 operator()(Op op, Bits, Bits, Bits) const { return op.mask(); }
};

// Where one unknown bit makes those above it unknown: nothing is carried down.
struct Carried {
    u64 operator()(Op op, Bits a, Bits b, Bits c) const {
        const u64 unknown = a.unknown | b.unknown | c.unknown, lowest = unknown & (0 - unknown);
        return (0 - lowest) & op.mask();
    }
};

// A predicate is one bit.
struct One {
    u64 operator()(Op, Bits, Bits, Bits) const { return 1; }
};

// Where the first `DATA` operands' bits are only moved, as the others say.
template <class F, int DATA>
struct Moved {
    u64 operator()(Op op, Bits a, Bits b, Bits c) const {
        if ((DATA < 2 && b.unknown) || (DATA < 3 && c.unknown))
            return op.mask();
        return F{}(op, a.unknown, DATA > 1 ? b.unknown : b.value, DATA > 2 ? c.unknown : c.value);
    }
};

template <class F>
u64 call(F f, Op op, u64 a, u64 b, u64 c) {
    if constexpr (std::is_invocable_v<F, Op, u64>)
        return f(op, a);
    else if constexpr (std::is_invocable_v<F, Op, u64, u64>)
        return f(op, a, b);
    else
        return f(op, a, b, c);
}

template <class F>
struct Padded {
    u64 operator()(Op op, u64 a, u64 b, u64 c) const { return call(F{}, op, a, b, c); }
};

template <class F, class Unknown>
void each_lane(Warp &warp, Op op) {
    const int *r = op.from;
    const LaneMask partly =
        (warp.partly(r[0]) | warp.partly(r[1]) | warp.partly(r[2])) & warp.active;
    u64 unknown[LANES];
    for (LaneMask rest = partly; rest; rest &= rest - 1) {
        const int l = std::countr_zero(rest);
        const auto bits = [&](int reg) {
            return Bits{warp.value(reg)[l], warp.unknown_bits(reg, l)};
        };
        unknown[l] = Unknown{}(op, bits(r[0]), bits(r[1]), bits(r[2]));
    }
    u64 *const to = warp.value(op.to[0]);
    const u64 *const a = warp.value(r[0]), *const b = warp.value(r[1]), *const c = warp.value(r[2]);
    for (int l = 0; l < LANES; ++l) {
        const u64 result = call(F{}, op, a[l], b[l], c[l]), keep = (warp.active >> l & 1u) - 1ull;
        to[l] = (result & ~keep) | (to[l] & keep);
    }
    warp.know(op.to[0], warp.active);
    for (LaneMask rest = partly; rest; rest &= rest - 1) {
        const int l = std::countr_zero(rest);
        warp.doubt(op.to[0], l, unknown[l]);
    }
}

template <class F>
Handler computed(F) {
    return each_lane<F, All>;
}
template <int DATA, class F>
Handler moved(F) {
    return each_lane<F, Moved<Padded<F>, DATA>>;
}
template <class F, class Unknown>
Handler computed(F, Unknown) {
    return each_lane<F, Unknown>;
}

// ---- Integers ----------------------------------------------------------------------------------

inline u64 cut(Op op, u64 x) { return x & op.mask(); }

template <bool SIGNED>
auto extended(int bits, u64 x) {
    const int unused = 64 - bits;
    if constexpr (SIGNED)
        return static_cast<i64>(x << unused) >> unused;
    else
        return x << unused >> unused;
}

inline u64 shifted_left(u64 x, u64 by) { return by < 64 ? x << by : 0; }

inline u64 reversed(u64 x) {
    u64 result = 0;
    for (int n = 0; n < 64; ++n)
        result |= (x >> n & 1) << (63 - n);
    return result;
}

// Bytes of b:a, or their signs, that the nibbles of `selector` choose.
inline u64 permuted(u64 a, u64 b, u64 selector) {
    const u64 bytes = b << 32 | (a & 0xffffffffu);
    u64 result = 0;
    for (int n = 0; n < 4; ++n) {
        const u64 nibble = selector >> 4 * n & 15, byte = bytes >> 8 * (nibble & 7) & 255;
        result |= (nibble & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * n;
    }
    return result;
}

inline u64 funnel(u64 a, u64 b, u64 by, bool left, bool wraps) {
    const u64 both = b << 32 | (a & 0xffffffffu), n = wraps ? by & 31 : std::min<u64>(by, 32);
    return (left ? both >> (32 - n) : both >> n) & 0xffffffffu;
}

// ---- Floating point ----------------------------------------------------------------------------

template <class T>
T flushed(Op op, T x) {
    return op.flush && std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T(0), x) : x;
}
template <class T>
T real(Op op, u64 x) {
    if constexpr (sizeof(T) == 4)
        return flushed(op, std::bit_cast<float>(static_cast<u32>(x)));
    else
        return std::bit_cast<double>(x);
}
inline u64 bits_of(Op op, float x) {
    return std::isnan(x) ? 0x7fffffffu : std::bit_cast<u32>(flushed(op, x));
}
inline u64 bits_of(Op, double x) { return std::bit_cast<u64>(x); }

// A NaN loses against a number, and −0 lies below +0.
template <class T>
T smaller(T a, T b) {
    if (std::isnan(a) || std::isnan(b))
        return std::isnan(a) ? b : a;
    return a == b ? (std::signbit(a) ? a : b) : a < b ? a : b;
}
template <class T>
T larger(T a, T b) {
    return -smaller(-a, -b);
}

template <class T>
u64 to_integer(Op op, T rounded, bool is_signed) {
    const int bits = op.bits - (is_signed ? 1 : 0);
    const T above = std::ldexp(T(1), bits), lowest = is_signed ? -above : T(0);
    if (std::isnan(rounded))
        return 0;
    if (rounded >= above)
        return bits == 64 ? ~0ull : (1ull << bits) - 1;
    if (rounded <= lowest)
        return is_signed ? cut(op, ~0ull << bits) : 0;
    return cut(op,
               is_signed ? static_cast<u64>(static_cast<i64>(rounded)) : static_cast<u64>(rounded));
}

inline u64 half(Op op, u64 x) { return ctgpu::to_half(real<float>(op, x)); }

// ---- The table ---------------------------------------------------------------------------------

using Table = std::map<std::string, Handler>;

#define CTGPU_COMPUTE(expression)                                                                  \
    computed([](Op op, u64 a, u64 b, u64 c) -> u64 {                                               \
        (void)op, (void)a, (void)b, (void)c;                                                       \
        return expression;                                                                         \
    })

#define CTGPU_CARRY(expression)                                                                    \
    computed([](Op op, u64 a, [[maybe_unused]] u64 b,                                              \
                [[maybe_unused]] u64 c) -> u64 { return cut(op, expression); },                    \
             Carried{})
#define CTGPU_COMPARE(expression)                                                                  \
    computed([](Op op, u64 a, u64 b) -> u64 { return expression; }, One{})

template <bool SIGNED>
void add_integers(Table &table, const std::string &type) {
    const auto x = [](Op op, u64 a) { return extended<SIGNED>(op.bits, a); };
    using X = decltype(x);
    table["add" + type] = CTGPU_CARRY(a + b);
    table["sub" + type] = CTGPU_CARRY(a - b);
    table["mul.lo" + type] = CTGPU_CARRY(a * b);
    table["mad.lo" + type] = CTGPU_CARRY(a * b + c);
    table["mul.wide" + type] = CTGPU_COMPUTE(
        static_cast<u64>(extended<SIGNED>(op.bits_from, a) * extended<SIGNED>(op.bits_from, b)) &
        op.mask());
    table["mad.wide" + type] =
        CTGPU_COMPUTE(cut(op, static_cast<u64>(extended<SIGNED>(op.bits_from, a) *
                                               extended<SIGNED>(op.bits_from, b)) +
                                  c));
    using Wide = std::conditional_t<SIGNED, __int128, unsigned __int128>;
    table["mul.hi" + type] =
        CTGPU_COMPUTE(cut(op, static_cast<u64>(Wide(X{}(op, a)) * Wide(X{}(op, b)) >> op.bits)));
    // What a division by zero gives is left open; here it is all ones.
    const auto quotient = [](Op op, u64 a, u64 b) -> u64 {
        if (b == 0)
            return op.mask();
        return SIGNED && X{}(op, b) == decltype(X{}(op, b))(-1)
                   ? cut(op, 0 - a)
                   : cut(op, static_cast<u64>(X{}(op, a) / X{}(op, b)));
    };
    using Quotient = decltype(quotient);
    table["div" + type] = computed(quotient);
    table["rem" + type] = CTGPU_COMPUTE(cut(op, a - Quotient{}(op, a, b) * b));
    table["min" + type] = CTGPU_COMPUTE(X{}(op, a) < X{}(op, b) ? a : b);
    table["max" + type] = CTGPU_COMPUTE(X{}(op, a) > X{}(op, b) ? a : b);
    table["neg" + type] = CTGPU_CARRY(0 - a);
    table["abs" + type] = CTGPU_COMPUTE(X{}(op, a) < 0 ? cut(op, 0 - a) : a);
    table["shr" + type] = moved<1>([](Op op, u64 a, u64 b) -> u64 {
        const u64 by = b & 0xffffffffu;
        return !SIGNED && by > 63 ? 0
                                  : cut(op, static_cast<u64>(X{}(op, a) >> std::min<u64>(by, 63)));
    });
    table["cvt" + type] = moved<1>(
        [](Op op, u64 a) { return cut(op, static_cast<u64>(extended<SIGNED>(op.bits_from, a))); });
    table["setp.eq" + type] = CTGPU_COMPARE(X{}(op, a) == X{}(op, b));
    table["setp.ne" + type] = CTGPU_COMPARE(X{}(op, a) != X{}(op, b));
    table["setp.lt" + type] = CTGPU_COMPARE(X{}(op, a) < X{}(op, b));
    table["setp.le" + type] = CTGPU_COMPARE(X{}(op, a) <= X{}(op, b));
    table["setp.gt" + type] = CTGPU_COMPARE(X{}(op, a) > X{}(op, b));
    table["setp.ge" + type] = CTGPU_COMPARE(X{}(op, a) >= X{}(op, b));
    const auto from = [](Op op, u64 a) { return extended<SIGNED>(op.bits_from, a); };
    using From = decltype(from);
    table["cvt.rn.f32" + type] = CTGPU_COMPUTE(bits_of(op, static_cast<float>(From{}(op, a))));
    table["cvt.rn.f64" + type] = CTGPU_COMPUTE(bits_of(op, static_cast<double>(From{}(op, a))));
}

// Two signed 16-bit numbers in a register of 32 bits.
template <class F>
Handler each_of_pair(F) {
    return computed([](Op, u64 a, u64 b) {
        u64 result = 0;
        for (int at = 0; at < 32; at += 16) {
            const i64 x = extended<true>(16, a >> at), y = extended<true>(16, b >> at);
            result |= (static_cast<u64>(F{}(x, y)) & 0xffffu) << at;
        }
        return result;
    });
}

inline void add_pairs(Table &table) {
    table["min.s16x2"] = each_of_pair([](i64 x, i64 y) { return std::min(x, y); });
    table["max.s16x2"] = each_of_pair([](i64 x, i64 y) { return std::max(x, y); });
}

inline void add_bits(Table &table) {
    // A bit of a known 0 makes an `and` known, of a known 1 an `or`.
    table["and.b"] =
        computed([](Op, u64 a, u64 b) { return a & b; },
                 [](Op, Bits a, Bits b, Bits) {
                     return (a.unknown | b.unknown) & (a.unknown | a.value) & (b.unknown | b.value);
                 });
    table["or.b"] = computed([](Op, u64 a, u64 b) { return a | b; },
                             [](Op, Bits a, Bits b, Bits) {
                                 return (a.unknown | b.unknown) & (a.unknown | ~a.value) &
                                        (b.unknown | ~b.value);
                             });
    table["xor.b"] = computed([](Op, u64 a, u64 b) { return a ^ b; },
                              [](Op, Bits a, Bits b, Bits) { return a.unknown | b.unknown; });
    table["not.b"] = computed([](Op op, u64 a) { return cut(op, ~a); },
                              [](Op, Bits a, Bits, Bits) { return a.unknown; });
    table["mov.b"] = moved<1>([](Op op, u64 a) { return cut(op, a); });
    table["shl.b"] =
        moved<1>([](Op op, u64 a, u64 b) { return cut(op, shifted_left(a, b & 0xffffffffu)); });
    table["selp.b"] = moved<2>([](Op op, u64 a, u64 b, u64 c) { return cut(op, c ? a : b); });
    table["prmt.b"] = moved<2>([](Op, u64 a, u64 b, u64 c) { return permuted(a, b, c); });
    table["popc.b"] = CTGPU_COMPUTE(static_cast<u64>(std::popcount(a)));
    table["clz.b"] = CTGPU_COMPUTE(static_cast<u64>(std::countl_zero(a) - (64 - op.bits_from)));
    for (const bool left : {true, false})
        for (const bool wraps : {true, false}) {
            const std::string name = std::string("shf.") + (left ? "l" : "r") + ".";
            table[name + (wraps ? "wrap.b" : "clamp.b")] =
                left ? (wraps ? moved<2>([](Op, u64 a, u64 b, u64 n) {
                    return funnel(a, b, n, true, true);
                })
                              : moved<2>([](Op, u64 a, u64 b, u64 n) {
                                    return funnel(a, b, n, true, false);
                                }))
                     : (wraps ? moved<2>([](Op, u64 a, u64 b, u64 n) {
                           return funnel(a, b, n, false, true);
                       })
                              : moved<2>([](Op, u64 a, u64 b, u64 n) {
                                    return funnel(a, b, n, false, false);
                                }));
        }
    table["brev.b"] = CTGPU_COMPUTE(reversed(a) >> (64 - op.bits));
    // The parts of a mov between one register and several: ptx_lower.py splits it into these.
    table["pack"] = moved<2>([](Op op, u64 a, u64 b) {
        return cut(op, a | shifted_left(b, static_cast<u64>(op.offset)));
    });
    table["unpack"] = moved<1>([](Op op, u64 a) { return cut(op, a >> op.offset); });
}

template <class T>
void add_reals(Table &table, const std::string &type) {
    static const auto x = [](Op op, u64 a) { return real<T>(op, a); };
    using X = decltype(x);
    table["add" + type] = CTGPU_COMPUTE(bits_of(op, X{}(op, a) + X{}(op, b)));
    table["sub" + type] = CTGPU_COMPUTE(bits_of(op, X{}(op, a) - X{}(op, b)));
    table["mul" + type] = CTGPU_COMPUTE(bits_of(op, X{}(op, a) * X{}(op, b)));
    table["div.rn" + type] = CTGPU_COMPUTE(bits_of(op, X{}(op, a) / X{}(op, b)));
    table["sqrt.rn" + type] = CTGPU_COMPUTE(bits_of(op, std::sqrt(X{}(op, a))));
    table["fma" + type] = CTGPU_COMPUTE(bits_of(op, std::fma(X{}(op, a), X{}(op, b), X{}(op, c))));
    table["min" + type] = CTGPU_COMPUTE(bits_of(op, smaller(X{}(op, a), X{}(op, b))));
    table["max" + type] = CTGPU_COMPUTE(bits_of(op, larger(X{}(op, a), X{}(op, b))));
    table["neg" + type] = CTGPU_COMPUTE(bits_of(op, -X{}(op, a)));
    table["abs" + type] = CTGPU_COMPUTE(bits_of(op, std::fabs(X{}(op, a))));
    table["setp.eq" + type] = CTGPU_COMPARE(X{}(op, a) == X{}(op, b));
    table["setp.ne" + type] = CTGPU_COMPARE(X{}(op, a) < X{}(op, b) || X{}(op, a) > X{}(op, b));
    table["setp.lt" + type] = CTGPU_COMPARE(X{}(op, a) < X{}(op, b));
    table["setp.le" + type] = CTGPU_COMPARE(X{}(op, a) <= X{}(op, b));
    table["setp.gt" + type] = CTGPU_COMPARE(X{}(op, a) > X{}(op, b));
    table["setp.ge" + type] = CTGPU_COMPARE(X{}(op, a) >= X{}(op, b));
    table["setp.neu" + type] = CTGPU_COMPARE(!(X{}(op, a) == X{}(op, b)));
    table["setp.ltu" + type] = CTGPU_COMPARE(!(X{}(op, a) >= X{}(op, b)));
    table["setp.leu" + type] = CTGPU_COMPARE(!(X{}(op, a) > X{}(op, b)));
    table["setp.gtu" + type] = CTGPU_COMPARE(!(X{}(op, a) <= X{}(op, b)));
    table["setp.geu" + type] = CTGPU_COMPARE(!(X{}(op, a) < X{}(op, b)));
    table["setp.nan" + type] = CTGPU_COMPARE(std::isnan(X{}(op, a)) || std::isnan(X{}(op, b)));
    table["setp.num" + type] = CTGPU_COMPARE(!std::isnan(X{}(op, a)) && !std::isnan(X{}(op, b)));
    table["cvt.rzi.s" + type] = CTGPU_COMPUTE(to_integer(op, std::trunc(X{}(op, a)), true));
    table["cvt.rzi.u" + type] = CTGPU_COMPUTE(to_integer(op, std::trunc(X{}(op, a)), false));
    table["cvt.rni.s" + type] = CTGPU_COMPUTE(to_integer(op, std::nearbyint(X{}(op, a)), true));
    table["cvt.rni.u" + type] = CTGPU_COMPUTE(to_integer(op, std::nearbyint(X{}(op, a)), false));
    table["cvt.rni" + type + type] = CTGPU_COMPUTE(bits_of(op, std::nearbyint(X{}(op, a))));
    table["cvt.rzi" + type + type] = CTGPU_COMPUTE(bits_of(op, std::trunc(X{}(op, a))));
    table["cvt.rmi" + type + type] = CTGPU_COMPUTE(bits_of(op, std::floor(X{}(op, a))));
    table["cvt.rpi" + type + type] = CTGPU_COMPUTE(bits_of(op, std::ceil(X{}(op, a))));
}

inline void add_conversions(Table &table) {
    table["cvt.rn.f32.f64"] =
        CTGPU_COMPUTE(bits_of(op, static_cast<float>(std::bit_cast<double>(a))));
    table["cvt.f64.f32"] = CTGPU_COMPUTE(bits_of(op, static_cast<double>(real<float>(op, a))));
    table["cvt.f32.f16"] =
        CTGPU_COMPUTE(bits_of(op, ctgpu::from_half(static_cast<std::uint16_t>(a))));
    table["cvt.rn.f16.f32"] = CTGPU_COMPUTE(half(op, a));
    table["cvt.rn.f16x2.f32"] =
        computed([](Op op, u64 a, u64 b) -> u64 { return half(op, a) << 16 | half(op, b); },
                 [](Op, Bits a, Bits b, Bits) -> u64 {
                     return (a.unknown ? 0xffff0000u : 0u) | (b.unknown ? 0xffffu : 0u);
                 });
}

}  // namespace machine

#endif
