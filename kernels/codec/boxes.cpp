// Boxes of a volume out of its tiles.

#include "codec/tiles.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace ctgpu::codec {
namespace {

// Of one axis: positions [begin, end).
struct Span {
    std::ptrdiff_t begin, end;

    std::ptrdiff_t size() const { return end - begin; }
    Span within(Span other) const {
        return {std::max(begin, other.begin), std::min(end, other.end)};
    }
};

// Makes one tile after the other, and takes what lies in the box to its place.
class BoxWriter {
  public:
    BoxWriter(const Variant &variant, const Stream &stream,
              const std::array<std::ptrdiff_t, 3> &volume_shape, const Box &box)
        : variant_(variant), stream_(stream), volume_shape_(volume_shape), box_(box),
          lie_(lie_of(box.out)), across_(tiles_along(volume_shape[2], LANES)) {}

    std::ptrdiff_t slab_of(const Member &member) const { return member.number / across_; }
    std::ptrdiff_t column_of(const Member &member) const { return member.number % across_; }
    std::ptrdiff_t tiles_across() const { return across_; }
    bool turns() const { return lie_ == Lie::planes_adjoin; }

    // One or more tiles, each behind the one before.
    std::optional<Damage> write(const Member *first, int count) {
        const Span along_d = tile_span(0, slab_of(*first) * PLANES, count * PLANES),
                   along_w = tile_span(2, column_of(*first) * LANES, LANES);
        const Span d = along_d.within(box_span(0)), h = box_span(1),
                   w = along_w.within(box_span(2));
        if (d.size() <= 0 || w.size() <= 0)
            return {};
        if (lie_ == Lie::lanes_adjoin && d.begin == along_d.begin && h.size() == volume_shape_[1] &&
            w.size() == along_w.size())
            return decode(*first, {place(d.begin, 0, w.begin), box_.out.strides[0],
                                   box_.out.strides[1], static_cast<int>(d.size())});
        if (!scratch_)
            scratch_.emplace(box_.out.voxel_bytes, static_cast<int>(volume_shape_[1]),
                             turns() ? LANES : PLANES);
        for (int n = 0; n < count; ++n) {
            const Span planes = tile_span(0, slab_of(first[n]) * PLANES, PLANES);
            const Span needed = planes.within(d);
            if (needed.size() <= 0)
                continue;
            const Target target{scratch_->row(n * PLANES, 0), scratch_->plane_bytes(),
                                scratch_->row_bytes(), static_cast<int>(needed.end - planes.begin)};
            if (const auto damage = decode(first[n], target))
                return damage;
        }
        move({d.begin - along_d.begin, d.end - along_d.begin}, h,
             {w.begin - along_w.begin, w.end - along_w.begin}, place(d.begin, h.begin, w.begin));
        return {};
    }

  private:
    // What of the volume's axis a tile has.
    Span tile_span(int axis, std::ptrdiff_t begin, std::ptrdiff_t size) const {
        return Span{begin, begin + size}.within({0, volume_shape_[axis]});
    }
    Span box_span(int axis) const {
        return {box_.start[axis], box_.start[axis] + box_.out.shape[axis]};
    }
    // Where a voxel of the volume goes.
    std::uint8_t *place(std::ptrdiff_t d, std::ptrdiff_t h, std::ptrdiff_t w) const {
        return voxel_at(box_.out, d - box_.start[0], h - box_.start[1], w - box_.start[2]);
    }

    std::optional<Damage> decode(const Member &member, const Target &target) {
        const Span planes = tile_span(0, slab_of(member) * PLANES, PLANES),
                   lanes = tile_span(2, column_of(member) * LANES, LANES);
        const TileShape shape{static_cast<int>(planes.size()), static_cast<int>(volume_shape_[1]),
                              static_cast<int>(lanes.size())};
        if (member.parts.raw) {
            copy_raw(member, shape, target);
            return {};
        }
        const Fault fault = variant_.decode_tile(stream_, shape, member.parts, member.data, target);
        if (fault == Fault::none)
            return {};
        return Damage{member.number, fault};
    }

    void copy_raw(const Member &member, const TileShape &shape, const Target &target) const {
        const std::uint8_t *from = member.data;
        const auto bytes = static_cast<std::size_t>(shape.lanes * box_.out.voxel_bytes);
        for (int p = 0; p < target.planes; ++p)
            for (int r = 0; r < shape.rows; ++r, from += bytes)
                std::memcpy(static_cast<char *>(target.voxels) + p * target.plane_stride +
                                r * target.row_stride,
                            from, bytes);
    }

    // From scratch to `out`.
    void move(Span d, Span h, Span w, std::uint8_t *out) {
        const std::array<std::ptrdiff_t, 3> &strides = box_.out.strides;
        const auto bytes = static_cast<std::ptrdiff_t>(box_.out.voxel_bytes);
        for (std::ptrdiff_t r = h.begin; r < h.end; ++r, out += strides[1]) {
            if (lie_ == Lie::planes_adjoin) {
                variant_.turn(box_.out.voxel_bytes,
                              {scratch_->row(d.begin, r) + w.begin * bytes, scratch_->plane_bytes(),
                               out, strides[2], static_cast<int>(d.size()),
                               static_cast<int>(w.size())});
                continue;
            }
            for (std::ptrdiff_t p = d.begin; p < d.end; ++p) {
                const std::uint8_t *from = scratch_->row(p, r) + w.begin * bytes;
                std::uint8_t *to = out + (p - d.begin) * strides[0];
                if (lie_ == Lie::lanes_adjoin) {
                    std::memcpy(to, from, static_cast<std::size_t>(w.size() * bytes));
                    continue;
                }
                for (std::ptrdiff_t n = w.begin; n < w.end; ++n, from += bytes, to += strides[2])
                    std::memcpy(to, from, static_cast<std::size_t>(bytes));
            }
        }
    }

    const Variant &variant_;
    const Stream &stream_;
    const std::array<std::ptrdiff_t, 3> &volume_shape_;
    const Box &box_;
    const Lie lie_;
    const std::ptrdiff_t across_;
    std::optional<Scratch> scratch_;
};

}  // namespace

std::optional<Damage> decode_box(const Variant &variant, const Stream &stream,
                                 const std::array<std::ptrdiff_t, 3> &volume_shape,
                                 const std::vector<Member> &members, const Box &box) {
    BoxWriter writer(variant, stream, volume_shape, box);
    if (!writer.turns()) {
        for (const Member &member : members)
            if (const auto damage = writer.write(&member, 1))
                return damage;
        return {};
    }
    // Columns of tiles, in runs along D.
    std::vector<Member> columns = members;
    std::ranges::stable_sort(columns, {}, [&](const Member &member) {
        return std::pair{writer.column_of(member), writer.slab_of(member)};
    });
    for (std::size_t begin = 0, end; begin < columns.size(); begin = end) {
        end = begin + 1;
        while (end < columns.size() && end - begin < MOST_SLABS &&
               columns[end].number - columns[end - 1].number == writer.tiles_across())
            ++end;
        if (const auto damage = writer.write(&columns[begin], static_cast<int>(end - begin)))
            return damage;
    }
    return {};
}

}  // namespace ctgpu::codec
