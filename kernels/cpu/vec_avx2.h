// Eight floats: AVX2 with FMA and F16C.

#include "cpu/tile.h"

#include <immintrin.h>

#include "cpu/move_avx.h"

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

struct Vec {
    static constexpr int width = 8;
    static constexpr int unroll = 4;
    static constexpr int block = 16;

    __m256 v;

    static Vec all(float x) { return {_mm256_set1_ps(x)}; }
    static Vec load(const float *at) { return {_mm256_loadu_ps(at)}; }
    template <class T>
    static Vec convert(const char *at);
    void store(float *at) const { _mm256_storeu_ps(at, v); }
    Vec reversed() const {
        return {_mm256_permutevar8x32_ps(v, _mm256_set_epi32(0, 1, 2, 3, 4, 5, 6, 7))};
    }
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

template <int G>
Vec on_grid(Vec x) {
    constexpr float UNITS = 1 << G;
    const __m256 scaled = _mm256_mul_ps(x.v, _mm256_set1_ps(UNITS));
    const __m256 whole = _mm256_round_ps(scaled, _MM_FROUND_TO_NEAREST_INT);
    return fma({whole}, Vec::all(1 / UNITS), Vec::all(0));
}

inline __m128i low_half(__m256i x) { return _mm256_castsi256_si128(x); }
inline __m128i high_half(__m256i x) { return _mm256_extracti128_si256(x, 1); }

inline __m128i to_half(Vec x) { return _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT); }
inline __m128i to_bfloat(Vec x) {
    const __m256i bits = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i top = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    return _mm_packus_epi32(low_half(top), high_half(top));
}
// What is below the least int32 becomes it, and then, as what is below the least int16, that one.
inline __m128i to_int16(Vec x) {
    const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(x.v, _mm256_set1_ps(32767)));
    return _mm_packs_epi32(low_half(whole), high_half(whole));
}
// In the lower half.
inline __m128i to_uint8(Vec x) {
    const __m128i whole = to_int16(x);
    return _mm_packus_epi16(whole, whole);
}

inline void save(__m128i x, std::uint16_t *at) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(at), x);
}
inline void save(__m128i x, std::uint8_t *at) {
    _mm_storel_epi64(reinterpret_cast<__m128i *>(at), x);
}
template <class Voxel>
void save(__m128i x, Voxel *at, int n) {
    Voxel all_of_them[Vec::width];
    save(x, all_of_them);
    for (int i = 0; i < n; ++i)
        at[i] = all_of_them[i];
}

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
