// One float: the portable vector, and the definition of what the others do.

#include "cpu/tile.h"

#include <cstring>

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

struct Vec {
    static constexpr int width = 1;
    static constexpr int unroll = 4;  // vectors that blend_rows keeps at a time
    static constexpr int block = 1;   // side of the blocks that turn_block turns

    float v;

    static Vec all(float x) { return {x}; }
    static Vec load(const float *at) { return {*at}; }
    template <class T>
    static Vec convert(const char *at) {
        T value;
        std::memcpy(&value, at, sizeof value);
        return {static_cast<float>(value)};
    }
    void store(float *at) const { *at = v; }
    Vec reversed() const { return *this; }  // the last element first
};

inline Vec fma(Vec a, Vec b, Vec c) { return {fused(a.v, b.v, c.v)}; }
inline Vec clip(Vec v, Vec lo, Vec hi) { return {ctgpu::clip(v.v, lo.v, hi.v)}; }
inline Vec lerp(Vec a, Vec b, Vec w) { return {ctgpu::lerp(a.v, b.v, w.v)}; }

template <int G>
Vec on_grid(Vec x) {
    return {ctgpu::on_grid<G>(x.v)};
}

// Rounded to what is stored.
inline std::uint16_t to_half(Vec x) { return ctgpu::to_half(x.v); }
inline std::uint16_t to_bfloat(Vec x) { return ctgpu::to_bfloat(x.v); }
inline std::uint16_t to_int16(Vec x) { return ctgpu::to_int16(x.v); }
inline std::uint8_t to_uint8(Vec x) { return ctgpu::to_uint8(x.v); }

// All of a rounded vector, or its first n elements.
template <class Voxel>
void save(Voxel x, Voxel *at) {
    *at = x;
}
template <class Voxel>
void save(Voxel x, Voxel *at, int) {
    *at = x;
}

inline void transpose(Vec (&)[1]) {}

// Elements first[0 ...] and second[0 ...] of a row.
inline void pick(const float *row, const std::int32_t *first, const std::int32_t *second, Vec &a,
                 Vec &b) {
    a = {row[*first]};
    b = {row[*second]};
}

template <class Voxel>
void turn_block(const Voxel *in, std::ptrdiff_t, Voxel *out, std::ptrdiff_t) {
    *out = *in;
}

// A copy that need not stay in the cache.
inline void stream(void *out, const void *in, std::ptrdiff_t bytes) {
    std::memcpy(out, in, static_cast<std::size_t>(bytes));
}
inline void finish_streams() {}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
