// One row of a tile in a vector of AVX-512.

#include "codec/codec.h"

#include <cstring>
#include <immintrin.h>

namespace ctgpu::codec {
namespace CTGPU_VARIANT {
namespace {

struct Row {
    __m512i v;

    static Row all(unsigned value) { return {_mm512_set1_epi16(static_cast<short>(value))}; }
    // All bits of the first lanes.
    static Row first_lanes(int lanes) {
        return {_mm512_movm_epi16(static_cast<__mmask32>((std::uint64_t{1} << lanes) - 1))};
    }
    static Row load(const std::uint16_t *at) { return {_mm512_loadu_si512(at)}; }
    static Row load(const std::uint8_t *at) {
        return {_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(at)))};
    }
    void store(std::uint16_t *at) const { _mm512_storeu_si512(at, v); }
};

inline Row operator+(Row a, Row b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline Row operator-(Row a, Row b) { return {_mm512_sub_epi16(a.v, b.v)}; }
inline Row operator&(Row a, Row b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Row operator|(Row a, Row b) { return {_mm512_or_si512(a.v, b.v)}; }
// Both as int16.
inline Row rounded_product(Row a, Row b) { return {_mm512_mulhrs_epi16(a.v, b.v)}; }
inline Row zigzag(Row r) {
    return {_mm512_xor_si512(_mm512_slli_epi16(r.v, 1), _mm512_srai_epi16(r.v, 15))};
}
inline Row negated_where_negative(Row a, Row signs) {
    const __m512i s = _mm512_srai_epi16(signs.v, 15);
    return {_mm512_sub_epi16(_mm512_xor_si512(a.v, s), s)};
}
// All bits where they are equal.
inline Row equal(Row a, Row b) { return {_mm512_movm_epi16(_mm512_cmpeq_epi16_mask(a.v, b.v))}; }
// `a` where `mask` has all bits, else `b`.
inline Row either(Row mask, Row a, Row b) {
    return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xCA)};
}
template <int bits>
Row shifted_left(Row a) {
    return {_mm512_slli_epi16(a.v, bits)};
}
template <int bits>
Row shifted_right(Row a) {
    return {_mm512_srli_epi16(a.v, bits)};
}
inline Row shifted_right(Row a, int bits) {
    return {_mm512_srl_epi16(a.v, _mm_cvtsi32_si128(bits))};
}
// Unsigned, 0 where it would be less.
inline Row minus_down_to_zero(Row a, Row b) { return {_mm512_subs_epu16(a.v, b.v)}; }
// The upper halves of unsigned products.
inline Row high_product(Row a, Row b) { return {_mm512_mulhi_epu16(a.v, b.v)}; }

// 16 numbers to look up by lanes, each below 16.
class Lookup {
  public:
    explicit Lookup(const std::uint16_t (&numbers)[16])
        : numbers_(_mm512_castsi256_si512(
              _mm256_loadu_si256(reinterpret_cast<const __m256i *>(numbers)))) {}
    Row operator()(Row which) const { return {_mm512_permutexvar_epi16(which.v, numbers_)}; }

  private:
    __m512i numbers_;
};

// All lanes, or'ed.
inline unsigned any_bits(Row a) {
    const auto bits = static_cast<unsigned>(_mm512_reduce_or_epi32(a.v));
    return (bits | bits >> 16) & 0xFFFF;
}

inline unsigned sum(Row a) {
    // Signed products, so all less 2^15.
    const __m512i less = _mm512_xor_si512(a.v, _mm512_set1_epi16(-0x8000));
    const int total = _mm512_reduce_add_epi32(_mm512_madd_epi16(less, _mm512_set1_epi16(1)));
    return static_cast<unsigned>(total + LANES * 0x8000);
}

// For the first lanes: so many zeros and a one, from the lowest bit on.  They fit 64 bits.
inline std::uint64_t quotient_word(Row quotients, int lanes) {
    const auto used = static_cast<__mmask32>((std::uint64_t{1} << lanes) - 1);
    // Where their ones lie: sums of what is before, in halves of 16.
    __m256i at = _mm256_add_epi8(_mm512_cvtepi16_epi8(quotients.v), _mm256_set1_epi8(1));
    at = _mm256_add_epi8(at, _mm256_slli_si256(at, 1));
    at = _mm256_add_epi8(at, _mm256_slli_si256(at, 2));
    at = _mm256_add_epi8(at, _mm256_slli_si256(at, 4));
    at = _mm256_add_epi8(at, _mm256_slli_si256(at, 8));
    const __m128i half = _mm_shuffle_epi8(_mm256_castsi256_si128(at), _mm_set1_epi8(15));
    at = _mm256_add_epi8(at, _mm256_inserti128_si256(_mm256_setzero_si256(), half, 1));
    const __m512i one = _mm512_set1_epi64(1);
    const auto ones = [&](__m128i eight, int from) {
        const __m512i shifts = _mm512_sub_epi64(_mm512_cvtepu8_epi64(eight), one);
        return _mm512_maskz_sllv_epi64(static_cast<__mmask8>(used >> from), one, shifts);
    };
    const __m128i low = _mm256_castsi256_si128(at), high = _mm256_extracti128_si256(at, 1);
    const __m512i word =
        _mm512_or_si512(_mm512_or_si512(ones(low, 0), ones(_mm_unpackhi_epi64(low, low), 8)),
                        _mm512_or_si512(ones(high, 16), ones(_mm_unpackhi_epi64(high, high), 24)));
    return static_cast<std::uint64_t>(_mm512_reduce_or_epi64(word));
}

// The low `width` bits of each lane, 1 to 16, one after the other; writes PACK_BYTES.
inline void pack(Row z, int width, std::uint8_t *out) {
    if (width == 16)
        return _mm512_storeu_si512(out, z.v);
    // Two lanes, four, and then eight, which are whole bytes.
    const int mask = (1 << width) - 1;
    const __m512i low = _mm512_and_si512(z.v, _mm512_set1_epi16(static_cast<short>(mask)));
    const __m512i two = _mm512_madd_epi16(low, _mm512_set1_epi32(1 | 1 << (16 + width)));
    const __m512i upper =
        _mm512_sll_epi64(_mm512_srli_epi64(two, 32), _mm_cvtsi32_si128(2 * width));
    const __m512i four = _mm512_or_si512(_mm512_maskz_mov_epi32(0x5555, two), upper);
    const __m512i across = _mm512_shuffle_epi32(four, _MM_PERM_BADC);
    const __m512i left = _mm512_maskz_sll_epi64(0x55, across, _mm_cvtsi32_si128(4 * width));
    const __m512i right =
        _mm512_mask_srl_epi64(four, 0xAA, four, _mm_cvtsi32_si128(64 - 4 * width));
    const __mmask64 bytes = static_cast<std::uint64_t>((1 << width) - 1) * 0x0001000100010001;
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(bytes, _mm512_or_si512(left, right)));
}

// The bits of `low` that `mask` has, lane after lane, to `take(bits, count)`, four lanes at a time.
template <class Take>
void extract(Row low, Row mask, const Take &take) {
    if (_mm512_test_epi64_mask(mask.v, mask.v) == 0)
        return;
    alignas(64) std::uint64_t values[8], masks[8];
    _mm512_store_si512(values, low.v);
    _mm512_store_si512(masks, mask.v);
    for (int n = 0; n < 8; ++n)
        take(_pext_u64(values[n], masks[n]), static_cast<int>(_mm_popcnt_u64(masks[n])));
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec
