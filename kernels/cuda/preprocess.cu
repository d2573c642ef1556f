// The CUDA engine: a batch of volumes in one launch, one block per tile of output.
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

#include "tile.h"

using Tile = ctgpu::Tile<CTGPU_VOXEL, CTGPU_SWAP, CTGPU_FAST, CTGPU_OUT>;

extern "C" __global__ void __launch_bounds__(ctgpu::THREADS, 3)
    ctgpu_preprocess(const ctgpu::Volume *__restrict__ volumes, int count) {
    __shared__ float shared[ctgpu::SHARED_FLOATS];
    const int block = static_cast<int>(blockIdx.x);
    int v = 0;
    while (v + 1 < count && block >= volumes[v + 1].first_tile)
        ++v;
    const Tile tile(volumes[v], block - volumes[v].first_tile);
    const int thread = static_cast<int>(threadIdx.x);
    if (tile.is_sampled()) {  // the same for the whole block
        tile.blend(thread, shared);
        __syncthreads();
    }
    tile.write<CTGPU_STORED>(thread, shared);
}
