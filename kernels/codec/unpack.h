// What vectors of 16 bytes or more go by to take numbers out of packed bits, eight at a time: their
// bits are whole bytes.

#ifndef CTGPU_CODEC_UNPACK_H
#define CTGPU_CODEC_UNPACK_H

#include "codec/decode.h"

namespace ctgpu::codec {
namespace {

// What a code says of its group.
struct alignas(64) Group {
    // Of each two of eight numbers: four bytes that have them, among those of the eight, and the
    // bit of them that the first begins at.
    std::uint8_t bytes_of[16];
    std::uint32_t bit_of[4];
    // Twice 16 bits each.
    std::uint32_t half;   // of the numbers without their lowest bit
    std::uint32_t sign;   // of that bit
    std::uint32_t above;  // of what is above the numbers
    std::uint8_t bytes;   // of its packed bits
    bool has_quotients;
    std::uint64_t width, apart;  // of a number, and what it lacks of 16 bits
};

constexpr std::array<Group, 17> groups_by_width() {
    std::array<Group, 17> groups{};
    for (unsigned width = 0; width <= 16; ++width) {
        Group &group = groups[width];
        for (unsigned two = 0; two < 4; ++two) {
            const unsigned first = 2 * two * width;
            for (unsigned byte = 0; byte < 4; ++byte)
                group.bytes_of[4 * two + byte] = static_cast<std::uint8_t>(first / 8 + byte);
            group.bit_of[two] = first % 8;
        }
        const std::uint32_t mask = (1u << width) - 1;
        group.half = (mask >> 1) * 0x10001u;
        group.sign = (mask & 1) * 0x10001u;
        group.above = (~mask & 0xFFFF) * 0x10001u;
        group.width = width;
        group.apart = 16 - width;
    }
    return groups;
}

// Two of 15 bits and a shift would not always fit four bytes, but no code stands for them.
constexpr std::array<Group, 17> BY_WIDTH = groups_by_width();

}  // namespace
}  // namespace ctgpu::codec

#endif
