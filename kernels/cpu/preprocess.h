// The CPU engine: one volume, from strided source voxels to what is stored, in one fused pass.

#ifndef CTGPU_CPU_PREPROCESS_H
#define CTGPU_CPU_PREPROCESS_H

#include "preprocess_math.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ctgpu {

enum class Dtype { int8, uint8, int16, uint16, int32, uint32, float16, float32, float64 };

std::ptrdiff_t item_bytes(Dtype dtype);

// Voxels anywhere in memory.
struct Source {
    const void *data;
    Dtype dtype;
    bool swapped;               // the other byte order than this machine's
    std::ptrdiff_t strides[3];  // bytes, of H, W and D; any, zero and negative ones too
};

// Whether voxels that follow each other along an axis do so in memory, either way round.
bool is_contiguous(const Source &source, int axis);

// How one output axis is sampled: ctgpu.volume.geometry.AxisPlan.
struct Axis {
    int n_valid, n_out, pad_before;
    const std::int32_t *i0, *i1;  // n_valid source indices each, non-decreasing, i1 - i0 in {0, 1}
    const float *w;               // n_valid weights of i1
};

enum { H, W, D };

constexpr int voxel_bytes(Stored stored) { return stored == Stored::uint8 ? 1 : 2; }

struct Task {
    Source source;
    Axis axes[3];  // H, W, D
    Intensity intensity;
    float pad;  // the number that is stored where there is no source, before it is rounded
    Stored stored;
    bool dhw;   // the output is stored D, H, W, and else H, W, D; the last is contiguous
    void *out;  // voxels of voxel_bytes(stored)
};

// How one axis of labels is sampled by nearest neighbour.
struct NearestAxis {
    std::size_t n_out, pad_before, n_valid;
    const std::ptrdiff_t *offsets;  // n_valid, in voxels, all rising or all falling
};

// Labels and where each voxel of the output comes from; padding is 0.
struct Nearest {
    const void *labels;
    int item_bytes;       // 1 or 2
    NearestAxis axes[3];  // of the output, the last one contiguous
    int fast_axis;        // along which labels lie side by side, either way round
    void *out;
};

struct Tile;

// One compilation of kernel.h.
struct Variant {
    const char *name;
    void (*run)(const Tile &tile);
    void (*round_to)(Stored stored, const float *in, void *out, std::size_t n);
    void (*write_once)(std::uint16_t *out, std::size_t n);  // zeros; for benchmarks
    void (*gather)(const Nearest &task);
};

// Those that this CPU can run, best first; the last is scalar.
std::vector<const Variant *> usable_variants();

// By name, or for the empty name the best this CPU supports.  Throws std::invalid_argument where
// there is none of that name, std::runtime_error where this CPU lacks its instructions.
const Variant &find_variant(const std::string &name);

// Writes every voxel of task.out.  Any number of threads and any variant give the same bits.
void preprocess(const Task &task, const Variant &variant, int threads);

}  // namespace ctgpu

#endif
