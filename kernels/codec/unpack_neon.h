// One row of a tile in four vectors of NEON: how numbers are taken out of the parts of a tile, and
// become voxels.

#include "codec/unpack.h"

#include <arm_neon.h>

namespace ctgpu::codec {
namespace CTGPU_VARIANT {
namespace {

struct Row {
    uint16x8_t part[4];

    template <class Of, class... Rows>
    static Row of(const Of &of, const Rows &...rows) {
        Row row;
        for (int n = 0; n < 4; ++n)
            row.part[n] = of(rows.part[n]...);
        return row;
    }
    static Row all(unsigned value) {
        const uint16x8_t eight = vdupq_n_u16(static_cast<std::uint16_t>(value));
        return {{eight, eight, eight, eight}};
    }
    // All bits of the first lanes.
    static Row first_lanes(int lanes) {
        std::uint16_t row[LANES];
        for (int n = 0; n < LANES; ++n)
            row[n] = n < lanes ? 0xFFFF : 0;
        return load(row);
    }
    static Row load(const std::uint16_t *at) {
        return {{vld1q_u16(at), vld1q_u16(at + 8), vld1q_u16(at + 16), vld1q_u16(at + 24)}};
    }
    void store(std::uint16_t *at) const {
        for (int n = 0; n < 4; ++n)
            vst1q_u16(at + 8 * n, part[n]);
    }
};

inline Row pair(std::uint32_t two) {
    const uint16x8_t pairs = vreinterpretq_u16_u32(vdupq_n_u32(two));
    return {{pairs, pairs, pairs, pairs}};
}
inline Row operator+(Row a, Row b) {
    return Row::of([](auto x, auto y) { return vaddq_u16(x, y); }, a, b);
}
inline Row operator-(Row a, Row b) {
    return Row::of([](auto x, auto y) { return vsubq_u16(x, y); }, a, b);
}
inline Row operator&(Row a, Row b) {
    return Row::of([](auto x, auto y) { return vandq_u16(x, y); }, a, b);
}
inline Row operator|(Row a, Row b) {
    return Row::of([](auto x, auto y) { return vorrq_u16(x, y); }, a, b);
}
inline Row operator^(Row a, Row b) {
    return Row::of([](auto x, auto y) { return veorq_u16(x, y); }, a, b);
}
// Both as int16.
inline Row rounded_product(Row a, Row b) {
    return Row::of(
        [](auto x, auto y) {
            return vreinterpretq_u16_s16(
                vqrdmulhq_s16(vreinterpretq_s16_u16(x), vreinterpretq_s16_u16(y)));
        },
        a, b);
}
inline Row negated_where_negative(Row a, Row signs) {
    return Row::of(
        [](auto x, auto y) {
            const uint16x8_t s = vreinterpretq_u16_s16(vshrq_n_s16(vreinterpretq_s16_u16(y), 15));
            return vsubq_u16(veorq_u16(x, s), s);
        },
        a, signs);
}
// All bits where they are equal.
inline Row equal(Row a, Row b) {
    return Row::of([](auto x, auto y) { return vceqq_u16(x, y); }, a, b);
}
// `a` where `mask` has all bits, else `b`.
inline Row either(Row mask, Row a, Row b) {
    return Row::of([](auto m, auto x, auto y) { return vbslq_u16(m, x, y); }, mask, a, b);
}
inline Row lesser(Row a, Row b) {
    return Row::of([](auto x, auto y) { return vminq_u16(x, y); }, a, b);
}
// Unsigned, 0 where it would be less.
inline Row minus_down_to_zero(Row a, Row b) {
    return Row::of([](auto x, auto y) { return vqsubq_u16(x, y); }, a, b);
}
template <int bits>
Row shifted_right(Row a) {
    return Row::of([](auto x) { return vshrq_n_u16(x, bits); }, a);
}
inline Row shifted_left(Row a, std::uint64_t bits) {
    const int16x8_t count = vdupq_n_s16(static_cast<std::int16_t>(bits));
    return Row::of([=](auto x) { return vshlq_u16(x, count); }, a);
}

// The numbers of a group, with whatever comes behind each in the bits above it.
inline Row unpacked(const Group &group, const std::uint8_t *packed) {
    const uint8x16_t bytes_of = vld1q_u8(group.bytes_of);
    const int32x4_t back = vnegq_s32(vreinterpretq_s32_u32(vld1q_u32(group.bit_of))),
                    apart = vdupq_n_s32(static_cast<std::int32_t>(group.apart));
    Row row;
    for (int n = 0; n < 4; ++n, packed += group.width) {
        const uint8x16_t bytes = vqtbl1q_u8(vld1q_u8(packed), bytes_of);
        const uint32x4_t twos = vshlq_u32(vreinterpretq_u32_u8(bytes), back);
        row.part[n] =
            vreinterpretq_u16_u32(vbslq_u32(vdupq_n_u32(0xFFFF0000), vshlq_u32(twos, apart), twos));
    }
    return row;
}

// How many ones of a word lie below one of its bytes.
class Ones {
  public:
    explicit Ones(std::uint64_t word)
        : up_to_(0x0101010101010101 *
                 vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(word))), 0)) {}
    int before(int byte) const {
        return byte == 0 ? 0 : static_cast<int>(up_to_ >> (8 * byte - 8) & 255);
    }

