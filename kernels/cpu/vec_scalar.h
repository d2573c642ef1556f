// One float: the portable vector, and the definition of what the others do.

#include "cpu/tile.h"

#include <cstring>

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

struct Vec {
    static constexpr int width = 1;
    static constexpr int unroll = 4;      // vectors that blend_columns keeps at a time
    static constexpr int half_block = 1;  // side of the blocks that transpose_half turns

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
    void store_half(std::uint16_t *at) const { *at = to_half(v); }
    void store_half(std::uint16_t *at, int) const { *at = to_half(v); }
};

inline Vec fma(Vec a, Vec b, Vec c) { return {fused(a.v, b.v, c.v)}; }
inline Vec clip(Vec v, Vec lo, Vec hi) { return {ctgpu::clip(v.v, lo.v, hi.v)}; }
inline Vec lerp(Vec a, Vec b, Vec w) { return {ctgpu::lerp(a.v, b.v, w.v)}; }
inline void transpose(Vec (&)[1]) {}

// Elements first[0 ...] and second[0 ...] of a row.
inline void pick(const float *row, const std::int32_t *first, const std::int32_t *second, Vec &a,
                 Vec &b) {
    a = {row[*first]};
    b = {row[*second]};
}

inline void transpose_half(const std::uint16_t *in, std::ptrdiff_t, std::uint16_t *out,
                           std::ptrdiff_t) {
    *out = *in;
}

// A copy that need not stay in the cache.
inline void stream(std::uint16_t *out, const std::uint16_t *in, std::ptrdiff_t n) {
    std::memcpy(out, in, static_cast<std::size_t>(n) * sizeof *out);
}
inline void finish_streams() {}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
