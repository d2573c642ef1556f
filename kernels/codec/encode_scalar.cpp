// The encoder for any processor, and the turning of blocks.

#define CTGPU_VARIANT scalar

#include "codec/row_scalar.h"

#include "codec/encode_tile.h"

namespace ctgpu::codec::scalar {
namespace {

template <class Voxel>
void turn_voxels(const Turn &turn) {
    for (int c = 0; c < turn.columns; ++c)
        for (int r = 0; r < turn.rows; ++r)
            std::memcpy(static_cast<char *>(turn.out) + c * turn.out_pitch + r * sizeof(Voxel),
                        static_cast<const char *>(turn.in) + r * turn.in_pitch + c * sizeof(Voxel),
                        sizeof(Voxel));
}

}  // namespace

void turn(int voxel_bytes, const Turn &turn) {
    voxel_bytes == 1 ? turn_voxels<std::uint8_t>(turn) : turn_voxels<std::uint16_t>(turn);
}

}  // namespace ctgpu::codec::scalar