  private:
    const std::uint64_t up_to_;
};

// How far each of 32 bytes is from the one before.
inline Row quotients(const std::uint8_t *ends) {
    const uint8x16_t low = vsubq_u8(vld1q_u8(ends), vld1q_u8(ends - 1)),
                     high = vsubq_u8(vld1q_u8(ends + 16), vld1q_u8(ends + 15));
    return {{vmovl_u8(vget_low_u8(low)), vmovl_high_u8(low), vmovl_u8(vget_low_u8(high)),
             vmovl_high_u8(high)}};
}

// Makes floats of numbers of units.
class Scale {
  public:
    explicit Scale(int grid) : unit_(vreinterpretq_f32_s32(vdupq_n_s32((127 - grid) << 23))) {}

    // Of signed numbers, as float16.
    Row halves(Row k) const {
        return Row::of(
            [this](uint16x8_t eight) {
                const int16x8_t numbers = vreinterpretq_s16_u16(eight);
                const float16x4_t low = halves_of(vmovl_s16(vget_low_s16(numbers))),
                                  high = halves_of(vmovl_high_s16(numbers));
                return vcombine_u16(vreinterpret_u16_f16(low), vreinterpret_u16_f16(high));
            },
            k);
    }
    // Of unsigned ones, as bfloat16 that is cut off.
    Row bfloats(Row m) const {
        return Row::of(
            [this](uint16x8_t eight) {
                const uint32x4_t twos = vreinterpretq_u32_u16(eight),
                                 upper = vdupq_n_u32(0xFFFF0000);
                const uint32x4_t even = floats_of(vbicq_u32(twos, upper)),
                                 odd = floats_of(vshrq_n_u32(twos, 16));
                return vreinterpretq_u16_u32(vbslq_u32(upper, odd, vshrq_n_u32(even, 16)));
            },
            m);
    }

  private:
    float16x4_t halves_of(int32x4_t four) const {
        return vcvt_f16_f32(vmulq_f32(vcvtq_f32_s32(four), unit_));
    }
    uint32x4_t floats_of(uint32x4_t four) const {
        return vreinterpretq_u32_f32(vmulq_f32(vcvtq_f32_u32(four), unit_));
    }

    float32x4_t unit_;
};

// How many bits there are for each lane, up to 14, and for those up to it of eight.
struct Counts {
    uint8x16_t of[2], up_to[2];

    Counts() = default;
    explicit Counts(Row count) {
        const auto plus_those_before = []<int bits>(uint8x16_t bytes) {
            return vaddq_u8(bytes,
                            vreinterpretq_u8_u64(vshlq_n_u64(vreinterpretq_u64_u8(bytes), bits)));
        };
        for (int n = 0; n < 2; ++n) {
            of[n] = vmovn_high_u16(vmovn_u16(count.part[2 * n]), count.part[2 * n + 1]);
            up_to[n] = plus_those_before.operator()<8>(of[n]);
            up_to[n] = plus_those_before.operator()<16>(up_to[n]);
            up_to[n] = plus_those_before.operator()<32>(up_to[n]);
        }
    }
    bool none() const { return vmaxvq_u8(vorrq_u8(of[0], of[1])) == 0; }
};

