#include "codec/tiles.h"

#include <algorithm>
#include <cstring>

namespace ctgpu::codec {
namespace {

// Rows whose lines are asked for ahead: each of their lines lies apart, where hardware does not see
// it coming.
constexpr std::ptrdiff_t ROWS_AHEAD = 2;

}  // namespace

TileReader::TileReader(const Variant &variant, const Volume &volume, int rows)
    : variant_(variant), volume_(volume), lie_(lie_of(volume)),
      scratch_(volume.voxel_bytes, rows, PLANES * slabs_at_once()) {}

void TileReader::read(std::array<std::ptrdiff_t, 3> start, int rows, int count) {
    const auto [d0, h0, w0] = start;
    start_ = start;
    rows_ = rows;
    lanes_ = static_cast<int>(std::min<std::ptrdiff_t>(LANES, volume_.shape[2] - w0));
    direct_ = lie_ == Lie::lanes_adjoin && lanes_ == LANES;
    if (direct_)
        return;
    const auto planes =
        static_cast<int>(std::min<std::ptrdiff_t>(count * PLANES, volume_.shape[0] - d0));
    const auto bytes = static_cast<std::size_t>(volume_.voxel_bytes);
    for (int r = 0; r < rows; ++r) {
        if (lie_ == Lie::planes_adjoin) {
            const std::uint8_t *const from = voxel_at(volume_, d0, h0 + r, w0);
            if (r + ROWS_AHEAD < rows)
                for (int w = 0; w < lanes_; ++w)
                    __builtin_prefetch(from + ROWS_AHEAD * volume_.strides[1] +
                                       w * volume_.strides[2]);
            variant_.turn(volume_.voxel_bytes, {from, volume_.strides[2], scratch_.row(0, r),
                                                scratch_.plane_bytes(), lanes_, planes});
            continue;
        }
        for (int d = 0; d < planes; ++d) {
            const std::uint8_t *from = voxel_at(volume_, d0 + d, h0 + r, w0);
            std::uint8_t *to = scratch_.row(d, r);
            for (int w = 0; w < lanes_; ++w, from += volume_.strides[2], to += bytes)
                std::memcpy(to, from, bytes);
        }
    }
}

TileShape TileReader::shape(int tile) const {
    const std::ptrdiff_t left = volume_.shape[0] - start_[0] - tile * PLANES;
    return {static_cast<int>(std::min<std::ptrdiff_t>(PLANES, left)), rows_, lanes_};
}

Source TileReader::source(int tile) {
    if (direct_)
        return {voxel_at(volume_, start_[0] + tile * PLANES, start_[1], start_[2]),
                volume_.strides[0], volume_.strides[1]};
    return {scratch_.row(tile * PLANES, 0), scratch_.plane_bytes(), scratch_.row_bytes()};
}

}  // namespace ctgpu::codec
