// One row of a tile in two vectors of AVX2.

#include "codec/codec.h"

#include <cstring>
#include <immintrin.h>

namespace ctgpu::codec {
namespace CTGPU_VARIANT {
namespace {

struct Row {
    __m256i low, high;

    template <class Of>
    static Row of(const Of &of, Row a) {
        return {of(a.low), of(a.high)};
    }
    template <class Of>
    static Row of(const Of &of, Row a, Row b) {
        return {of(a.low, b.low), of(a.high, b.high)};
    }
    static Row all(unsigned value) {
        const __m256i v = _mm256_set1_epi16(static_cast<short>(value));
        return {v, v};
    }
    // All bits of the first lanes.
    static Row first_lanes(int lanes) {
        const __m256i count =
            _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const auto below = [&](int n) {
            return _mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<short>(n)), count);
        };
        return {below(lanes), below(lanes - 16)};
    }
    static Row load(const std::uint16_t *at) {
        const auto from = reinterpret_cast<const __m256i *>(at);
        return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
    }
    static Row load(const std::uint8_t *at) {
        const auto from = reinterpret_cast<const __m128i *>(at);
        return {_mm256_cvtepu8_epi16(_mm_loadu_si128(from)),
                _mm256_cvtepu8_epi16(_mm_loadu_si128(from + 1))};
    }
    void store(std::uint16_t *at) const {
        const auto to = reinterpret_cast<__m256i *>(at);
        _mm256_storeu_si256(to, low);
        _mm256_storeu_si256(to + 1, high);
    }
};

inline Row operator+(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_add_epi16(x, y); }, a, b);
}
inline Row operator-(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_sub_epi16(x, y); }, a, b);
}
inline Row operator&(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_and_si256(x, y); }, a, b);
}
inline Row operator|(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_or_si256(x, y); }, a, b);
}
// Both as int16.
inline Row rounded_product(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_mulhrs_epi16(x, y); }, a, b);
}
inline Row zigzag(Row r) {
    return Row::of(
        [](auto x) { return _mm256_xor_si256(_mm256_slli_epi16(x, 1), _mm256_srai_epi16(x, 15)); },
        r);
}
inline Row negated_where_negative(Row a, Row signs) {
    return Row::of(
        [](auto x, auto y) {
            const __m256i s = _mm256_srai_epi16(y, 15);
            return _mm256_sub_epi16(_mm256_xor_si256(x, s), s);
        },
        a, signs);
}
// All bits where they are equal.
inline Row equal(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_cmpeq_epi16(x, y); }, a, b);
}
// `a` where `mask` has all bits, else `b`.
inline Row either(Row mask, Row a, Row b) {
    return {_mm256_blendv_epi8(b.low, a.low, mask.low),
            _mm256_blendv_epi8(b.high, a.high, mask.high)};
}
template <int bits>
Row shifted_left(Row a) {
    return Row::of([](auto x) { return _mm256_slli_epi16(x, bits); }, a);
}
template <int bits>
Row shifted_right(Row a) {
    return Row::of([](auto x) { return _mm256_srli_epi16(x, bits); }, a);
}
inline Row shifted_right(Row a, int bits) {
    const __m128i count = _mm_cvtsi32_si128(bits);
    return Row::of([=](auto x) { return _mm256_srl_epi16(x, count); }, a);
}
// Unsigned, 0 where it would be less.
inline Row minus_down_to_zero(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_subs_epu16(x, y); }, a, b);
}
// The upper halves of unsigned products.
inline Row high_product(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_mulhi_epu16(x, y); }, a, b);
}

// 16 numbers to look up by lanes, each below 16.
class Lookup {
  public:
    explicit Lookup(const std::uint16_t (&numbers)[16]) {
        alignas(16) std::uint8_t low[16], high[16];
        for (int n = 0; n < 16; ++n) {
            low[n] = static_cast<std::uint8_t>(numbers[n]);
            high[n] = static_cast<std::uint8_t>(numbers[n] >> 8);
        }
        const auto both = [](const std::uint8_t *half) {
            return _mm256_broadcastsi128_si256(
                _mm_load_si128(reinterpret_cast<const __m128i *>(half)));
        };
        low_ = both(low);
        high_ = both(high);
    }
    Row operator()(Row which) const {
        return Row::of(
            [this](auto x) {
                // The upper byte of a lane asks for nothing of one half, the lower of the other.
                const __m256i for_low = _mm256_or_si256(x, _mm256_set1_epi16(-0x8000));
                const __m256i for_high =
                    _mm256_or_si256(_mm256_slli_epi16(x, 8), _mm256_set1_epi16(0x80));
                return _mm256_or_si256(_mm256_shuffle_epi8(low_, for_low),
                                       _mm256_shuffle_epi8(high_, for_high));
            },
            which);
    }

  private:
    __m256i low_, high_;
};

