// A tile decoded voxel by voxel: for processors without the instructions of the other variants, and
// what those are held against.

#include "codec/decode.h"

namespace ctgpu::codec::scalar {
namespace {

// Bits of a part, from the lowest of its first byte on; up to QUOTIENT_BITS at once.
class Bits {
  public:
    explicit Bits(const BitPart &part) : part_(part) {}

    std::uint64_t ahead() const { return load_word(part_.begin + (at_ >> 3)) >> (at_ & 7); }
    void skip(std::size_t bits) { at_ += bits; }
    unsigned take(int bits) {
        const auto value = static_cast<unsigned>(ahead() & ((std::uint64_t{1} << bits) - 1));
        at_ += static_cast<std::size_t>(bits);
        return value;
    }
    bool within() const { return part_.holds(at_); }
    bool ends() const { return part_.ends_after(at_); }

  private:
    const BitPart part_;
    std::size_t at_ = 0;
};

int code_of(const std::uint8_t *codes, std::size_t group) {
    return codes[group / 2] >> (4 * (group & 1)) & 15;
}

int rounded_product(int difference, int weight) {
    return (static_cast<std::int16_t>(difference) * weight + (1 << 14)) >> 15;
}

// Voxels of a kind, made of their k.
class Voxels {
  public:
    explicit Voxels(const Stream &stream)
        : kind_(stream.kind), grid_(stream.grid), mantissa_(mantissa_bits(kind_)),
          tiny_(has_significand_bits(kind_) ? tiny_bits(kind_, grid_) : 0) {}

    std::uint16_t of(std::int16_t k, Bits &significands) const {
        if (kind_ == Kind::uint8 || kind_ == Kind::int16)
            return static_cast<std::uint16_t>(k);
        const unsigned sign = k < 0 ? 0x8000 : 0, size = static_cast<unsigned>(k < 0 ? -k : k);
        if (kind_ == Kind::grid)
            return static_cast<std::uint16_t>(size ? sign | scaled(size) : 0);
        if (size == 0)
            return 0;
        const unsigned m = size - 1;
        if (m == 0)
            return static_cast<std::uint16_t>(sign | significands.take(tiny_));
        const int open = std::max(mantissa_ + 1 - bit_length(m), 0);
        return static_cast<std::uint16_t>(sign | scaled(m) | significands.take(open));
    }

  private:
    // The float of m units, m > 0.  More bits than a significand has are only in a damaged tile:
    // those of float16 are rounded, to even, those of bfloat16 cut off.
    unsigned scaled(unsigned m) const {
        const int length = bit_length(m), shift = mantissa_ + 1 - length;
        if (shift < 0 && kind_ != Kind::bfloat16)
            m += (1u << (-shift - 1)) - 1 + (m >> -shift & 1);
        const unsigned whole = shift >= 0 ? m << shift : m >> -shift;
        const int exponent = unit_exponent(kind_) - grid_ - shift;
        return whole + (static_cast<unsigned>(exponent - 1) << mantissa_);
    }

    Kind kind_;
    int grid_, mantissa_, tiny_;
};

// What the codes say of the bytes of the packed bits.
std::size_t packed_bytes(const std::array<std::uint8_t, 16> &bytes, const TileShape &shape,
                         const std::uint8_t *codes) {
    std::size_t sum = 0;
    for (std::size_t group = 0; group < shape.groups(); ++group)
        sum += bytes[code_of(codes, group)];
    return sum;
}

}  // namespace

Fault decode_tile(const Stream &stream, const TileShape &shape, const Parts &parts,
                  const std::uint8_t *data, const Target &target) {
    if (!holds_parts(shape, parts))
        return Fault::size;
    const std::array<std::uint8_t, 16> bytes_of = group_bytes(stream.coding, shape.lanes);
    if (packed_bytes(bytes_of, shape, data) != parts.packed)
        return Fault::packed;
    const TileParts at(shape, parts, data);
    const std::uint8_t *packed = at.packed;
    Bits quotients(at.quotients), significands(at.significands);
    const Voxels voxels(stream);
    const int bytes = voxel_bytes(stream.kind);
    // k of the plane before, below the row at hand; above it, of this one.
    std::vector<std::int16_t> plane(static_cast<std::size_t>(shape.rows) * LANES);
    for (int p = 0; p < target.planes; ++p) {
        // b of the row before, which is c.
        std::int16_t before[LANES]{};
        for (int r = 0; r < shape.rows; ++r) {
            const int code = code_of(at.codes, static_cast<std::size_t>(p) * shape.rows + r);
            const int width = width_of(stream.coding, code);
            std::uint16_t z[LANES];
            Bits bits({packed, bytes_of[code]});
            for (int n = 0; n < shape.lanes; ++n)
                z[n] = static_cast<std::uint16_t>(bits.take(width));
            packed += bytes_of[code];
            if (has_quotients(stream.coding, code)) {
                std::uint64_t ahead = quotients.ahead();
                int length = 0;
                for (int n = 0; n < shape.lanes; ++n) {
                    if (ahead == 0)
                        return Fault::quotients;
                    const int zeros = __builtin_ctzll(ahead);
                    ahead = ahead >> zeros >> 1;
                    length += zeros + 1;
                    z[n] = static_cast<std::uint16_t>(z[n] + (zeros << width));
                }
                quotients.skip(static_cast<std::size_t>(length));
                if (length > QUOTIENT_BITS || !quotients.within())
                    return Fault::quotients;
            }
            std::int16_t *const row = &plane[static_cast<std::size_t>(r) * LANES];
            const std::int16_t *const above = row - (r > 0 ? LANES : 0);
            const std::int16_t *const second = above - (r > 1 ? LANES : 0);
            char *const out = static_cast<char *>(target.voxels) + p * target.plane_stride +
                              r * target.row_stride;
            for (int n = 0; n < shape.lanes; ++n) {
                const int a = above[n], b = row[n], c = before[n], e = second[n];
                int k = (z[n] >> 1) ^ -(z[n] & 1);
                if (p == 0)
                    k += r == 0 ? stream.first : a;
                else if (r == 0)
                    k += b;
                else
                    k += a + b - c + rounded_product(a - c, stream.weights[0]) +
                         rounded_product(b - c, stream.weights[1]) +
                         rounded_product(e - c, stream.weights[2]);
                before[n] = row[n];
                row[n] = static_cast<std::int16_t>(k);
                const std::uint16_t voxel = voxels.of(row[n], significands);
                std::memcpy(out + n * bytes, &voxel, static_cast<std::size_t>(bytes));
            }
            if (!significands.within())
                return Fault::significands;
        }
    }
    if (target.planes < shape.planes)
        return Fault::none;
    if (!quotients.ends())
        return Fault::quotients;
    return significands.ends() ? Fault::none : Fault::significands;
}

}  // namespace ctgpu::codec::scalar
