#include "foreground.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace nb = nanobind;

namespace {

// Any strides but the last one, which is that of neighbours.
template <class T>
using Voxels = nb::ndarray<const T, nb::ndim<3>, nb::device::cpu>;

// Finds the box without a look at what lies inside of it.
//
// The first and the last planes are looked for from either end.  The planes between them, and the
// lines and voxels of each, are read from their ends up to the box as it is by then: what a plane
// has outside of it makes it larger.
template <class T>
class Search {
  public:
    Search(const T *voxels, const std::size_t (&shape)[3], const std::ptrdiff_t (&strides)[2],
           T least, T most)
        : voxels_(voxels), planes_(shape[0]), lines_(shape[1]), items_(shape[2]),
          plane_stride_(strides[0]), line_stride_(strides[1]), least_(least), most_(most),
          line_begin_(lines_), item_begin_(items_) {}

    // Begin and end of each axis; empty where no voxel is in the range.
    std::vector<std::ptrdiff_t> find() {
        std::ptrdiff_t begin = 0, end = planes_;
        while (begin < end && !touches_plane(begin))
            ++begin;
        if (begin == end)
            return {};
        while (!touches_plane(end - 1))
            --end;
        for (std::ptrdiff_t plane = begin + 1; plane < end - 1; ++plane)
            grow_by_plane(plane);
        return {begin, line_begin_, item_begin_, end, line_end_, item_end_};
    }

  private:
    const T *line_at(std::ptrdiff_t plane, std::ptrdiff_t line) const {
        return voxels_ + plane * plane_stride_ + line * line_stride_;
    }

    bool touches_plane(std::ptrdiff_t plane) {
        if (grow_by_plane(plane))
            return true;
        for (std::ptrdiff_t line = line_begin_; line < line_end_; ++line)
            if (is_any(line_at(plane, line), item_begin_, item_end_))
                return true;
        return false;
    }

    // Whether a voxel of the plane lay outside of the box.
    bool grow_by_plane(std::ptrdiff_t plane) {
        bool grown = false;
        if (is_any_in_lines(plane, 0, line_begin_)) {
            std::ptrdiff_t line = 0;
            while (!is_any(line_at(plane, line), 0, items_))
                ++line;
            line_begin_ = line;
            line_end_ = std::max(line_end_, line + 1);
            grown = true;
        }
        if (line_end_ > 0 && is_any_in_lines(plane, line_end_, lines_)) {
            line_end_ = lines_;
            while (!is_any(line_at(plane, line_end_ - 1), 0, items_))
                --line_end_;
            grown = true;
        }
        for (std::ptrdiff_t line = line_begin_; line < line_end_; ++line) {
            // The next ends of lines lie too far apart for hardware to foresee them.
            prefetch(line_at(plane, line + LINES_AHEAD));
            grown |= grow_by_line(line_at(plane, line));
        }
        return grown;
    }

    // Whether one of the lines begin ... end - 1 of a plane has such a voxel.
    bool is_any_in_lines(std::ptrdiff_t plane, std::ptrdiff_t begin, std::ptrdiff_t end) const {
        if (line_stride_ == items_)  // one long line
            return is_any(line_at(plane, begin), 0, (end - begin) * items_);
        for (std::ptrdiff_t line = begin; line < end; ++line)
            if (is_any(line_at(plane, line), 0, items_))
                return true;
        return false;
    }

    // Asks for what of a line lies outside of the box; past the end of the voxels it does no harm.
    void prefetch(const T *line) const {
        constexpr auto STEP = static_cast<std::ptrdiff_t>(64 / sizeof(T));
        for (std::ptrdiff_t x = 0; x < item_begin_; x += STEP)
            __builtin_prefetch(line + x);
        for (std::ptrdiff_t x = item_end_; x < items_; x += STEP)
            __builtin_prefetch(line + x);
    }

    bool grow_by_line(const T *line) {
        const std::ptrdiff_t begin = item_begin_, end = item_end_;
        for (std::ptrdiff_t x = 0; x < item_begin_; x += BLOCK) {
            const std::ptrdiff_t block_end = std::min(x + BLOCK, item_begin_);
            if (is_any_of(line + x, block_end - x)) {
                while (!holds(line[x]))
                    ++x;
                item_begin_ = x;
                item_end_ = std::max(item_end_, x + 1);
            }
        }
        for (std::ptrdiff_t x = items_; x > item_end_; x -= BLOCK) {
            const std::ptrdiff_t block_begin = std::max(x - BLOCK, item_end_);
            if (is_any_of(line + block_begin, x - block_begin)) {
                while (!holds(line[x - 1]))
                    --x;
                item_end_ = x;
            }
        }
        return item_begin_ != begin || item_end_ != end;
    }

    bool is_any(const T *line, std::ptrdiff_t begin, std::ptrdiff_t end) const {
        for (std::ptrdiff_t x = begin; x < end; x += BLOCK)
            if (is_any_of(line + x, std::min(BLOCK, end - x)))
                return true;
        return false;
    }

    // Without a branch in it, so that compilers make vectors of it.
    bool is_any_of(const T *at, std::ptrdiff_t n) const {
        Flag found = 0;
        for (std::ptrdiff_t x = 0; x < n; ++x)
            found |= static_cast<Flag>(holds(at[x]));
        return found != 0;
    }

    bool holds(T voxel) const { return (voxel >= least_) & (voxel <= most_); }

    static constexpr std::ptrdiff_t BLOCK = 512, LINES_AHEAD = 6;
    // As wide as a voxel, so that both fill the same vectors.
    using Flag = std::conditional_t<
        sizeof(T) == 1, std::uint8_t,
        std::conditional_t<sizeof(T) == 2, std::uint16_t,
                           std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>>;

    const T *const voxels_;
    const std::ptrdiff_t planes_, lines_, items_, plane_stride_, line_stride_;
    const T least_, most_;
    // The box so far, empty at first.
    std::ptrdiff_t line_begin_, line_end_ = 0, item_begin_, item_end_ = 0;
};

template <class T>
std::vector<std::ptrdiff_t> foreground_box(const Voxels<T> &voxels, T least, T most) {
    if (voxels.shape(2) > 1 && voxels.stride(2) != 1)
        throw nb::value_error("the last axis is not contiguous");
    nb::gil_scoped_release unlocked;
    return Search<T>(voxels.data(), {voxels.shape(0), voxels.shape(1), voxels.shape(2)},
                     {voxels.stride(0), voxels.stride(1)}, least, most)
        .find();
}

template <class T>
void bind_for(nb::module_ &module) {
    module.def("foreground_box", &foreground_box<T>, nb::arg("voxels").noconvert(),
               nb::arg("least"), nb::arg("most"));
}

}  // namespace

void bind_foreground(nb::module_ &module) {
    bind_for<std::int8_t>(module);
    bind_for<std::uint8_t>(module);
    bind_for<std::int16_t>(module);
    bind_for<std::uint16_t>(module);
    bind_for<std::int32_t>(module);
    bind_for<std::uint32_t>(module);
    bind_for<std::int64_t>(module);
    bind_for<std::uint64_t>(module);
    bind_for<float>(module);
    bind_for<double>(module);
}
