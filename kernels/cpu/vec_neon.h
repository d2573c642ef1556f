// Four floats: NEON of AArch64.

#include "cpu/tile.h"

#include <arm_neon.h>
#include <cstring>

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

struct Vec {
    static constexpr int width = 4;
    static constexpr int unroll = 8;
    static constexpr int block = 8;

    float32x4_t v;

    static Vec all(float x) { return {vdupq_n_f32(x)}; }
    static Vec load(const float *at) { return {vld1q_f32(at)}; }
    template <class T>
    static Vec convert(const char *at);
    void store(float *at) const { vst1q_f32(at, v); }
    Vec reversed() const {
        const float32x4_t pairs = vrev64q_f32(v);
        return {vextq_f32(pairs, pairs, 2)};
    }
};

template <>
inline Vec Vec::convert<std::int16_t>(const char *at) {
    std::int16_t x[4];
    std::memcpy(x, at, sizeof x);
    return {vcvtq_f32_s32(vmovl_s16(vld1_s16(x)))};
}
template <>
inline Vec Vec::convert<std::uint16_t>(const char *at) {
    std::uint16_t x[4];
    std::memcpy(x, at, sizeof x);
    return {vcvtq_f32_u32(vmovl_u16(vld1_u16(x)))};
}
template <>
inline Vec Vec::convert<float>(const char *at) {
    float x[4];
    std::memcpy(x, at, sizeof x);
    return {vld1q_f32(x)};
}

inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vec lerp(Vec a, Vec b, Vec w) { return {vfmaq_f32(a.v, w.v, vsubq_f32(b.v, a.v))}; }
// By comparison, as in the scalar code: vmaxq_f32 takes zeros of either sign another way.
inline Vec clip(Vec v, Vec lo, Vec hi) {
    const float32x4_t x = vbslq_f32(vcltq_f32(v.v, lo.v), lo.v, v.v);
    return {vbslq_f32(vcgtq_f32(x, hi.v), hi.v, x)};
}

template <int G>
Vec on_grid(Vec x) {
    constexpr float UNITS = 1 << G;
    const float32x4_t whole = vrndnq_f32(vmulq_n_f32(x.v, UNITS));
    return fma({whole}, Vec::all(1 / UNITS), Vec::all(0));
}

inline uint16x4_t to_half(Vec x) { return vreinterpret_u16_f16(vcvt_f16_f32(x.v)); }
inline uint16x4_t to_bfloat(Vec x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
}
// Every step ends at the least and the largest value of its type.
inline uint16x4_t to_int16(Vec x) { return vreinterpret_u16_s16(vqmovn_s32(vcvtnq_s32_f32(x.v))); }
// In the lower half.
inline uint8x8_t to_uint8(Vec x) {
    const int16x4_t whole = vqmovn_s32(vcvtnq_s32_f32(x.v));
    return vqmovun_s16(vcombine_s16(whole, whole));
}

inline void save(uint16x4_t x, std::uint16_t *at) { vst1_u16(at, x); }
inline void save(uint8x8_t x, std::uint8_t *at) { std::memcpy(at, &x, Vec::width); }
template <class Rounded, class Voxel>
void save(Rounded x, Voxel *at, int n) {
    Voxel all_of_them[Vec::width];
    save(x, all_of_them);
    for (int i = 0; i < n; ++i)
        at[i] = all_of_them[i];
}

inline void transpose(Vec (&block)[4]) {
    const auto pairs = [](float32x4_t a) { return vreinterpretq_f64_f32(a); };
    const auto back = [](float64x2_t a) { return vreinterpretq_f32_f64(a); };
    const float64x2_t even01 = pairs(vtrn1q_f32(block[0].v, block[1].v));
    const float64x2_t odd01 = pairs(vtrn2q_f32(block[0].v, block[1].v));
    const float64x2_t even23 = pairs(vtrn1q_f32(block[2].v, block[3].v));
    const float64x2_t odd23 = pairs(vtrn2q_f32(block[2].v, block[3].v));
    block[0].v = back(vtrn1q_f64(even01, even23));
    block[1].v = back(vtrn1q_f64(odd01, odd23));
    block[2].v = back(vtrn2q_f64(even01, even23));
    block[3].v = back(vtrn2q_f64(odd01, odd23));
}

inline void pick(const float *row, const std::int32_t *first, const std::int32_t *second, Vec &a,
                 Vec &b) {
    const float at_first[4]{row[first[0]], row[first[1]], row[first[2]], row[first[3]]};
    const float at_second[4]{row[second[0]], row[second[1]], row[second[2]], row[second[3]]};
    a = Vec::load(at_first);
    b = Vec::load(at_second);
}

// An 8 x 8 block of 16-bit voxels.
inline void turn_block(const std::uint16_t *in, std::ptrdiff_t in_pitch, std::uint16_t *out,
                       std::ptrdiff_t out_pitch) {
    uint16x8_t x[8];
    uint32x4_t y[8];
    for (int r = 0; r < 8; ++r)
        x[r] = vld1q_u16(in + r * in_pitch);
    for (int r = 0; r < 8; r += 2) {
        y[r] = vreinterpretq_u32_u16(vtrn1q_u16(x[r], x[r + 1]));
        y[r + 1] = vreinterpretq_u32_u16(vtrn2q_u16(x[r], x[r + 1]));
    }
    // Column c of rows 0 to 3, then of rows 4 to 7.
    uint64x2_t low[4], high[4];
    for (int c = 0; c < 2; ++c) {
        low[c] = vreinterpretq_u64_u32(vtrn1q_u32(y[c], y[2 + c]));
        low[2 + c] = vreinterpretq_u64_u32(vtrn2q_u32(y[c], y[2 + c]));
        high[c] = vreinterpretq_u64_u32(vtrn1q_u32(y[4 + c], y[6 + c]));
        high[2 + c] = vreinterpretq_u64_u32(vtrn2q_u32(y[4 + c], y[6 + c]));
    }
    for (int c = 0; c < 4; ++c) {
        vst1q_u16(out + c * out_pitch, vreinterpretq_u16_u64(vtrn1q_u64(low[c], high[c])));
        vst1q_u16(out + (4 + c) * out_pitch, vreinterpretq_u16_u64(vtrn2q_u64(low[c], high[c])));
    }
}

// An 8 x 8 block of 8-bit voxels: each round deals the rows out like a deck of cards.
inline void turn_block(const std::uint8_t *in, std::ptrdiff_t in_pitch, std::uint8_t *out,
                       std::ptrdiff_t out_pitch) {
    uint8x8_t x[8], y[8];
    for (int r = 0; r < 8; ++r)
        x[r] = vld1_u8(in + r * in_pitch);
    for (int round = 0; round < 3; ++round) {
        for (int r = 0; r < 4; ++r) {
            y[2 * r] = vzip1_u8(x[r], x[r + 4]);
            y[2 * r + 1] = vzip2_u8(x[r], x[r + 4]);
        }
        for (int r = 0; r < 8; ++r)
            x[r] = y[r];
    }
    for (int c = 0; c < 8; ++c)
        vst1_u8(out + c * out_pitch, x[c]);
}

inline void stream(void *out, const void *in, std::ptrdiff_t bytes) {
    std::memcpy(out, in, static_cast<std::size_t>(bytes));
}
inline void finish_streams() {}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
