// The CUDA decoder of `.ctz` on the host, where a warp is an array of lanes.
//
// tests/engines build this with the C++ compiler at hand, so that without a GPU too whole volumes
// and damaged ones can be decoded as the kernel does it.

#include "ctz_tile.h"

#include <vector>

namespace {

using namespace ctgpu;

template <Kind KIND, Coding CODING>
void run(const CtzVolume *volumes, const CtzTile *tiles, int count, unsigned char *faults) {
    std::vector<unsigned> ones(ONES, 0xa5a5a5a5u);
    for (int n = 0; n < count; ++n) {
        TileDecoder<KIND, CODING> decoder(volumes[tiles[n].volume], tiles[n], ones.data());
        faults[n] = static_cast<unsigned char>(decoder.run());
    }
}

template <Kind KIND>
void run_coding(Coding coding, const CtzVolume *volumes, const CtzTile *tiles, int count,
                unsigned char *faults) {
    if (coding == Coding::pack)
        run<KIND, Coding::pack>(volumes, tiles, count, faults);
    else
        run<KIND, Coding::rice>(volumes, tiles, count, faults);
}

}  // namespace

extern "C" {

// Does what a launch does.  `kind` and `coding` are places in codec::Kind and codec::Coding.
void ctgpu_emulate_ctz(int kind, int coding, const CtzVolume *volumes, const CtzTile *tiles,
                       int count, unsigned char *faults) {
    const auto chosen = static_cast<Coding>(coding);
    switch (static_cast<Kind>(kind)) {
    case Kind::uint8:
        return run_coding<Kind::uint8>(chosen, volumes, tiles, count, faults);
    case Kind::int16:
        return run_coding<Kind::int16>(chosen, volumes, tiles, count, faults);
    case Kind::grid:
        return run_coding<Kind::grid>(chosen, volumes, tiles, count, faults);
    case Kind::float16:
        return run_coding<Kind::float16>(chosen, volumes, tiles, count, faults);
    case Kind::bfloat16:
        return run_coding<Kind::bfloat16>(chosen, volumes, tiles, count, faults);
    }
}

}  // extern "C"
