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
    static constexpr int half_block = 8;

    float32x4_t v;

    static Vec all(float x) { return {vdupq_n_f32(x)}; }
    static Vec load(const float *at) { return {vld1q_f32(at)}; }
    template <class T>
    static Vec convert(const char *at);
    void store(float *at) const { vst1q_f32(at, v); }
    void store_half(std::uint16_t *at) const { vst1_u16(at, half()); }
    void store_half(std::uint16_t *at, int n) const {
        std::uint16_t all_of_them[4];
        store_half(all_of_them);
        for (int x = 0; x < n; ++x)
            at[x] = all_of_them[x];
    }

  private:
    uint16x4_t half() const { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
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
inline void transpose_half(const std::uint16_t *in, std::ptrdiff_t in_pitch, std::uint16_t *out,
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

inline void stream(std::uint16_t *out, const std::uint16_t *in, std::ptrdiff_t n) {
    std::memcpy(out, in, static_cast<std::size_t>(n) * sizeof *out);
}
inline void finish_streams() {}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
