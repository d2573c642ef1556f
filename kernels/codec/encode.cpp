// Whole volumes, tile by tile.

#include "codec/tiles.h"

#include <algorithm>
#include <cstring>

namespace ctgpu::codec {

Workspace::Workspace(int rows) {
    const std::size_t groups = static_cast<std::size_t>(PLANES) * rows;
    // Each with what more writers may touch.
    codes.resize(groups + 1);
    packed.resize(groups * LANES * sizeof(std::uint16_t) + PACK_BYTES);
    quotients.resize(groups * sizeof(std::uint64_t) + sizeof(std::uint64_t));
    significands.resize(groups * LANES * sizeof(std::uint16_t) + sizeof(std::uint64_t));
    plane.resize(static_cast<std::size_t>(rows) * LANES);
}

void encode_volume(const Variant &variant, const Volume &volume, const Stream &stream,
                   std::uint32_t *table, std::uint8_t *out) {
    const auto [depth, height, width] = volume.shape;
    const std::ptrdiff_t across = tiles_along(width, LANES), slabs = tiles_along(depth, PLANES);
    const std::ptrdiff_t slab_bytes = PLANES * height * width * volume.voxel_bytes;
    TileReader reader(variant, volume, static_cast<int>(height));
    Workspace space(static_cast<int>(height));
    const int at_once = reader.slabs_at_once();
    for (std::ptrdiff_t first = 0; first < slabs; first += at_once) {
        const int count = static_cast<int>(std::min<std::ptrdiff_t>(at_once, slabs - first));
        // Slabs that are encoded together begin where they would if nothing before could be
        // compressed, and then move up.
        std::uint8_t *ends[MOST_SLABS];
        for (int s = 0; s < count; ++s)
            ends[s] = out + s * slab_bytes;
        for (std::ptrdiff_t w = 0; w < across; ++w) {
            reader.read({first * PLANES, 0, w * LANES}, static_cast<int>(height), count);
            for (int s = 0; s < count; ++s) {
                const Parts parts =
                    variant.encode_tile(stream, reader.shape(s), reader.source(s), space, ends[s]);
                ends[s] += parts.size;
                const std::uint32_t entry[] = {parts.size, parts.packed, parts.quotients,
                                               parts.raw};
                std::copy_n(entry, 4, table + 6 * ((first + s) * across + w));
            }
        }
        std::uint8_t *end = ends[0];
        for (int s = 1; s < count; ++s) {
            const std::uint8_t *const begin = out + s * slab_bytes;
            const auto bytes = ends[s] - begin;
            std::memmove(end, begin, static_cast<std::size_t>(bytes));
            end += bytes;
        }
        out = end;
    }
}

}  // namespace ctgpu::codec
