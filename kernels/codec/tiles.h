// The tiles of a volume in memory, wherever its strides put them.

#ifndef CTGPU_CODEC_TILES_H
#define CTGPU_CODEC_TILES_H

#include "codec/codec.h"

#include <cstdlib>

namespace ctgpu::codec {

// Slabs of tiles that are turned together, so that memory where D is the fastest axis is read and
// written in runs of LANES voxels.
constexpr int MOST_SLABS = LANES / PLANES;

constexpr std::ptrdiff_t tiles_along(std::ptrdiff_t voxels, int each) {
    return (voxels + each - 1) / each;
}

// How the lanes of tiles lie in memory.
enum class Lie { lanes_adjoin, planes_adjoin, apart };

inline Lie lie_of(const Volume &volume) {
    if (volume.strides[2] == volume.voxel_bytes)
        return Lie::lanes_adjoin;
    return volume.strides[0] == volume.voxel_bytes ? Lie::planes_adjoin : Lie::apart;
}

inline std::uint8_t *voxel_at(const Volume &volume, std::ptrdiff_t d, std::ptrdiff_t h,
                              std::ptrdiff_t w) {
    return volume.voxels + d * volume.strides[0] + h * volume.strides[1] + w * volume.strides[2];
}

// Planes of LANES lanes, turned or gathered.
class Scratch {
  public:
    Scratch(int voxel_bytes, int rows, int planes)
        : row_bytes_(LANES * voxel_bytes), plane_bytes_(rows * row_bytes_),
          memory_(static_cast<std::size_t>(planes * plane_bytes_) + LINE_BYTES) {}

    std::uint8_t *row(std::ptrdiff_t plane, std::ptrdiff_t row) {
        const std::size_t skip = -reinterpret_cast<std::uintptr_t>(memory_.data()) % LINE_BYTES;
        return memory_.data() + skip + plane * plane_bytes_ + row * row_bytes_;
    }
    std::ptrdiff_t row_bytes() const { return row_bytes_; }
    std::ptrdiff_t plane_bytes() const { return plane_bytes_; }

  private:
    static constexpr std::size_t LINE_BYTES = 64;
    std::ptrdiff_t row_bytes_, plane_bytes_;
    std::vector<std::uint8_t> memory_;
};

// Makes tiles of a volume, or the first rows of them, ready to be encoded.
class TileReader {
  public:
    // Of up to so many rows.
    TileReader(const Variant &, const Volume &, int rows);

    // How many slabs are read at once for the least traffic.
    int slabs_at_once() const { return lie_ == Lie::planes_adjoin ? MOST_SLABS : 1; }

    // `count` tiles, one behind the other along D, the first of which begins at that voxel.
    void read(std::array<std::ptrdiff_t, 3> start, int rows, int count);

    // Of those that were read last, valid until the next are.
    TileShape shape(int tile) const;
    Source source(int tile);

  private:
    const Variant &variant_;
    const Volume &volume_;
    const Lie lie_;
    Scratch scratch_;
    std::array<std::ptrdiff_t, 3> start_{};
    int rows_ = 0, lanes_ = 0;
    bool direct_ = false;
};

}  // namespace ctgpu::codec

#endif