// The first `count` of 24 bits in each lane, from bit 0 to 7 of them on.
inline uint16x8_t bits_of(uint8x16_t two, uint8x8_t third, uint8x8_t from, uint8x8_t count) {
    const int16x8_t start = vreinterpretq_s16_u16(vmovl_u8(from));
    const uint16x8_t low = vshlq_u16(vreinterpretq_u16_u8(two), vnegq_s16(start)),
                     high = vshlq_u16(vmovl_u8(third), vsubq_s16(vdupq_n_s16(16), start));
    const uint16x8_t above = vshlq_u16(vdupq_n_u16(0xFFFF), vreinterpretq_s16_u16(vmovl_u8(count)));
    return vbicq_u16(vorrq_u16(low, high), above);
}

// Those bits of a part, from bit `at` on, which moves behind them.
inline Row low_bits(const Counts &counts, const std::uint8_t *part, std::size_t &at) {
    Row row;
    for (int n = 0; n < 2; ++n) {
        const std::size_t next = at + vgetq_lane_u8(counts.up_to[n], 7);
        const uint8x16_t first = vld1q_u8(part + at / 8), second = vld1q_u8(part + next / 8);
        const uint8x16_t bit =
            vaddq_u8(vreinterpretq_u8_u64(vshlq_n_u64(vreinterpretq_u64_u8(counts.up_to[n]), 8)),
                     vcombine_u8(vdup_n_u8(at % 8), vdup_n_u8(next % 8)));
        const uint8x16_t byte = vshrq_n_u8(bit, 3), from = vandq_u8(bit, vdupq_n_u8(7)),
                         after = vaddq_u8(byte, vdupq_n_u8(1)),
                         last = vaddq_u8(byte, vdupq_n_u8(2));
        row.part[2 * n] =
            bits_of(vqtbl1q_u8(first, vzip1q_u8(byte, after)), vqtbl1_u8(first, vget_low_u8(last)),
                    vget_low_u8(from), vget_low_u8(counts.of[n]));
        row.part[2 * n + 1] = bits_of(vqtbl1q_u8(second, vzip2q_u8(byte, after)),
                                      vqtbl1_u8(second, vget_high_u8(last)), vget_high_u8(from),
                                      vget_high_u8(counts.of[n]));
        at = next + vgetq_lane_u8(counts.up_to[n], 15);
    }
    return row;
}

// The lower bytes of all lanes.
inline void store_bytes(Row voxels, std::uint8_t *at) {
    for (int n = 0; n < 2; ++n)
        vst1q_u8(at + 16 * n,
                 vmovn_high_u16(vmovn_u16(voxels.part[2 * n]), voxels.part[2 * n + 1]));
}

// There are no such stores on Arm that everything else would see in their order.
constexpr bool STORES_PAST_CACHES = false;
inline void store_past_caches(Row voxels, std::uint8_t *at) {
    std::memcpy(at, &voxels, sizeof voxels);
}
inline void fence() {}

// The sum of what `bytes` says of the codes of so many bytes, a multiple of CODE_BYTES.
constexpr std::size_t CODE_BYTES = 16;
inline std::size_t looked_up(const std::array<std::uint8_t, 16> &bytes, const std::uint8_t *codes,
                             std::size_t count) {
    const uint8x16_t table = vld1q_u8(bytes.data());
    std::size_t sum = 0;
    for (std::size_t at = 0; at < count; at += CODE_BYTES) {
        const uint8x16_t two = vld1q_u8(codes + at),
                         first = vqtbl1q_u8(table, vandq_u8(two, vdupq_n_u8(15))),
                         second = vqtbl1q_u8(table, vshrq_n_u8(two, 4));
        sum += vaddlvq_u8(vaddq_u8(first, second));
    }
    return sum;
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec
