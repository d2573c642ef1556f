// The codec of docs/ctz.md on a CPU: what each variant of it does, and whole volumes by it.

#ifndef CTGPU_CODEC_CODEC_H
#define CTGPU_CODEC_CODEC_H

#include "codec/ctz.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ctgpu::codec {

// Voxels of a tile that lie in memory with lanes side by side, LANES of them readable in every row;
// the other axes by strides in bytes.
struct Source {
    const void *voxels;
    std::ptrdiff_t plane_stride, row_stride;
};

// What a row may write behind its place among packed bits.
constexpr int PACK_BYTES = 64;

// The parts of a tile while it is encoded, and the numbers of its last plane.
struct Workspace {
    explicit Workspace(int rows);

    std::vector<std::uint8_t> codes, packed, quotients, significands;
    std::vector<std::uint16_t> plane;
};

// Of the least squares that weights are: products of the three differences that they weigh, in the
// order uu, uv, us, vv, vs, ss, and of each with what they have to make up for.
struct Moments {
    std::array<std::int64_t, 6> products;
    std::array<std::int64_t, 3> targets;
};

// A block of up to LANES x LANES voxels, rows by columns, that is written columns by rows; pitches
// in bytes.
struct Turn {
    const void *in;
    std::ptrdiff_t in_pitch;
    void *out;
    std::ptrdiff_t out_pitch;
    int rows, columns;
};

struct Variant {
    const char *name;

    // Decodes the first `target.planes` planes of a tile of form 0.  `data` has SLACK_BYTES
    // readable bytes behind it; nothing behind those is read, and nothing outside the target
    // written, whatever the bytes are.
    Fault (*decode_tile)(const Stream &, const TileShape &, const Parts &, const std::uint8_t *data,
                         const Target &);

    // Writes a tile, as long as its voxels at most, to `out`.
    Parts (*encode_tile)(const Stream &, const TileShape &, const Source &, Workspace &,
                         std::uint8_t *out);

    // Adds up a tile, as far as its kind holds it.
    void (*measure_tile)(const Stream &, const TileShape &, const Source &, Workspace &, Moments &);

    void (*turn)(int voxel_bytes, const Turn &);
};

// Those that this CPU can run, the best first.
std::vector<const Variant *> usable_variants();

// The one of that name, or the best for "".  Throws std::invalid_argument for an unknown name and
// std::runtime_error for one that this CPU cannot run.
const Variant &find_variant(const std::string &name);

// Voxels of 1 or 2 bytes, axes D, H, W, strides in bytes.
struct Volume {
    std::uint8_t *voxels;
    int voxel_bytes;
    std::array<std::ptrdiff_t, 3> shape, strides;
};

// Parameters of a volume that its tiles do not depend on each other in: the fewest bytes of those
// that were tried, the same on every variant.
Stream choose_stream(const Variant &, const Volume &, Kind, Coding, std::optional<int> grid);

// Writes the tiles of a volume one after the other to `out`, which is as long as the volume; the
// first four columns of `table`, six a tile, say where they are.
void encode_volume(const Variant &, const Volume &, const Stream &, std::uint32_t *table,
                   std::uint8_t *out);

// One tile among those that lie in memory one after the other.
struct Member {
    std::ptrdiff_t number;
    Parts parts;
    const std::uint8_t *data;
};

// A box of a volume: its first voxel, and where its voxels go.
struct Box {
    std::array<std::ptrdiff_t, 3> start;
    Volume out;
};

struct Damage {
    std::ptrdiff_t number;
    Fault fault;
};

// Writes what of the tiles lies in a box; the first tile that is damaged, if any.
std::optional<Damage> decode_box(const Variant &, const Stream &,
                                 const std::array<std::ptrdiff_t, 3> &volume_shape,
                                 const std::vector<Member> &, const Box &);

}  // namespace ctgpu::codec

#endif
