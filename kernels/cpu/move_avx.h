// What the AVX2 and the AVX-512 variant share: moving finished voxels.

#include "cpu/tile.h"

#include <cstring>
#include <immintrin.h>

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

// A 16 x 16 block of 16-bit voxels.
inline void turn_block(const std::uint16_t *in, std::ptrdiff_t in_pitch, std::uint16_t *out,
                       std::ptrdiff_t out_pitch) {
    __m256i x[16], y[16];
    // Rows r and r + 8 share a register, so that no step crosses its 128-bit lanes.
    for (int r = 0; r < 8; ++r) {
        const auto low = reinterpret_cast<const __m128i *>(in + r * in_pitch);
        const auto high = reinterpret_cast<const __m128i *>(in + (r + 8) * in_pitch);
        for (int side = 0; side < 2; ++side)
            x[8 * side + r] =
                _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low + side)),
                                        _mm_loadu_si128(high + side), 1);
    }
    for (int side = 0; side < 16; side += 8) {
        __m256i *const a = x + side, *const b = y + side;
        for (int n = 0; n < 8; n += 2) {
            b[n] = _mm256_unpacklo_epi16(a[n], a[n + 1]);
            b[n + 1] = _mm256_unpackhi_epi16(a[n], a[n + 1]);
        }
        for (int n = 0; n < 8; n += 4)
            for (int c = 0; c < 2; ++c) {
                a[n + 2 * c] = _mm256_unpacklo_epi32(b[n + c], b[n + 2 + c]);
                a[n + 2 * c + 1] = _mm256_unpackhi_epi32(b[n + c], b[n + 2 + c]);
            }
        for (int c = 0; c < 4; ++c) {
            b[2 * c] = _mm256_unpacklo_epi64(a[c], a[4 + c]);
            b[2 * c + 1] = _mm256_unpackhi_epi64(a[c], a[4 + c]);
        }
        for (int c = 0; c < 8; ++c)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + (side + c) * out_pitch), b[c]);
    }
}

// A 16 x 16 block of 8-bit voxels: each round deals the rows out like a deck of cards.
inline void turn_block(const std::uint8_t *in, std::ptrdiff_t in_pitch, std::uint8_t *out,
                       std::ptrdiff_t out_pitch) {
    __m128i x[16], y[16];
    for (int r = 0; r < 16; ++r)
        x[r] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(in + r * in_pitch));
    const auto deal = [](const __m128i *from, __m128i *to) {
        for (int r = 0; r < 8; ++r) {
            to[2 * r] = _mm_unpacklo_epi8(from[r], from[r + 8]);
            to[2 * r + 1] = _mm_unpackhi_epi8(from[r], from[r + 8]);
        }
    };
    deal(x, y), deal(y, x), deal(x, y), deal(y, x);
    for (int c = 0; c < 16; ++c)
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out + c * out_pitch), x[c]);
}

constexpr auto LINE = static_cast<std::ptrdiff_t>(LINE_BYTES);

// Less than a line.
inline void copy_part(char *out, const char *in, std::ptrdiff_t bytes) {
#ifdef __AVX512F__
    const __mmask64 part = (__mmask64{1} << bytes) - 1;
    _mm512_mask_storeu_epi8(out, part, _mm512_maskz_loadu_epi8(part, in));
#else
    // Half a line is what rows of it times an odd number leave.
    if (bytes == LINE / 2)
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in)));
    else
        std::memcpy(out, in, static_cast<std::size_t>(bytes));
#endif
}

// A copy that goes past the cache in whole lines.  The broken lines at both ends are stored as
// usual, for a neighbour writes the rest of them.
inline void stream(void *to, const void *from, std::ptrdiff_t bytes) {
    char *const out = static_cast<char *>(to);
    const char *const in = static_cast<const char *>(from);
    const auto skip =
        static_cast<std::ptrdiff_t>(-reinterpret_cast<std::uintptr_t>(out) % LINE_BYTES);
    std::ptrdiff_t x = skip < bytes ? skip : bytes;
    if (x > 0)
        copy_part(out, in, x);
    for (; x + LINE <= bytes; x += LINE) {
#ifdef __AVX512F__
        _mm512_stream_si512(reinterpret_cast<__m512i *>(out + x), _mm512_loadu_si512(in + x));
#else
        for (std::ptrdiff_t side = 0; side < LINE; side += LINE / 2)
            _mm256_stream_si256(
                reinterpret_cast<__m256i *>(out + x + side),
                _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in + x + side)));
#endif
    }
    if (x < bytes)
        copy_part(out + x, in + x, bytes - x);
}

inline void finish_streams() { _mm_sfence(); }

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
