// The CUDA kernel's blocks and threads, run one after the other on the host.
//
// tests/engines build this with the C++ compiler at hand and hold it against the CPU engine, so
// that on a machine without a GPU only launching and moving memory remain unproven.

#include "tile.h"

#include <limits>
#include <vector>

namespace {

using namespace ctgpu;

template <class Tile>
void write(const Tile &tile, Stored stored, int thread, const float *shared) {
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
template <class Voxel, bool SWAP, int FAST, int OUT>
void run(const Volume *volumes, int count, Stored stored, bool backwards) {
    using Tile = Tile<Voxel, SWAP, FAST, OUT>;
    // What is stored does not depend on what was read: compiled once for all types of voxels.
    using Writer = ctgpu::Tile<short, false, FAST, OUT>;
    const auto turn = [backwards](int i, int n) { return backwards ? n - 1 - i : i; };
    std::vector<float> shared;
    for (int v = 0; v < count; ++v) {
        const int tiles = Tile::tiles_of(volumes[v]);
        for (int t = 0; t < tiles; ++t) {
            shared.assign(SHARED_FLOATS, std::numeric_limits<float>::quiet_NaN());
            const Tile tile(volumes[v], turn(t, tiles));
            if (tile.is_sampled())
                for (int thread = 0; thread < THREADS; ++thread)
                    tile.blend(turn(thread, THREADS), shared.data());
            for (int thread = 0; thread < THREADS; ++thread)
                write(Writer(volumes[v], turn(t, tiles)), stored, turn(thread, THREADS),
                      shared.data());
        }
    }
}

template <class Voxel, bool SWAP, int FAST>
void run_to(int out, const Volume *volumes, int count, Stored stored, bool backwards) {
    if (out == AXIS_W)
        run<Voxel, SWAP, FAST, AXIS_W>(volumes, count, stored, backwards);
    else
        run<Voxel, SWAP, FAST, AXIS_D>(volumes, count, stored, backwards);
}

template <class Voxel, bool SWAP>
void run_along(int fast, int out, const Volume *volumes, int count, Stored stored, bool backwards) {
    if (fast == AXIS_H)
        run_to<Voxel, SWAP, AXIS_H>(out, volumes, count, stored, backwards);
    else if (fast == AXIS_W)
        run_to<Voxel, SWAP, AXIS_W>(out, volumes, count, stored, backwards);
    else
        run_to<Voxel, SWAP, AXIS_D>(out, volumes, count, stored, backwards);
}

template <class Voxel>
void run_type(bool swap, int fast, int out, const Volume *volumes, int count, Stored stored,
              bool backwards) {
    if (swap)
        run_along<Voxel, true>(fast, out, volumes, count, stored, backwards);
    else
        run_along<Voxel, false>(fast, out, volumes, count, stored, backwards);
}

}  // namespace

extern "C" {

// Blocks that a launch needs for this volume, or -1 for axes that the kernel does not know.
int ctgpu_tiles(const Volume *volume, int fast, int out) {
    // Which tile shape is used depends on the two axes alone.
    if (out != AXIS_W && out != AXIS_D)
        return -1;
    if (fast == AXIS_H)
        return out == AXIS_W ? Tile<short, false, AXIS_H, AXIS_W>::tiles_of(*volume)
                             : Tile<short, false, AXIS_H, AXIS_D>::tiles_of(*volume);
    if (fast == AXIS_W)
        return out == AXIS_W ? Tile<short, false, AXIS_W, AXIS_W>::tiles_of(*volume)
                             : Tile<short, false, AXIS_W, AXIS_D>::tiles_of(*volume);
    if (fast == AXIS_D)
        return out == AXIS_W ? Tile<short, false, AXIS_D, AXIS_W>::tiles_of(*volume)
                             : Tile<short, false, AXIS_D, AXIS_D>::tiles_of(*volume);
    return -1;
}

// Does what a launch does.  `kind` and `size_bytes` are a NumPy dtype's, `stored` is a place in
// ctgpu::Stored.
int ctgpu_emulate(const Volume *volumes, int count, char kind, int size_bytes, int swap, int fast,
                  int out, int stored, int backwards) {
    const auto with = [&](auto voxel) {
        run_type<decltype(voxel)>(swap != 0, fast, out, volumes, count, static_cast<Stored>(stored),
                                  backwards != 0);
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
