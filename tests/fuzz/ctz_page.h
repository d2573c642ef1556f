// One tile by docs/ctz.md and nothing else: what the decoders of `.ctz` are held against.

#ifndef CTGPU_TESTS_CTZ_PAGE_H
#define CTGPU_TESTS_CTZ_PAGE_H

#include "codec/ctz.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

namespace ctz_page {

using namespace ctgpu::codec;
using Bytes = std::vector<std::uint8_t>;

inline int width_of(Coding coding, int code) {
    if (coding == Coding::pack)
        return code == PACK_WIDE ? 16 : code;
    return code == RICE_ZERO ? 0 : code == RICE_WIDE ? 16 : code;
}

inline int code_of(std::span<const std::uint8_t> codes, std::size_t group) {
    return codes[group / 2] >> (group % 2 * 4) & 15;
}

// What the codes say of the bytes of the packed bits.
inline std::size_t packed_bytes(Coding coding, const TileShape &shape,
                                std::span<const std::uint8_t> codes) {
    std::size_t bytes = 0;
    for (std::size_t group = 0; group < shape.groups(); ++group)
        bytes += static_cast<std::size_t>(
            (shape.lanes * width_of(coding, code_of(codes, group)) + 7) / 8);
    return bytes;
}

// Bits from the lowest of the first byte on; behind the last one there are zeros.
class Bits {
  public:
    explicit Bits(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

    unsigned take(int count) {
        unsigned value = 0;
        for (int n = 0; n < count; ++n, ++at_)
            if (at_ / 8 < bytes_.size())
                value |= (bytes_[at_ / 8] >> at_ % 8 & 1u) << n;
        return value;
    }
    std::size_t taken() const { return at_; }
    bool within() const { return at_ <= 8 * bytes_.size(); }
    // That they end in the last byte, whose other bits are 0.
    bool at_end() const {
        Bits rest = *this;
        return (at_ + 7) / 8 == bytes_.size() && rest.take(7) == 0;
    }

  private:
    std::span<const std::uint8_t> bytes_;
    std::size_t at_ = 0;
};

struct Decoded {
    bool damaged = false;
    std::vector<std::uint16_t> voxels;  // D, H, W, as their bits
    std::size_t quotient_bits = 0, significand_bits = 0;
};

// The float of m units of 2^-grid, m > 0, without its sign.  What was ever encoded has an m that is
// one; others become one as the page has it: bfloat16 by cutting, float16 by rounding to even.
inline unsigned float_of(Kind kind, int grid, unsigned m) {
    const int mantissa = mantissa_bits(kind), cut = std::max(bit_length(m) - mantissa - 1, 0);
    unsigned whole = m >> cut;
    if (kind != Kind::bfloat16 && cut > 0) {
        const unsigned rest = m - (whole << cut), half = 1u << (cut - 1);
        whole += rest > half || (rest == half && (whole & 1));
    }
    const int shift = mantissa + 1 - bit_length(whole);
    const int exponent = unit_exponent(kind) - grid - shift + cut;
    const int infinite = 0x7FFF >> mantissa;
    if (exponent >= infinite)
        return static_cast<unsigned>(infinite) << mantissa;
    whole = shift >= 0 ? whole << shift : whole >> -shift;
    return (whole & ((1u << mantissa) - 1)) | static_cast<unsigned>(exponent) << mantissa;
}

inline std::uint16_t voxel_of(const Stream &stream, int k, Bits &significands) {
    if (stream.kind == Kind::uint8 || stream.kind == Kind::int16)
        return static_cast<std::uint16_t>(stream.kind == Kind::uint8 ? k & 255 : k);
    if (k == 0)
        return 0;
    const unsigned sign = k < 0 ? 0x8000 : 0, size = static_cast<unsigned>(std::abs(k));
    if (stream.kind == Kind::grid)
        return static_cast<std::uint16_t>(sign | float_of(stream.kind, stream.grid, size));
    const unsigned m = size - 1;
    if (m == 0)
        return static_cast<std::uint16_t>(sign |
                                          significands.take(tiny_bits(stream.kind, stream.grid)));
    const int open = std::max(mantissa_bits(stream.kind) + 1 - bit_length(m), 0);
    return static_cast<std::uint16_t>(sign | float_of(stream.kind, stream.grid, m) |
                                      significands.take(open));
}

// The first planes of a tile of form 0.
inline Decoded decode(const Stream &stream, const TileShape &shape, const Parts &parts,
                      std::span<const std::uint8_t> tile, int planes) {
    Decoded made;
    const auto damaged = [&] {
        made.damaged = true;
        return made;
    };
    if (parts.size < shape.code_bytes() + parts.packed + std::size_t{parts.quotients})
        return damaged();
    const auto codes = tile.first(shape.code_bytes());
    if (packed_bytes(stream.coding, shape, codes) != parts.packed)
        return damaged();
    const std::size_t ones = codes.size() + parts.packed, low = ones + parts.quotients;
    Bits quotients(tile.subspan(ones, parts.quotients));
    Bits significands(tile.subspan(low, parts.size - low));
    const auto lanes = static_cast<std::size_t>(shape.lanes);
    const auto rows = static_cast<std::size_t>(shape.rows);
    std::vector<std::int16_t> k(static_cast<std::size_t>(planes) * rows * lanes);
    made.voxels.reserve(k.size());
    std::size_t begin = codes.size();
    for (std::size_t group = 0; group < static_cast<std::size_t>(planes) * rows; ++group) {
        const std::size_t p = group / rows, r = group % rows;
        const int code = code_of(codes, group), width = width_of(stream.coding, code);
        const auto bytes = static_cast<std::size_t>((shape.lanes * width + 7) / 8);
        Bits packed(tile.subspan(begin, bytes));
        begin += bytes;
        const std::size_t before = quotients.taken();
        for (std::size_t n = 0; n < lanes; ++n) {
            unsigned z = packed.take(width);
            if (stream.coding == Coding::rice && code < RICE_WIDE)
                for (; quotients.take(1) == 0; z += 1u << width)
                    if (quotients.taken() - before >= QUOTIENT_BITS)
                        return damaged();
            const int residual = static_cast<int>((z & 0xFFFF) >> 1) ^ -static_cast<int>(z & 1);
            const std::size_t at = group * lanes + n, plane = rows * lanes;
            const int a = r > 0 ? k[at - lanes] : stream.first;
            const int b = p > 0 ? k[at - plane] : 0;
            int predicted = p > 0 ? b : a;
            if (p > 0 && r > 0) {
                const int c = k[at - plane - lanes],
                          e = k[at - std::min<std::size_t>(r, 2) * lanes];
                const auto product = [](int difference, int weight) {
                    return (static_cast<std::int16_t>(difference) * weight + (1 << 14)) >> 15;
                };
                predicted = a + b - c + product(a - c, stream.weights[0]) +
                            product(b - c, stream.weights[1]) + product(e - c, stream.weights[2]);
            }
            k[at] = static_cast<std::int16_t>(predicted + residual);
            made.voxels.push_back(voxel_of(stream, k[at], significands));
        }
        if (quotients.taken() - before > QUOTIENT_BITS)
            return damaged();
    }
    made.quotient_bits = quotients.taken();
    made.significand_bits = significands.taken();
    made.damaged = planes < shape.planes ? !quotients.within() || !significands.within()
                                         : !quotients.at_end() || !significands.at_end();
    return made;
}

}  // namespace ctz_page

#endif
