// How AVX2 takes the numbers of a row out of the parts of a tile, and makes voxels of them.

#include "codec/row_avx2.h"
#include "codec/unpack.h"

namespace ctgpu::codec {
namespace CTGPU_VARIANT {
namespace {

inline Row pair(std::uint32_t two) {
    const __m256i pairs = _mm256_set1_epi32(static_cast<int>(two));
    return {pairs, pairs};
}
inline Row operator^(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_xor_si256(x, y); }, a, b);
}
inline Row lesser(Row a, Row b) {
    return Row::of([](auto x, auto y) { return _mm256_min_epu16(x, y); }, a, b);
}
inline Row shifted_left(Row a, std::uint64_t bits) {
    const __m128i count = _mm_cvtsi64_si128(static_cast<long long>(bits));
    return Row::of([=](auto x) { return _mm256_sll_epi16(x, count); }, a);
}
inline bool is_zero(Row a) {
    const __m256i any = _mm256_or_si256(a.low, a.high);
    return _mm256_testz_si256(any, any);
}

inline const __m128i *vector_at(const void *at) { return static_cast<const __m128i *>(at); }
inline __m256i two_of(const void *first, const void *second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(vector_at(first))),
                                   _mm_loadu_si128(vector_at(second)), 1);
}
inline __m256i twice(const void *at) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(vector_at(at)));
}

// The numbers of a group, with whatever comes behind each in the bits above it.
inline Row unpacked(const Group &group, const std::uint8_t *packed) {
    const __m256i bytes_of = twice(group.bytes_of), bit_of = twice(group.bit_of);
    const __m128i apart = _mm_cvtsi64_si128(static_cast<long long>(group.apart));
    const auto half = [&](const std::uint8_t *at) {
        const __m256i bytes = _mm256_shuffle_epi8(two_of(at, at + group.width), bytes_of);
        const __m256i twos = _mm256_srlv_epi32(bytes, bit_of);
        return _mm256_blend_epi16(twos, _mm256_sll_epi32(twos, apart), 0xAA);
    };
    return {half(packed), half(packed + 2 * group.width)};
}

// How many ones of a word lie below one of its bytes.
class Ones {
  public:
    explicit Ones(std::uint64_t word) : word_(word) {}
    int before(int byte) const {
        return byte == 0 ? 0 : static_cast<int>(_mm_popcnt_u64(word_ << (64 - 8 * byte)));
    }

  private:
    const std::uint64_t word_;
};

// How far each of 32 bytes is from the one before.
inline Row quotients(const std::uint8_t *ends) {
    const auto at = [&](int n) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(ends + n));
    };
    const __m256i lengths = _mm256_sub_epi8(at(0), at(-1));
    return {_mm256_cvtepu8_epi16(_mm256_castsi256_si128(lengths)),
            _mm256_cvtepu8_epi16(_mm256_extracti128_si256(lengths, 1))};
}

// Makes floats of numbers of units.
class Scale {
  public:
    explicit Scale(int grid) : unit_(_mm256_castsi256_ps(_mm256_set1_epi32((127 - grid) << 23))) {}

    // Of signed numbers, as float16.
    Row halves(Row k) const {
        return Row::of(
            [this](__m256i part) {
                const __m128i low = halves_of(_mm256_castsi256_si128(part)),
                              high = halves_of(_mm256_extracti128_si256(part, 1));
                return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
            },
            k);
    }
    // Of unsigned ones, as bfloat16 that is cut off.
    Row bfloats(Row m) const {
        return Row::of(
            [this](__m256i part) {
                const __m256i even = floats_of(_mm256_and_si256(part, _mm256_set1_epi32(0xFFFF))),
                              odd = floats_of(_mm256_srli_epi32(part, 16));
                return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xAA);
            },
            m);
    }

  private:
    __m128i halves_of(__m128i eight) const {
        return _mm256_cvtps_ph(
            _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight)), unit_),
            _MM_FROUND_TO_NEAREST_INT);
    }
    __m256i floats_of(__m256i eight) const {
        return _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(eight), unit_));
    }

    __m256 unit_;
};

// By how many bits the bytes of a word are shifted.
struct Starts {
    std::uint64_t bytes[8];
};
constexpr Starts starts_from(unsigned first) {
    Starts starts{};
    for (unsigned n = 0; n < 8; ++n)
        starts.bytes[n] = 0x0101010101010101 * (n + first);
    return starts;
}
constexpr Starts STARTS = starts_from(7);

// How many bits there are for each lane, up to 14, and for those up to it of eight.
struct Counts {
    // In words of eight lanes; their order is 0, 2, 1, 3.
    __m256i of, up_to;

    Counts() = default;
    explicit Counts(Row count) : of(_mm256_packus_epi16(count.low, count.high)) {
        up_to = _mm256_add_epi8(of, _mm256_slli_epi64(of, 8));
        up_to = _mm256_add_epi8(up_to, _mm256_slli_epi64(up_to, 16));
        up_to = _mm256_add_epi8(up_to, _mm256_slli_epi64(up_to, 32));
    }
    bool none() const { return _mm256_testz_si256(of, of); }
};

