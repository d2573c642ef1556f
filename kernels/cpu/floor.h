// One read of source voxels, as fast as it goes: half of the floor under any engine.

#ifndef CTGPU_CPU_FLOOR_H
#define CTGPU_CPU_FLOOR_H

#include <cstddef>

namespace ctgpu {

// Reads `planes` x `rows` runs of `run_bytes`, in the order of memory; returns their exclusive or.
unsigned read_runs(const char *at, std::size_t planes, std::ptrdiff_t plane_stride,
                   std::size_t rows, std::ptrdiff_t row_stride, std::size_t run_bytes);

}  // namespace ctgpu

#endif
