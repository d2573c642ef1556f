// Eight floats: AVX2 with FMA and F16C.

#include "cpu/tile.h"

#include <immintrin.h>

#include "cpu/half_avx.h"

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

struct Vec {
    static constexpr int width = 8;
    static constexpr int unroll = 4;
    static constexpr int half_block = 16;

    __m256 v;

    static Vec all(float x) { return {_mm256_set1_ps(x)}; }
    static Vec load(const float *at) { return {_mm256_loadu_ps(at)}; }
    template <class T>
    static Vec convert(const char *at);
    void store(float *at) const { _mm256_storeu_ps(at, v); }
    void store_half(std::uint16_t *at) const {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(at), half());
    }
    void store_half(std::uint16_t *at, int n) const {
        std::uint16_t all_of_them[8];
        store_half(all_of_them);
        for (int x = 0; x < n; ++x)
            at[x] = all_of_them[x];
    }

  private:
    __m128i half() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
};

template <>
inline Vec Vec::convert<std::int16_t>(const char *at) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(x))};
}
template <>
inline Vec Vec::convert<std::uint16_t>(const char *at) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(x))};
}
template <>
inline Vec Vec::convert<float>(const char *at) {
    return {_mm256_loadu_ps(reinterpret_cast<const float *>(at))};
}

inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec lerp(Vec a, Vec b, Vec w) {
    return {_mm256_fmadd_ps(w.v, _mm256_sub_ps(b.v, a.v), a.v)};
}
// The order of the operands is what makes equal values, and so zeros of either sign, come out as
// in the scalar code.
inline Vec clip(Vec v, Vec lo, Vec hi) { return {_mm256_min_ps(hi.v, _mm256_max_ps(lo.v, v.v))}; }

inline void transpose(Vec (&block)[8]) {
    __m256 x[8], y[8];
    for (int n = 0; n < 8; n += 2) {
        x[n] = _mm256_unpacklo_ps(block[n].v, block[n + 1].v);
        x[n + 1] = _mm256_unpackhi_ps(block[n].v, block[n + 1].v);
    }
    for (int n = 0; n < 8; n += 4) {
        y[n] = _mm256_shuffle_ps(x[n], x[n + 2], 0x44);
        y[n + 1] = _mm256_shuffle_ps(x[n], x[n + 2], 0xee);
        y[n + 2] = _mm256_shuffle_ps(x[n + 1], x[n + 3], 0x44);
        y[n + 3] = _mm256_shuffle_ps(x[n + 1], x[n + 3], 0xee);
    }
    for (int c = 0; c < 4; ++c) {
        block[c].v = _mm256_permute2f128_ps(y[c], y[4 + c], 0x20);
        block[4 + c].v = _mm256_permute2f128_ps(y[c], y[4 + c], 0x31);
    }
}

// Both indices ascend, so they look into a window that is narrow unless the axis shrinks a lot.
inline void pick(const float *row, const std::int32_t *first, const std::int32_t *second, Vec &a,
                 Vec &b) {
    const __m256i ia = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(first));
    const __m256i ib = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(second));
    if (second[7] - first[0] < 16) {
        const __m256i base = _mm256_set1_epi32(first[0]), seven = _mm256_set1_epi32(7);
        const __m256 low = _mm256_loadu_ps(row + first[0]);
        const __m256 high = _mm256_loadu_ps(row + first[0] + 8);
        const auto from_window = [&](__m256i index) {
            const __m256i at = _mm256_sub_epi32(index, base);
            return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at),
                                    _mm256_permutevar8x32_ps(high, at),
                                    _mm256_castsi256_ps(_mm256_cmpgt_epi32(at, seven)));
        };
        a.v = from_window(ia);
        b.v = from_window(ib);
        return;
    }
    a.v = _mm256_i32gather_ps(row, ia, 4);
    b.v = _mm256_i32gather_ps(row, ib, 4);
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