// Those bits of a part, from bit `at` on, which moves behind them.
inline Row low_bits(const Counts &of, const std::uint8_t *part, std::size_t &at) {
    const auto bytes_of_word = [](auto... bytes) { return _mm256_setr_epi8(bytes..., bytes...); };
    const __m256i counts = of.of, up_to = of.up_to;
    std::uint64_t sums[4];
    std::memcpy(sums, &of.up_to, sizeof sums);
    const std::uint8_t *from[4];
    std::uint64_t starts[4];
    for (const int word : {0, 2, 1, 3}) {
        // A byte before, and 7 more bits: see below.
        from[word] = part + at / 8 - 1;
        starts[word] = STARTS.bytes[at % 8];
        at += sums[word] >> 56;
    }
    const __m256i bit = _mm256_add_epi8(
        _mm256_slli_epi64(up_to, 8),
        _mm256_setr_epi64x(static_cast<long long>(starts[0]), static_cast<long long>(starts[1]),
                           static_cast<long long>(starts[2]), static_cast<long long>(starts[3])));
    // Bits begin in the first of three bytes at 1 to 8, so that shifting down by them is the upper
    // half of a product with a power of two that fits 16 bits.
    const __m256i byte = _mm256_and_si256(_mm256_srli_epi16(bit, 3), _mm256_set1_epi8(31));
    const __m256i second = _mm256_add_epi8(byte, _mm256_set1_epi8(1)),
                  third = _mm256_add_epi8(byte, _mm256_set1_epi8(2));
    const __m256i powers = _mm256_shuffle_epi8(
        bytes_of_word(-128, 64, 32, 16, 8, 4, 2, 1, -128, 64, 32, 16, 8, 4, 2, 1), bit);
    const __m256i low_mask = _mm256_shuffle_epi8(
        bytes_of_word(0, 1, 3, 7, 15, 31, 63, 127, -1, -1, -1, -1, -1, -1, -1, -1), counts);
    const __m256i high_mask = _mm256_shuffle_epi8(
        bytes_of_word(0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 7, 15, 31, 63, 127), counts);
    const __m256i none = _mm256_setzero_si256(), nothing = _mm256_set1_epi8(-128);
    const auto take = [](const std::uint8_t *first, const std::uint8_t *next, __m256i two,
                         __m256i one, __m256i power, __m256i mask) {
        const __m256i bytes = two_of(first, next);
        const __m256i low = _mm256_mulhi_epu16(_mm256_shuffle_epi8(bytes, two), power),
                      high = _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, one), power);
        return _mm256_and_si256(_mm256_or_si256(low, high), mask);
    };
    return {take(from[0], from[2], _mm256_unpacklo_epi8(byte, second),
                 _mm256_unpacklo_epi8(third, nothing), _mm256_unpacklo_epi8(none, powers),
                 _mm256_unpacklo_epi8(low_mask, high_mask)),
            take(from[1], from[3], _mm256_unpackhi_epi8(byte, second),
                 _mm256_unpackhi_epi8(third, nothing), _mm256_unpackhi_epi8(none, powers),
                 _mm256_unpackhi_epi8(low_mask, high_mask))};
}

// The lower bytes of all lanes.
inline void store_bytes(Row voxels, std::uint8_t *at) {
    const auto low = [](__m256i part) { return _mm256_and_si256(part, _mm256_set1_epi16(0xFF)); };
    _mm256_storeu_si256(
        reinterpret_cast<__m256i *>(at),
        _mm256_permute4x64_epi64(_mm256_packus_epi16(low(voxels.low), low(voxels.high)), 0xD8));
}

constexpr bool STORES_PAST_CACHES = true;
inline void store_past_caches(Row voxels, std::uint8_t *at) {
    const auto to = reinterpret_cast<__m256i *>(at);
    _mm256_stream_si256(to, voxels.low);
    _mm256_stream_si256(to + 1, voxels.high);
}
inline void fence() { _mm_sfence(); }

// The sum of what `bytes` says of the codes of so many bytes, a multiple of CODE_BYTES.
constexpr std::size_t CODE_BYTES = 32;
inline std::size_t looked_up(const std::array<std::uint8_t, 16> &bytes, const std::uint8_t *codes,
                             std::size_t count) {
    const __m256i table = twice(bytes.data()), nibble = _mm256_set1_epi8(15);
    __m256i sum = _mm256_setzero_si256();
    for (std::size_t at = 0; at < count; at += CODE_BYTES) {
        const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes + at));
        const __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(two, nibble)),
                      second = _mm256_shuffle_epi8(
                          table, _mm256_and_si256(_mm256_srli_epi16(two, 4), nibble));
        sum = _mm256_add_epi64(
            sum, _mm256_sad_epu8(_mm256_add_epi8(first, second), _mm256_setzero_si256()));
    }
    alignas(32) std::uint64_t sums[4];
    _mm256_store_si256(reinterpret_cast<__m256i *>(sums), sum);
    return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec
