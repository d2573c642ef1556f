// What the decoders share: where the parts of a tile are, and what must hold of them.

#ifndef CTGPU_CODEC_DECODE_H
#define CTGPU_CODEC_DECODE_H

#include "codec/codec.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace ctgpu::codec {
// Each decoder has its own, compiled with its flags: a linker that chose one for all of them might
// take that of a CPU with more instructions.
namespace {

// Rows between two looks at how far the parts were read: their codes fit a word, and what they can
// take of a part fits SLACK_BYTES.
constexpr int ROWS_AT_ONCE = 15;

constexpr int width_of(Coding coding, int code) {
    if (coding == Coding::pack)
        return code == PACK_WIDE ? 16 : code;
    return code == RICE_ZERO ? 0 : code == RICE_WIDE ? 16 : code;
}

constexpr bool has_quotients(Coding coding, int code) {
    return coding == Coding::rice && code < RICE_WIDE;
}

// Bytes of the packed bits of a group, by its code.
std::array<std::uint8_t, 16> group_bytes(Coding coding, int lanes) {
    std::array<std::uint8_t, 16> bytes;
    for (int code = 0; code < 16; ++code)
        bytes[code] = static_cast<std::uint8_t>((lanes * width_of(coding, code) + 7) / 8);
    return bytes;
}

std::uint64_t load_word(const std::uint8_t *at) {
    std::uint64_t word;
    std::memcpy(&word, at, sizeof word);
    return word;
}

// A part that is read bit by bit.
struct BitPart {
    const std::uint8_t *begin;
    std::size_t bytes;

    bool holds(std::size_t bits) const { return bits <= 8 * bytes; }
    // That so many bits end in its last byte, whose other bits are 0.
    bool ends_after(std::size_t bits) const {
        return (bits + 7) / 8 == bytes && (bits % 8 == 0 || begin[bits / 8] >> (bits % 8) == 0);
    }
};

// Whether a tile is long enough for the parts that it states.
bool holds_parts(const TileShape &shape, const Parts &parts) {
    return parts.size >= shape.code_bytes() + parts.packed + std::size_t{parts.quotients};
}

// Whether rows of two bytes a voxel may be stored past the caches: as whole lines, and not where
// all of them are one block, which is read again soon.
inline bool rows_lie_apart(const TileShape &shape, const Target &target) {
    constexpr std::ptrdiff_t ROW_BYTES = LANES * 2;
    const auto bits = reinterpret_cast<std::uintptr_t>(target.voxels) |
                      static_cast<std::uintptr_t>(target.plane_stride) |
                      static_cast<std::uintptr_t>(target.row_stride);
    return shape.lanes == LANES && bits % ROW_BYTES == 0 && target.row_stride != ROW_BYTES;
}

struct TileParts {
    const std::uint8_t *codes, *packed;
    BitPart quotients, significands;

    // Those of a tile that holds them.
    TileParts(const TileShape &shape, const Parts &parts, const std::uint8_t *data)
        : codes(data), packed(data + shape.code_bytes()),
          quotients{packed + parts.packed, parts.quotients},
          significands{quotients.begin + parts.quotients,
                       parts.size - shape.code_bytes() - parts.packed - parts.quotients} {}

    // The codes of ROWS_AT_ONCE groups, the first lowest.
    std::uint64_t codes_from(std::size_t group) const {
        return load_word(codes + group / 2) >> (group % 2 * 4);
    }
};

// Bits of both parts that were read, and whether a group of quotients was too long.
struct Progress {
    std::size_t quotient_bits = 0, significand_bits = 0;
    std::size_t lengths = 0;

    void quotients_end(std::size_t length) {
        quotient_bits += length;
        // A seventh bit in all that are longer than QUOTIENT_BITS, up to 64.
        lengths |= length + (63 - QUOTIENT_BITS);
    }

    Fault so_far(const TileParts &parts) const {
        if (lengths > 63 || !parts.quotients.holds(quotient_bits))
            return Fault::quotients;
        return parts.significands.holds(significand_bits) ? Fault::none : Fault::significands;
    }
    Fault at_end(const TileParts &parts) const {
        if (!parts.quotients.ends_after(quotient_bits))
            return Fault::quotients;
        return parts.significands.ends_after(significand_bits) ? Fault::none : Fault::significands;
    }
};

}  // namespace
}  // namespace ctgpu::codec

#endif
