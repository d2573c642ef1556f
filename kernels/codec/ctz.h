// The format of docs/ctz.md: what encoders and decoders of every kind of processor agree on.

#ifndef CTGPU_CODEC_CTZ_H
#define CTGPU_CODEC_CTZ_H

#ifdef __CUDACC_RTC__  // NVRTC has no standard headers
namespace std {
using size_t = ::size_t;
using ptrdiff_t = ::ptrdiff_t;
using uint8_t = unsigned char;
using int16_t = short;
using uint32_t = unsigned int;
}  // namespace std
#else
#include <cstddef>
#include <cstdint>
#endif

namespace ctgpu::codec {

// Functions are each file's own, as in decode.h.

constexpr int PLANES = 8, LANES = 32;
// Of a group's quotients, so that with a shift of up to seven bits they fit a word.
constexpr int QUOTIENT_BITS = 57;
// Bytes behind the last tile that decoders may load, and ignore.
constexpr std::size_t SLACK_BYTES = 4096;

enum class Kind : std::uint8_t { uint8, int16, grid, float16, bfloat16 };
enum class Coding : std::uint8_t { pack, rice };

// A code of Rice without quotients, and that of residuals that are all zero.
constexpr int RICE_WIDE = 14, RICE_ZERO = 15;
// A code of packed bits that stands for 16 of them.
constexpr int PACK_WIDE = 15;

static constexpr int voxel_bytes(Kind kind) { return kind == Kind::uint8 ? 1 : 2; }
static constexpr bool has_significand_bits(Kind kind) {
    return kind == Kind::float16 || kind == Kind::bfloat16;
}

// Of the floats of a kind: bits of the significand that are stored, and the exponent field of which
// one unit in the last place is 1.
static constexpr int mantissa_bits(Kind kind) { return kind == Kind::bfloat16 ? 7 : 10; }
static constexpr int unit_exponent(Kind kind) { return kind == Kind::bfloat16 ? 134 : 25; }

// Of g: every finite float of the kind below 2^(15 - g) has its k then, and every tiny one fits.
static constexpr int least_grid(Kind kind) { return kind == Kind::bfloat16 ? -7 : -1; }
static constexpr int most_grid(Kind) { return 14; }

static constexpr int bit_length(unsigned value) {
#ifdef __CUDA_ARCH__
    return 32 - __clz(static_cast<int>(value));
#else
    return value ? 32 - __builtin_clz(value) : 0;
#endif
}

// Bits of a tiny number: one below a unit of k, whose k is 1 or -1.
static constexpr int tiny_bits(Kind kind, int grid) {
    const int exponents = unit_exponent(kind) - grid - mantissa_bits(kind);
    return bit_length((static_cast<unsigned>(exponents) << mantissa_bits(kind)) - 1);
}

// Of every tile of a volume.
struct Stream {
    Kind kind;
    Coding coding;
    int grid;
    std::int16_t weights[3];  // u, v, s
    std::int16_t first;
};

// Sizes in bytes, as the table has them.
struct Parts {
    std::uint32_t size, packed, quotients, raw;
};

struct TileShape {
    int planes, rows, lanes;

    __attribute__((always_inline)) std::size_t groups() const {
        return static_cast<std::size_t>(planes) * rows;
    }
    __attribute__((always_inline)) std::size_t code_bytes() const { return (groups() + 1) / 2; }
    __attribute__((always_inline)) std::size_t voxels() const { return groups() * lanes; }
};

// Where a decoder writes the first planes of a tile: lanes side by side, the other axes by strides
// in bytes.  What comes after the last of them is neither decoded nor checked.
struct Target {
    void *voxels;
    std::ptrdiff_t plane_stride, row_stride;
    int planes;
};

// What is wrong with a tile; all but `none` is damage.
enum class Fault : std::uint8_t { none, size, packed, quotients, significands };

}  // namespace ctgpu::codec

#endif
