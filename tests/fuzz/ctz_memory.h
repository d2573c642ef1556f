// What a fuzzer of the codec has to say where memory begins and ends, and what may be written of
// it.

#ifndef CTGPU_TESTS_CTZ_MEMORY_H
#define CTGPU_TESTS_CTZ_MEMORY_H

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace ctz_memory {

using Shape = std::array<std::ptrdiff_t, 3>;
using Voxels = std::vector<std::uint16_t>;

inline void require(bool holds, const std::string &what) {
    if (!holds)
        throw std::logic_error(what);
}

// The bytes of an input one after the other, and zeros behind them.
class Input {
  public:
    Input(const std::uint8_t *begin, std::size_t size) : bytes_(begin, size) {}

    int byte() { return at_ < bytes_.size() ? bytes_[at_++] : 0; }
    int below(int count) { return byte() % count; }
    int number() {
        const int low = byte();
        return static_cast<std::int16_t>(low | byte() << 8);
    }
    std::span<const std::uint8_t> rest() { return bytes_.subspan(at_); }

  private:
    std::span<const std::uint8_t> bytes_;
    std::size_t at_ = 0;
};

// Memory of exactly its size, so that AddressSanitizer sees one byte too many, from the beginning
// of a line on.
class Memory {
  public:
    explicit Memory(std::size_t size, std::uint8_t fill = 0)
        : size_(size), bytes_(new (std::align_val_t{64}) std::uint8_t[size]) {
        std::fill_n(bytes_.get(), size, fill);
    }
    std::uint8_t *begin() { return bytes_.get(); }
    std::size_t size() const { return size_; }
    bool operator==(const Memory &other) const {
        return std::equal(bytes_.get(), bytes_.get() + size_, other.bytes_.get());
    }

  private:
    struct Delete {
        void operator()(std::uint8_t *bytes) const {
            ::operator delete[](bytes, std::align_val_t{64});
        }
    };
    std::size_t size_;
    std::unique_ptr<std::uint8_t[], Delete> bytes_;
};

// How the voxels of a box lie in memory, with gaps that nobody may write to.
struct Layout {
    Shape shape{}, strides{};
    std::ptrdiff_t origin = 0;
    std::size_t bytes = 0;

    Layout(const Shape &of, int voxel_bytes, const std::array<int, 3> &order, Input &input)
        : shape(of) {
        // Tight, with lines of their own for each run, or with gaps that align to nothing.
        const int gaps = input.below(4), backwards = input.byte();
        origin = gaps < 2 ? 0 : input.below(8) * voxel_bytes;
        std::ptrdiff_t step = voxel_bytes, last = origin;
        for (int n = 0; n < 3; ++n) {
            const int axis = order[n];
            const std::ptrdiff_t reach = (shape[axis] - 1) * step;
            // Callers have the lanes of a tile side by side.
            const bool turned = n > 0 && (backwards >> n & 1);
            strides[axis] = turned ? -step : step;
            origin += turned ? reach : 0;
            last += reach;
            step *= shape[axis];
            if (gaps == 1)
                step = (step + 63) / 64 * 64;
            else if (gaps > 1)
                step += input.below(8) * voxel_bytes;
        }
        bytes = static_cast<std::size_t>(last + voxel_bytes);
    }

    std::ptrdiff_t at(std::ptrdiff_t d, std::ptrdiff_t h, std::ptrdiff_t w) const {
        return origin + d * strides[0] + h * strides[1] + w * strides[2];
    }
    // Calls of(number in the order D, H, W; place) for each voxel.
    template <class Of>
    void each(const Of &of) const {
        std::size_t number = 0;
        for (std::ptrdiff_t d = 0; d < shape[0]; ++d)
            for (std::ptrdiff_t h = 0; h < shape[1]; ++h)
                for (std::ptrdiff_t w = 0; w < shape[2]; ++w)
                    of(number++, at(d, h, w));
    }
};

inline Memory placed(const Layout &layout, const Voxels &voxels, int voxel_bytes,
                     std::uint8_t fill) {
    Memory memory(layout.bytes, fill);
    layout.each([&](std::size_t number, std::ptrdiff_t at) {
        std::memcpy(memory.begin() + at, &voxels[number], static_cast<std::size_t>(voxel_bytes));
    });
    return memory;
}

// Holds what was written against what had to be: nothing outside the box, and in it the voxels,
// where the tiles say them.
class Expected {
  public:
    Expected(const Layout &layout, int voxel_bytes) : layout_(layout), voxel_bytes_(voxel_bytes) {}

    Memory target() const { return Memory(layout_.bytes, FILL); }

    void check(Memory &written, const Voxels *voxels, const std::string &by) const {
        const auto bytes = static_cast<std::size_t>(voxel_bytes_);
        layout_.each([&](std::size_t number, std::ptrdiff_t at) {
            std::uint8_t *const voxel = written.begin() + at;
            if (voxels && std::memcmp(voxel, &(*voxels)[number], bytes) != 0)
                throw std::logic_error(by + " gives voxel " + std::to_string(number) +
                                       " other bits than " + std::to_string((*voxels)[number]));
            std::fill_n(voxel, bytes, FILL);
        });
        require(written == target(), by + " writes outside its target");
    }

  private:
    static constexpr std::uint8_t FILL = 0xA7;
    const Layout &layout_;
    int voxel_bytes_;
};

}  // namespace ctz_memory

#endif
