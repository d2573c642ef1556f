// Decodes tiles of `.ctz` into a batch that lies on the device: one warp, which is a block, a tile.
//
// Compiled once for every pair of
//
//   CTGPU_KIND     one of ctgpu::codec::Kind
//   CTGPU_CODING   one of ctgpu::codec::Coding

#include "ctz_tile.h"

extern "C" __global__ void __launch_bounds__(ctgpu::LANES, 16)
    ctgpu_decode_ctz(const ctgpu::CtzVolume *__restrict__ volumes,
                     const ctgpu::CtzTile *__restrict__ tiles, unsigned char *__restrict__ faults) {
    __shared__ unsigned ones[ctgpu::ONES];
    const ctgpu::CtzTile tile = tiles[blockIdx.x];
    const ctgpu::CtzVolume volume = volumes[tile.volume];
    ctgpu::TileDecoder<ctgpu::codec::Kind::CTGPU_KIND, ctgpu::codec::Coding::CTGPU_CODING> decoder(
        volume, tile, ones);
    const auto fault = static_cast<unsigned char>(decoder.run());
    if (threadIdx.x == 0)
        faults[blockIdx.x] = fault;
}