// All lanes, or'ed.
inline unsigned any_bits(Row a) {
    const __m256i both = _mm256_or_si256(a.low, a.high);
    const __m128i quarter =
        _mm_or_si128(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    auto bits = static_cast<std::uint64_t>(
        _mm_cvtsi128_si64(_mm_or_si128(quarter, _mm_unpackhi_epi64(quarter, quarter))));
    bits |= bits >> 32;
    return static_cast<unsigned>((bits | bits >> 16) & 0xFFFF);
}

inline unsigned sum(Row a) {
    // Signed products, so all less 2^15.
    const Row less = Row::of(
        [](auto x) {
            return _mm256_madd_epi16(_mm256_xor_si256(x, _mm256_set1_epi16(-0x8000)),
                                     _mm256_set1_epi16(1));
        },
        a);
    const __m256i both = _mm256_add_epi32(less.low, less.high);
    __m128i total = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4E));
    total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0xB1));
    return static_cast<unsigned>(_mm_cvtsi128_si32(total) + LANES * 0x8000);
}

// For the first lanes: so many zeros and a one, from the lowest bit on.  They fit 64 bits.
inline std::uint64_t quotient_word(Row quotients, int lanes) {
    // Of eight lanes in 64 bits: behind where their ones lie, by sums of what is before.
    __m256i ends =
        _mm256_permute4x64_epi64(_mm256_packus_epi16(quotients.low, quotients.high), 0xD8);
    ends = _mm256_add_epi8(ends, _mm256_set1_epi8(1));
    ends = _mm256_add_epi8(ends, _mm256_slli_epi64(ends, 8));
    ends = _mm256_add_epi8(ends, _mm256_slli_epi64(ends, 16));
    ends = _mm256_add_epi8(ends, _mm256_slli_epi64(ends, 32));
    // A lane that is not among the first is shifted out of the word.
    const __m256i counted =
        _mm256_setr_epi8(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                         22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32);
    const __m256i unused = _mm256_cmpgt_epi8(counted, _mm256_set1_epi8(static_cast<char>(lanes)));
    const __m256i at = _mm256_or_si256(_mm256_sub_epi8(ends, _mm256_set1_epi8(1)), unused);
    __m256i word = _mm256_setzero_si256();
    for (int byte = 0; byte < 8; ++byte) {
        const __m256i shifts =
            _mm256_and_si256(_mm256_srli_epi64(at, 8 * byte), _mm256_set1_epi64x(0xFF));
        word = _mm256_or_si256(word, _mm256_sllv_epi64(_mm256_set1_epi64x(1), shifts));
    }
    // Each eight begin where those before end.
    const __m256i bits = _mm256_srli_epi64(ends, 56);
    const __m256i pairs = _mm256_add_epi64(bits, _mm256_shuffle_epi32(bits, 0x4E));
    const __m256i before =
        _mm256_add_epi64(_mm256_slli_si256(bits, 8), _mm256_permute2x128_si256(pairs, pairs, 0x08));
    word = _mm256_sllv_epi64(word, before);
    const __m128i two =
        _mm_or_si128(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
    return static_cast<std::uint64_t>(
        _mm_cvtsi128_si64(_mm_or_si128(two, _mm_unpackhi_epi64(two, two))));
}

// The low `width` bits of each lane, 1 to 16, one after the other; writes PACK_BYTES.
inline void pack(Row z, int width, std::uint8_t *out) {
    if (width == 16) {
        const auto to = reinterpret_cast<__m256i *>(out);
        _mm256_storeu_si256(to, z.low);
        _mm256_storeu_si256(to + 1, z.high);
        return;
    }
    // Two lanes, four, and then eight, which are whole bytes.
    const __m256i mask = _mm256_set1_epi16(static_cast<short>((1 << width) - 1));
    const __m256i apart = _mm256_set1_epi32(1 | 1 << (16 + width));
    // The lower of two goes up to the upper, and both down again.
    const __m256i gap = _mm256_set1_epi64x(32 - 2 * width);
    const __m256i up = _mm256_set1_epi64x(4 * width), down = _mm256_set1_epi64x(64 - 4 * width);
    const __m256i to_left = _mm256_or_si256(up, _mm256_setr_epi64x(0, 64, 0, 64));
    const __m256i to_right = _mm256_and_si256(down, _mm256_setr_epi64x(0, -1, 0, -1));
    std::uint8_t *at = out;
    for (const __m256i half : {z.low, z.high}) {
        const __m256i two = _mm256_madd_epi16(_mm256_and_si256(half, mask), apart);
        const __m256i four = _mm256_srlv_epi64(_mm256_sllv_epi32(two, gap), gap);
        const __m256i eight =
            _mm256_or_si256(_mm256_sllv_epi64(_mm256_shuffle_epi32(four, 0x4E), to_left),
                            _mm256_srlv_epi64(four, to_right));
        for (const __m128i bytes :
             {_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1)}) {
            _mm_storeu_si128(reinterpret_cast<__m128i *>(at), bytes);
            at += width;
        }
    }
}

// The bits of `low` that `mask` has, lane after lane, to `take(bits, count)`, four lanes at a time.
template <class Take>
void extract(Row low, Row mask, const Take &take) {
    const __m256i some = _mm256_or_si256(mask.low, mask.high);
    if (_mm256_testz_si256(some, some))
        return;
    alignas(32) std::uint64_t values[8], masks[8];
    const auto store = [](std::uint64_t *to, Row row) {
        _mm256_store_si256(reinterpret_cast<__m256i *>(to), row.low);
        _mm256_store_si256(reinterpret_cast<__m256i *>(to + 4), row.high);
    };
    store(values, low);
    store(masks, mask);
    for (int n = 0; n < 8; ++n)
        take(_pext_u64(values[n], masks[n]), static_cast<int>(_mm_popcnt_u64(masks[n])));
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec
