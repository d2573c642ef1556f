// The CUDA kernel's blocks and threads, run one after the other on the host.
//
// tests/engines build this with the C++ compiler at hand and hold it against the CPU engine, so
// that on a machine without a GPU only launching and moving memory remain unproven.

#include "tile.h"

#include <limits>
#include <vector>

namespace {

using namespace ctgpu;

// What a kernel is compiled for, and launched with.
struct Launch {
    const Batch &batch;
    int grid[3];
    bool swap;
    int fast, out, rows;
    Stored stored;
    bool backwards;
};

template <class Tile>
void write(const Tile &tile, Stored stored, unsigned int thread, const float *shared) {
    switch (stored) {
    case Stored::float16:
        return tile.template write<Stored::float16>(thread, shared);
    case Stored::bfloat16:
        return tile.template write<Stored::bfloat16>(thread, shared);
    case Stored::int16:
        return tile.template write<Stored::int16>(thread, shared);
    case Stored::uint8:
        return tile.template write<Stored::uint8>(thread, shared);
    case Stored::float16_grid10:
        return tile.template write<Stored::float16_grid10>(thread, shared);
    case Stored::float16_grid11:
        return tile.template write<Stored::float16_grid11>(thread, shared);
    }
}

// Between the phases lies the barrier, so within one the order of threads must not matter: it can
// be turned around.  Shared memory starts as NaN: what no thread stored shows in the output.
template <class Voxel, bool SWAP, int FAST, int OUT, int ROWS, bool PAIRS = false>
void run(const Launch &launch) {
    using Tile = Tile<Voxel, SWAP, FAST, OUT, ROWS, PAIRS>;
    // What is stored does not depend on what was read: compiled once for all types of voxels.
    using Writer = ctgpu::Tile<short, false, FAST, OUT, ROWS, false>;
    const auto turn = [&](auto i, auto n) { return launch.backwards ? n - 1 - i : i; };
    const auto &[x, y, z] = launch.grid;
    std::vector<float> shared;
    for (int t = 0; t < x * y * z; ++t) {
        const int block = turn(t, x * y * z);
        const Place place(launch.batch, block % x, block / x % y, block / x / y);
        shared.assign(Tile::SHARED_FLOATS, std::numeric_limits<float>::quiet_NaN());
        const Tile tile(launch.batch, place);
        if (tile.is_sampled())
            for (unsigned int thread = 0; thread < THREADS; ++thread)
                tile.blend(turn(thread, THREADS + 0u), shared.data());
        for (unsigned int thread = 0; thread < THREADS; ++thread)
            write(Writer(launch.batch, place), launch.stored, turn(thread, THREADS + 0u),
                  shared.data());
    }
}

template <class Voxel, bool SWAP, int FAST, int ROWS = 1, bool PAIRS = false>
void run_to(const Launch &launch) {
    if (launch.out == AXIS_W)
        run<Voxel, SWAP, FAST, AXIS_W, ROWS, PAIRS>(launch);
    else
        run<Voxel, SWAP, FAST, AXIS_D, ROWS, PAIRS>(launch);
}

template <class Voxel, bool SWAP>
void run_along(const Launch &launch) {
    if (launch.rows == 4)
        run_to<Voxel, SWAP, AXIS_H, 4>(launch);
    else if (launch.fast == AXIS_H)
        run_to<Voxel, SWAP, AXIS_H>(launch);
    else if (launch.fast == AXIS_W)
        run_to<Voxel, SWAP, AXIS_W>(launch);
    else
        run_to<Voxel, SWAP, AXIS_D>(launch);
}

template <class Voxel>
void run_type(const Launch &launch) {
    if (launch.swap)
        run_along<Voxel, true>(launch);
    else
        run_along<Voxel, false>(launch);
}

}  // namespace

extern "C" {

// Does what a launch does.  `kind` and `size_bytes` are a NumPy dtype's, `stored` is a place in
// ctgpu::Stored.
int ctgpu_emulate(const Batch *batch, const int *grid, char kind, int size_bytes, int swap,
                  int fast, int out, int rows, int pairs, int stored, int backwards) {
    const Launch launch{*batch, {grid[0], grid[1], grid[2]}, swap != 0,     fast, out,
                        rows,   static_cast<Stored>(stored), backwards != 0};
    if (pairs) {
        run_to<short, false, AXIS_H, 4, true>(launch);
        return 0;
    }
    const auto with = [&](auto voxel) {
        run_type<decltype(voxel)>(launch);
        return 0;
    };
    switch (kind << 8 | size_bytes) {
    case 'i' << 8 | 1:
        return with(static_cast<signed char>(0));
    case 'i' << 8 | 2:
        return with(static_cast<short>(0));
    case 'i' << 8 | 4:
        return with(0);
    case 'i' << 8 | 8:
        return with(0LL);
    case 'u' << 8 | 1:
        return with(static_cast<unsigned char>(0));
    case 'u' << 8 | 2:
        return with(static_cast<unsigned short>(0));
    case 'u' << 8 | 4:
        return with(0U);
    case 'u' << 8 | 8:
        return with(0ULL);
    case 'f' << 8 | 2:
        return with(Half{});
    case 'f' << 8 | 4:
        return with(0.0f);
    case 'f' << 8 | 8:
        return with(0.0);
    default:
        return -1;
    }
}

}  // extern "C"
