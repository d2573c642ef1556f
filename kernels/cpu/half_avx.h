// What the AVX2 and the AVX-512 variant share: moving finished float16 voxels.

#include "cpu/tile.h"

#include <cstring>
#include <immintrin.h>

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

// A 16 x 16 block of 16-bit voxels.
inline void transpose_half(const std::uint16_t *in, std::ptrdiff_t in_pitch, std::uint16_t *out,
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

// Half a line is what rows of 16 times an odd number of voxels leave.
inline void copy_part(std::uint16_t *out, const std::uint16_t *in, std::ptrdiff_t n) {
    if (n == 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in)));
    else
        std::memcpy(out, in, static_cast<std::size_t>(n) * sizeof *out);
}

// A copy that goes past the cache in whole lines.  The broken lines at both ends are stored as
// usual, for a neighbour writes the rest of them.
inline void stream(std::uint16_t *out, const std::uint16_t *in, std::ptrdiff_t n) {
    constexpr std::ptrdiff_t LINE = LINE_BYTES / sizeof *out;
    const auto skip = static_cast<std::ptrdiff_t>(-reinterpret_cast<std::uintptr_t>(out) %
                                                  LINE_BYTES / sizeof *out);
    std::ptrdiff_t x = skip < n ? skip : n;
    if (x > 0)
        copy_part(out, in, x);
    for (; x + LINE <= n; x += LINE) {
#ifdef __AVX512F__
        _mm512_stream_si512(reinterpret_cast<__m512i *>(out + x), _mm512_loadu_si512(in + x));
#else
        for (int side = 0; side < LINE; side += 16)
            _mm256_stream_si256(
                reinterpret_cast<__m256i *>(out + x + side),
                _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in + x + side)));
#endif
    }
    if (x < n)
        copy_part(out + x, in + x, n - x);
}

inline void finish_streams() { _mm_sfence(); }

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
