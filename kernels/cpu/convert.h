// The first steps of a voxel: rows of the source to float32 HU, clipped, for kernel.h.

#include "cpu/tile.h"

#include <cstdlib>
#include <cstring>

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

constexpr int V = Vec::width;
static_assert(LANES % V == 0);

template <class T>
T load_item(const char *at, bool swapped) {
    unsigned char bytes[sizeof(T)];
    for (std::size_t b = 0; b < sizeof(T); ++b)
        bytes[b] = static_cast<unsigned char>(at[swapped ? sizeof(T) - 1 - b : b]);
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

struct Half {
    std::uint16_t bits;
    explicit operator float() const { return from_half(bits); }
};

// Any dtype, stride and byte order; `positions` counts strides, or is null for 0, 1, 2, ...
template <class T>
void convert_items(const Source &source, const char *at, std::ptrdiff_t stride,
                   const std::int32_t *positions, int n, float *out) {
    if (positions == nullptr && !source.swapped) {
        for (int x = 0; x < n; ++x) {
            T value;
            std::memcpy(&value, at + x * stride, sizeof value);
            out[x] = static_cast<float>(value);
        }
        return;
    }
    for (int x = 0; x < n; ++x) {
        const std::ptrdiff_t position = positions == nullptr ? x : positions[x];
        out[x] = static_cast<float>(load_item<T>(at + position * stride, source.swapped));
    }
}

void convert_any(const Source &source, const char *at, std::ptrdiff_t stride,
                 const std::int32_t *positions, int n, float *out) {
    switch (source.dtype) {
    case Dtype::int8:
        return convert_items<std::int8_t>(source, at, stride, positions, n, out);
    case Dtype::uint8:
        return convert_items<std::uint8_t>(source, at, stride, positions, n, out);
    case Dtype::int16:
        return convert_items<std::int16_t>(source, at, stride, positions, n, out);
    case Dtype::uint16:
        return convert_items<std::uint16_t>(source, at, stride, positions, n, out);
    case Dtype::int32:
        return convert_items<std::int32_t>(source, at, stride, positions, n, out);
    case Dtype::uint32:
        return convert_items<std::uint32_t>(source, at, stride, positions, n, out);
    case Dtype::float16:
        return convert_items<Half>(source, at, stride, positions, n, out);
    case Dtype::float32:
        return convert_items<float>(source, at, stride, positions, n, out);
    case Dtype::float64:
        return convert_items<double>(source, at, stride, positions, n, out);
    }
}

// load_hu of preprocess_math.h on vectors.
struct ToHu {
    Vec slope, intercept, lo, hi;
    bool rescales, clips;

    explicit ToHu(const Intensity &p)
        : slope(Vec::all(p.slope)), intercept(Vec::all(p.intercept)), lo(Vec::all(p.clip_lo)),
          hi(Vec::all(p.clip_hi)), rescales(p.rescales), clips(p.clips_before) {}

    Vec operator()(Vec x) const {
        if (rescales)
            x = fma(slope, x, intercept);
        return clips ? clip(x, lo, hi) : x;
    }
};

// Voxels that lie side by side, by vectors; the last one overlaps its neighbour instead of reading
// past the end.  True if it was done.
template <class T, bool backwards>
bool convert_run(const char *at, int n, const Intensity &intensity, float *out) {
    const ToHu to_hu(intensity);  // one of its own stays in registers
    constexpr auto BYTES = static_cast<std::ptrdiff_t>(sizeof(T));
    if (n < V)
        return false;
    if constexpr (backwards) {
        const auto convert = [&](int x) {
            to_hu(Vec::convert<T>(at - (x + V - 1) * BYTES).reversed()).store(out + x);
        };
        convert(n - V);
        for (int x = (n - V) / V * V; x >= 0; x -= V)
            convert(x);
    } else {
        const auto convert = [&](int x) { to_hu(Vec::convert<T>(at + x * BYTES)).store(out + x); };
        for (int x = 0; x < n - V; x += V)
            convert(x);
        convert(n - V);
    }
    return true;
}

template <class T>
bool convert_contiguous(const char *at, std::ptrdiff_t stride, int n, const Intensity &intensity,
                        float *out) {
    return stride < 0 ? convert_run<T, true>(at, n, intensity, out)
                      : convert_run<T, false>(at, n, intensity, out);
}

void convert_row(const Task &task, const char *at, std::ptrdiff_t stride,
                 const std::int32_t *positions, int n, float *out) {
    const Source &source = task.source;
    if (positions == nullptr && !source.swapped && std::abs(stride) == item_bytes(source.dtype)) {
        switch (source.dtype) {
        case Dtype::int16:
            if (convert_contiguous<std::int16_t>(at, stride, n, task.intensity, out))
                return;
            break;
        case Dtype::uint16:
            if (convert_contiguous<std::uint16_t>(at, stride, n, task.intensity, out))
                return;
            break;
        case Dtype::float32:
            if (convert_contiguous<float>(at, stride, n, task.intensity, out))
                return;
            break;
        default:
            break;
        }
    }
    convert_any(source, at, stride, positions, n, out);
    const ToHu to_hu(task.intensity);
    for (int x = 0; x < n; x += V)
        to_hu(Vec::load(out + x)).store(out + x);
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
