// The CUDA engine: some volumes in one launch, one block per tile of output.
//
// Compiled once for every kind of source and output that is met, chosen by
//
//   CTGPU_VOXEL          C type of a source voxel, or ctgpu::Half
//   CTGPU_SWAP           1 where the source is in the other byte order
//   CTGPU_FAST           axis along which the source is contiguous: 0 H, 1 W, 2 D
//   CTGPU_OUT            axis along which the output is: 2 (layout HWD) or 1 (DHW)
//   CTGPU_RESCALES       1 where slope and intercept are applied
//   CTGPU_CLIPS_BEFORE   1 where values are clipped before they are blended, 0 for after
//   CTGPU_STORED         type of the output: one of ctgpu::Stored
//   CTGPU_ROWS           4 where one load brings four rows, else 1
//   CTGPU_PAIRS          1 where two voxels are clipped at once, as integers

#include "tile.h"

// Before sm_90 there is no such instruction.
constexpr bool PAIRS = CTGPU_PAIRS && __CUDA_ARCH__ >= 900;

using Tile = ctgpu::Tile<CTGPU_VOXEL, CTGPU_SWAP, CTGPU_FAST, CTGPU_OUT, CTGPU_ROWS, PAIRS>;

extern "C" __global__ void __launch_bounds__(ctgpu::THREADS, 3)
    ctgpu_preprocess(const __grid_constant__ ctgpu::Batch batch) {
    __shared__ float shared[Tile::SHARED_FLOATS];
    const Tile tile(batch, {batch, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y),
                            static_cast<int>(blockIdx.z)});
    if (tile.is_sampled()) {  // the same for the whole block
        tile.blend(threadIdx.x, shared);
        __syncthreads();
    }
    tile.write<CTGPU_STORED>(threadIdx.x, shared);
}
