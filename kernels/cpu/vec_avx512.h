// Sixteen floats: AVX-512 (F, BW, DQ, VL) with FMA and F16C.

#include "cpu/tile.h"

#include <immintrin.h>

#include "cpu/move_avx.h"

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

struct Vec {
    static constexpr int width = 16;
    static constexpr int unroll = 5;
    static constexpr int block = 16;

    __m512 v;

    static Vec all(float x) { return {_mm512_set1_ps(x)}; }
    static Vec load(const float *at) { return {_mm512_loadu_ps(at)}; }
    template <class T>
    static Vec convert(const char *at);
    void store(float *at) const { _mm512_storeu_ps(at, v); }
    Vec reversed() const {
        const __m512i down = _mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return {_mm512_permutexvar_ps(down, v)};
    }
};

template <>
inline Vec Vec::convert<std::int16_t>(const char *at) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(x))};
}
template <>
inline Vec Vec::convert<std::uint16_t>(const char *at) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
    return {_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(x))};
}
template <>
inline Vec Vec::convert<float>(const char *at) {
    return {_mm512_loadu_ps(at)};
}

inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec lerp(Vec a, Vec b, Vec w) {
    return {_mm512_fmadd_ps(w.v, _mm512_sub_ps(b.v, a.v), a.v)};
}
// The order of the operands is what makes equal values, and so zeros of either sign, come out as
// in the scalar code.
inline Vec clip(Vec v, Vec lo, Vec hi) { return {_mm512_min_ps(hi.v, _mm512_max_ps(lo.v, v.v))}; }

// Rounded to so many binary places by one instruction; the sum makes -0 a +0.
template <int G>
Vec on_grid(Vec x) {
    const __m512 rounded = _mm512_roundscale_ps(x.v, G << 4 | _MM_FROUND_TO_NEAREST_INT);
    return {_mm512_add_ps(rounded, _mm512_setzero_ps())};
}

inline __m256i to_half(Vec x) { return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT); }
inline __m256i to_bfloat(Vec x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
    __m512i sum = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    sum = _mm512_mask_add_epi32(sum, odd, sum, _mm512_set1_epi32(1));
    // The upper half of each.
    const __m512i upper =
        _mm512_setr_epi32(0x00030001, 0x00070005, 0x000b0009, 0x000f000d, 0x00130011, 0x00170015,
                          0x001b0019, 0x001f001d, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, sum));
}
// What is below the least int32 becomes it, and then, as what is below the least int16, that one.
inline __m256i to_int16(Vec x) {
    const __m512 low = _mm512_min_ps(x.v, _mm512_set1_ps(32767));
    return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(low));
}
inline __m128i to_uint8(Vec x) {
    const Vec held = clip(x, Vec::all(0), Vec::all(255));
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(held.v));
}

inline void save(__m256i x, std::uint16_t *at) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(at), x);
}
inline void save(__m256i x, std::uint16_t *at, int n) {
    _mm256_mask_storeu_epi16(at, static_cast<__mmask16>((1u << n) - 1), x);
}
inline void save(__m128i x, std::uint8_t *at) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(at), x);
}
inline void save(__m128i x, std::uint8_t *at, int n) {
    _mm_mask_storeu_epi8(at, static_cast<__mmask16>((1u << n) - 1), x);
}

inline void transpose(Vec (&block)[16]) {
    __m512 x[16], y[16];
    for (int n = 0; n < 16; n += 2) {
        x[n] = _mm512_unpacklo_ps(block[n].v, block[n + 1].v);
        x[n + 1] = _mm512_unpackhi_ps(block[n].v, block[n + 1].v);
    }
    for (int n = 0; n < 16; n += 4) {
        const auto pair = [](__m512 a) { return _mm512_castps_pd(a); };
        const auto back = [](__m512d a) { return _mm512_castpd_ps(a); };
        y[n] = back(_mm512_unpacklo_pd(pair(x[n]), pair(x[n + 2])));
        y[n + 1] = back(_mm512_unpackhi_pd(pair(x[n]), pair(x[n + 2])));
        y[n + 2] = back(_mm512_unpacklo_pd(pair(x[n + 1]), pair(x[n + 3])));
        y[n + 3] = back(_mm512_unpackhi_pd(pair(x[n + 1]), pair(x[n + 3])));
    }
    // y[4 q + c] holds, in 128-bit lane l, column 4 l + c of rows 4 q to 4 q + 3.
    for (int c = 0; c < 4; ++c) {
        const __m512 low01 = _mm512_shuffle_f32x4(y[c], y[4 + c], 0x44);
        const __m512 high01 = _mm512_shuffle_f32x4(y[c], y[4 + c], 0xee);
        const __m512 low23 = _mm512_shuffle_f32x4(y[8 + c], y[12 + c], 0x44);
        const __m512 high23 = _mm512_shuffle_f32x4(y[8 + c], y[12 + c], 0xee);
        block[c].v = _mm512_shuffle_f32x4(low01, low23, 0x88);
        block[4 + c].v = _mm512_shuffle_f32x4(low01, low23, 0xdd);
        block[8 + c].v = _mm512_shuffle_f32x4(high01, high23, 0x88);
        block[12 + c].v = _mm512_shuffle_f32x4(high01, high23, 0xdd);
    }
}

// Both indices ascend, so they look into a window that is narrow unless the axis shrinks a lot.
inline void pick(const float *row, const std::int32_t *first, const std::int32_t *second, Vec &a,
                 Vec &b) {
    const __m512i base = _mm512_set1_epi32(first[0]);
    const __m512i ia = _mm512_loadu_si512(first), ib = _mm512_loadu_si512(second);
    const int span = second[15] - first[0];
    if (span < 32) {
        const __m512i at_a = _mm512_sub_epi32(ia, base), at_b = _mm512_sub_epi32(ib, base);
        const __m512 low = _mm512_loadu_ps(row + first[0]);
        if (span < 16) {
            a.v = _mm512_permutexvar_ps(at_a, low);
            b.v = _mm512_permutexvar_ps(at_b, low);
            return;
        }
        const __m512 high = _mm512_loadu_ps(row + first[0] + 16);
        a.v = _mm512_permutex2var_ps(low, at_a, high);
        b.v = _mm512_permutex2var_ps(low, at_b, high);
        return;
    }
    a.v = _mm512_i32gather_ps(ia, row, 4);
    b.v = _mm512_i32gather_ps(ib, row, 4);
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
