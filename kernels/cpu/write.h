// The last steps of a voxel: scaled, rounded to what is stored, and moved out of the staged block
// in whole cache lines; for kernel.h.

#include "cpu/tile.h"

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

using ctgpu::on_grid, ctgpu::to_bfloat, ctgpu::to_half, ctgpu::to_int16, ctgpu::to_uint8;

// A float or a vector, rounded.
template <Stored stored, class Number>
auto round_to(Number number) {
    if constexpr (stored == Stored::float16)
        return to_half(number);
    else if constexpr (stored == Stored::bfloat16)
        return to_bfloat(number);
    else if constexpr (stored == Stored::int16)
        return to_int16(number);
    else if constexpr (stored == Stored::uint8)
        return to_uint8(number);
    else if constexpr (stored == Stored::float16_grid10)
        return to_half(on_grid<10>(number));
    else
        return to_half(on_grid<11>(number));
}

template <Stored stored>
using Voxel = decltype(round_to<stored>(0.0f));

// Calls of() for the type that is stored.
template <class Of>
void with_stored(Stored stored, const Of &of) {
    switch (stored) {
    case Stored::float16:
        return of.template operator()<Stored::float16>();
    case Stored::bfloat16:
        return of.template operator()<Stored::bfloat16>();
    case Stored::int16:
        return of.template operator()<Stored::int16>();
    case Stored::uint8:
        return of.template operator()<Stored::uint8>();
    case Stored::float16_grid10:
        return of.template operator()<Stored::float16_grid10>();
    case Stored::float16_grid11:
        return of.template operator()<Stored::float16_grid11>();
    }
}

// normalise of preprocess_math.h on vectors, and the rounding.
template <Stored stored>
struct Finish {
    Vec lo, hi, scale, offset;
    bool clips;

    explicit Finish(const Intensity &p)
        : lo(Vec::all(p.clip_lo)), hi(Vec::all(p.clip_hi)), scale(Vec::all(p.scale)),
          offset(Vec::all(p.offset)), clips(!p.clips_before) {}

    // `lanes` is V, or less in the last vector of a row.
    void operator()(Vec v, Voxel<stored> *out, int lanes) const {
        const auto voxels = round_to<stored>(fma(clips ? clip(v, lo, hi) : v, scale, offset));
        if (lanes == V)
            save(voxels, out);
        else
            save(voxels, out, lanes);
    }
};

inline int lanes_left(int n) { return n < V ? n : V; }

template <class T>
void fill(T *out, std::ptrdiff_t n, T value) {
    for (std::ptrdiff_t x = 0; x < n; ++x)
        out[x] = value;
}

template <class T>
void stream_voxels(T *out, const T *in, std::ptrdiff_t n) {
    stream(out, in, n * static_cast<std::ptrdiff_t>(sizeof(T)));
}

// How many voxels lie before this one in its cache line.
template <class T>
int place_in_line(const T *at) {
    return static_cast<int>(reinterpret_cast<std::uintptr_t>(at) % LINE_BYTES / sizeof(T));
}

// Asks for the cache lines that `n` voxels will only write a part of, before stores wait for them.
template <class T>
void prefetch_broken_lines(const T *out, std::ptrdiff_t n) {
    for (const T *end : {out, out + n})
        if (place_in_line(end) != 0)
            __builtin_prefetch(end, 1);
}

// Rows along D, `out_pitch` apart in an output stored H, W, D.
template <class T>
void write_rows(const T *staged, int count, std::ptrdiff_t n, T *out, std::ptrdiff_t out_pitch) {
    if (out_pitch == n)
        return stream_voxels(out, staged, count * n);
    for (int r = 0; r < count; ++r)
        stream_voxels(out + r * out_pitch, staged + r * n, n);
}

// Rows along D for `count` outputs along W, turned for an output stored D, H, W.
template <class T>
void write_turned(const T *staged, int count, std::ptrdiff_t n, T *out, std::ptrdiff_t out_pitch) {
    constexpr int B = Vec::block, PITCH = turned_rows(sizeof(T));
    alignas(LINE_BYTES) T turned[B * PITCH];
    for (std::ptrdiff_t d = 0; d < n; d += B) {
        const int depth = static_cast<int>(n - d < B ? n - d : B);
        int r = 0;
        if (depth == B)
            for (; r + B <= count; r += B)
                turn_block(staged + r * n + d, n, turned + r, PITCH);
        for (; r < count; ++r)
            for (int t = 0; t < depth; ++t)
                turned[t * PITCH + r] = staged[r * n + d + t];
        for (int t = 0; t < depth; ++t)
            stream_voxels(out + (d + t) * out_pitch, turned + t * PITCH, count);
    }
}

// Output (h, w, d0).
template <Stored stored>
Voxel<stored> *output(const Tile &tile, std::ptrdiff_t h, std::ptrdiff_t w) {
    const Task &task = *tile.task;
    const std::ptrdiff_t height = task.axes[H].n_out, width = task.axes[W].n_out,
                         depth = task.axes[D].n_out;
    return static_cast<Voxel<stored> *>(task.out) +
           (task.dhw ? (tile.d0 * height + h) * width + w : (h * width + w) * depth + tile.d0);
}

// Outputs (h, w ... w + count, d0 ... d1), staged row by row.
template <Stored stored>
void write(const Tile &tile, int h, int w, int count, const Voxel<stored> *staged) {
    const Task &task = *tile.task;
    const std::ptrdiff_t height = task.axes[H].n_out, width = task.axes[W].n_out,
                         depth = task.axes[D].n_out, n = tile.d1 - tile.d0;
    Voxel<stored> *const out = output<stored>(tile, h, w);
    if (task.dhw)
        write_turned(staged, count, n, out, height * width);
    else
        write_rows(staged, count, n, out, depth);
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
