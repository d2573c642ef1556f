#include "cpu/floor.h"

#include <cstdint>
#include <cstring>

namespace ctgpu {

unsigned read_runs(const char *at, std::size_t planes, std::ptrdiff_t plane_stride,
                   std::size_t rows, std::ptrdiff_t row_stride, std::size_t run_bytes) {
    constexpr std::size_t LANES = 8;
    std::uint64_t lanes[LANES]{};
    for (std::size_t plane = 0; plane < planes; ++plane)
        for (std::size_t row = 0; row < rows; ++row) {
            const char *run = at + static_cast<std::ptrdiff_t>(plane) * plane_stride +
                              static_cast<std::ptrdiff_t>(row) * row_stride;
            for (std::size_t x = 0; x + sizeof lanes <= run_bytes; x += sizeof lanes) {
                std::uint64_t words[LANES];
                std::memcpy(words, run + x, sizeof words);
                for (std::size_t lane = 0; lane < LANES; ++lane)
                    lanes[lane] ^= words[lane];
            }
        }
    std::uint64_t all = 0;
    for (std::uint64_t lane : lanes)
        all ^= lane;
    return static_cast<unsigned>(all ^ (all >> 32));
}

}  // namespace ctgpu
