// Turning blocks in registers, for encode_avx2.cpp and encode_avx512.cpp.

#include "codec/codec.h"
#include "cpu/move_avx.h"

#include <algorithm>

namespace ctgpu::codec {
namespace CTGPU_VARIANT {
namespace {

constexpr int SIDE = 16;

// Of fewer rows or columns than a block that registers turn.
template <class Voxel>
void turn_part(const Voxel *in, std::ptrdiff_t in_pitch, Voxel *out, std::ptrdiff_t out_pitch,
               int rows, int columns) {
    Voxel before[SIDE * SIDE]{}, after[SIDE * SIDE];
    for (int r = 0; r < rows; ++r)
        std::copy_n(in + r * in_pitch, columns, before + r * SIDE);
    ctgpu::CTGPU_VARIANT::turn_block(before, SIDE, after, SIDE);
    for (int c = 0; c < columns; ++c)
        std::copy_n(after + c * SIDE, rows, out + c * out_pitch);
}

template <class Voxel>
void turn_voxels(const Turn &turn) {
    const auto in = static_cast<const Voxel *>(turn.in);
    const auto out = static_cast<Voxel *>(turn.out);
    constexpr auto BYTES = static_cast<std::ptrdiff_t>(sizeof(Voxel));
    const std::ptrdiff_t in_pitch = turn.in_pitch / BYTES, out_pitch = turn.out_pitch / BYTES;
    // The last block of an axis begins where it ends with it, over some of the one before.
    for (int c = 0; c < turn.columns; c += SIDE)
        for (int r = 0; r < turn.rows; r += SIDE) {
            const int column = std::max(0, std::min(c, turn.columns - SIDE));
            const int row = std::max(0, std::min(r, turn.rows - SIDE));
            const Voxel *const from = in + row * in_pitch + column;
            Voxel *const to = out + column * out_pitch + row;
            if (turn.columns >= SIDE && turn.rows >= SIDE)
                ctgpu::CTGPU_VARIANT::turn_block(from, in_pitch, to, out_pitch);
            else
                turn_part(from, in_pitch, to, out_pitch, std::min(SIDE, turn.rows),
                          std::min(SIDE, turn.columns));
        }
}

}  // namespace

void turn(int voxel_bytes, const Turn &turn) {
    voxel_bytes == 1 ? turn_voxels<std::uint8_t>(turn) : turn_voxels<std::uint16_t>(turn);
}

}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec
