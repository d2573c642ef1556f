// One tile of the output, from source voxels to float16: the same template for every CPU.
//
// A variant_*.cpp defines CTGPU_VARIANT, includes its vec_*.h and then this file, and is compiled
// with its own flags.  All of it lies in a namespace of the variant and is static, so that no
// function compiled for one CPU is linked into the code of another.
//
// The source decides which way a tile is walked, so that each voxel is fetched from memory once
// and in runs as long as can be; two planes roll along with the walk.
//
//   run_along_w  H is contiguous (NIfTI).  For each source position along W:
//                    convert   voxels to float32 HU, clipped, vectors along H
//                    blend D   and turn 16 x 16 blocks, into a plane (H, D) with D contiguous
//                for each output along W:
//                    blend W, blend H, scale, float16, vectors along D
//   run_along_h  D is contiguous (C order), or nothing is.  For each source position along H:
//                    convert   voxels, blend D by picking vectors along D
//                    blend W   into a plane (W, D)
//                for each output along H:
//                    blend H, scale, float16, vectors along D

#include "cpu/tile.h"

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

constexpr int V = Vec::width;
static_assert(LANES % V == 0);

// ---- convert ----------------------------------------------------------------------------------

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

// Contiguous voxels by vectors; the last one overlaps its neighbour instead of reading past the
// end.  True if it was done.
template <class T>
bool convert_contiguous(const char *at, int n, const ToHu &to_hu, float *out) {
    if (n < V)
        return false;
    for (int x = 0;; x += V) {
        if (x > n - V)
            x = n - V;
        to_hu(Vec::convert<T>(at + x * static_cast<std::ptrdiff_t>(sizeof(T)))).store(out + x);
        if (x == n - V)
            return true;
    }
}

void convert_row(const Task &task, const char *at, std::ptrdiff_t stride,
                 const std::int32_t *positions, int n, float *out) {
    const Source &source = task.source;
    const ToHu to_hu(task.intensity);
    if (positions == nullptr && !source.swapped && stride == item_bytes(source.dtype)) {
        switch (source.dtype) {
        case Dtype::int16:
            if (convert_contiguous<std::int16_t>(at, n, to_hu, out))
                return;
            break;
        case Dtype::uint16:
            if (convert_contiguous<std::uint16_t>(at, n, to_hu, out))
                return;
            break;
        case Dtype::float32:
            if (convert_contiguous<float>(at, n, to_hu, out))
                return;
            break;
        default:
            break;
        }
    }
    convert_any(source, at, stride, positions, n, out);
    for (int x = 0; x < n; x += V)
        to_hu(Vec::load(out + x)).store(out + x);
}

// ---- write: finished voxels leave the staged block in whole cache lines -----------------------

void fill(std::uint16_t *out, std::ptrdiff_t n, std::uint16_t value) {
    for (std::ptrdiff_t x = 0; x < n; ++x)
        out[x] = value;
}

// Rows along D, `out_pitch` apart in an output stored H, W, D.
void write_rows(const std::uint16_t *staged, int count, std::ptrdiff_t n, std::uint16_t *out,
                std::ptrdiff_t out_pitch) {
    if (out_pitch == n)
        return stream(out, staged, count * n);
    for (int r = 0; r < count; ++r)
        stream(out + r * out_pitch, staged + r * n, n);
}

// Rows along D for `count` outputs along W, turned for an output stored D, H, W.
void write_turned(const std::uint16_t *staged, int count, std::ptrdiff_t n, std::uint16_t *out,
                  std::ptrdiff_t out_pitch) {
    constexpr int B = Vec::half_block;
    alignas(LINE_BYTES) std::uint16_t turned[B * TURNED_ROWS];
    for (std::ptrdiff_t d = 0; d < n; d += B) {
        const int depth = static_cast<int>(n - d < B ? n - d : B);
        int r = 0;
        if (depth == B)
            for (; r + B <= count; r += B)
                transpose_half(staged + r * n + d, n, turned + r, TURNED_ROWS);
        for (; r < count; ++r)
            for (int t = 0; t < depth; ++t)
                turned[t * TURNED_ROWS + r] = staged[r * n + d + t];
        for (int t = 0; t < depth; ++t)
            stream(out + (d + t) * out_pitch, turned + t * TURNED_ROWS, count);
    }
}

// Outputs (h, w ... w + count, d0 ... d1), staged row by row.
void write(const Tile &tile, int h, int w, int count, const std::uint16_t *staged) {
    const Task &task = *tile.task;
    const std::ptrdiff_t height = task.axes[H].n_out, width = task.axes[W].n_out,
                         depth = task.axes[D].n_out, n = tile.d1 - tile.d0;
    if (task.dhw)
        write_turned(staged, count, n, task.out + (tile.d0 * height + h) * width + w,
                     height * width);
    else
        write_rows(staged, count, n, task.out + (h * width + w) * depth + tile.d0, depth);
}

// ---- the last steps of a voxel ----------------------------------------------------------------

// normalise of preprocess_math.h on vectors.
struct Normalise {
    Vec lo, hi, scale, offset;
    bool clips;

    explicit Normalise(const Intensity &p)
        : lo(Vec::all(p.clip_lo)), hi(Vec::all(p.clip_hi)), scale(Vec::all(p.scale)),
          offset(Vec::all(p.offset)), clips(!p.clips_before) {}

    Vec operator()(Vec v) const { return fma(clips ? clip(v, lo, hi) : v, scale, offset); }
};

// `lanes` is V, or less in the last vector of a row.
inline void store(Vec v, std::uint16_t *out, int lanes) {
    if (lanes == V)
        v.store_half(out);
    else
        v.store_half(out, lanes);
}

inline int lanes_left(int n) { return n < V ? n : V; }

// ---- prefetch ---------------------------------------------------------------------------------

// Runs of source voxels lie apart, often by a power of two, where hardware does not see the next
// one coming and a cache holds only a few of them.  So they are asked for just before their turn,
// and columns also one plane before, into the outer cache.  To ask for what lies past the end of
// the source does no harm.
enum Nearness { FAR = 2, NEAR = 3 };
constexpr int ROWS_AHEAD = 3;

template <Nearness nearness>
void prefetch(const char *at, std::ptrdiff_t bytes) {
    constexpr auto LINE = static_cast<std::ptrdiff_t>(LINE_BYTES);
    for (std::ptrdiff_t x = 0; x < bytes; x += LINE)
        __builtin_prefetch(at + x, 0, nearness);
}

// Columns at source position j along W, of slices [from, to).
template <Nearness nearness>
void prefetch_columns(const Tile &tile, int j, int from, int to) {
    const Source &source = tile.task->source;
    if (!is_contiguous(source, H))
        return;
    const char *const plane = static_cast<const char *>(source.data) + j * source.strides[W] +
                              tile.first_row * source.strides[H];
    for (int k = from; k < to && k < tile.slices_used; ++k)
        prefetch<nearness>(plane + tile.slices[k] * source.strides[D],
                           tile.row_count * source.strides[H]);
}

// ---- H is contiguous --------------------------------------------------------------------------

void make_plane_of_columns(const Tile &tile, int j, float *plane) {
    const Source &source = tile.task->source;
    const char *at = static_cast<const char *>(source.data) + j * source.strides[W] +
                     tile.first_row * source.strides[H];
    const auto ring_row = [&](int slice) {
        return tile.converted + (slice % RING_ROWS) * tile.converted_pitch;
    };
    int ready = 0;
    for (int d = 0; d < tile.d_count; d += V) {
        for (; ready <= tile.d.second[d + V - 1]; ++ready) {
            prefetch_columns<NEAR>(tile, j, ready + ROWS_AHEAD, ready + ROWS_AHEAD + 1);
            convert_row(*tile.task, at + tile.slices[ready] * source.strides[D], source.strides[H],
                        nullptr, tile.row_count, ring_row(ready));
        }
        const float *first[V], *second[V];
        for (int t = 0; t < V; ++t) {
            first[t] = ring_row(tile.d.first[d + t]);
            second[t] = ring_row(tile.d.second[d + t]);
        }
        for (int i = 0; i < tile.row_count; i += V) {
            Vec block[V];
            for (int t = 0; t < V; ++t)
                block[t] = lerp(Vec::load(first[t] + i), Vec::load(second[t] + i),
                                Vec::all(tile.d.weight[d + t]));
            transpose(block);
            for (int t = 0; t < V; ++t)
                block[t].store(plane + (i + t) * tile.pitch + d);
        }
    }
}

// Outputs h to h + count at N vectors along D; the two rows blended stay in registers.
template <int N>
void blend_rows(const Tile &tile, const float *plane0, const float *plane1, Vec w,
                const Normalise &normalise, int h, int count, std::uint16_t *out,
                std::ptrdiff_t out_pitch, int lanes) {
    Vec a[N]{}, b[N]{};
    const auto blend_w = [&](int row, Vec *into) {
        const std::ptrdiff_t at = row * tile.pitch;
        for (int n = 0; n < N; ++n)
            into[n] = lerp(Vec::load(plane0 + at + n * V), Vec::load(plane1 + at + n * V), w);
    };
    int in_a = -1, in_b = -1;
    for (const int end = h + count; h < end; ++h, out += out_pitch) {
        const int first = tile.h.first[h], second = tile.h.second[h];
        if (first != in_a) {
            if (first == in_b)
                for (int n = 0; n < N; ++n)
                    a[n] = b[n];
            else
                blend_w(first, a);
            in_a = first;
        }
        if (second != in_b) {
            blend_w(second, b);
            in_b = second;
        }
        const Vec weight = Vec::all(tile.h.weight[h]);
        for (int n = 0; n < N; ++n)
            store(normalise(lerp(a[n], b[n], weight)), out + n * V, lanes);
    }
}

void blend_w_and_h(const Tile &tile, const float *plane0, const float *plane1, float weight, int h,
                   int count, std::uint16_t *out, std::ptrdiff_t out_pitch) {
    constexpr int N = Vec::unroll;
    const Vec w = Vec::all(weight);
    const Normalise normalise(tile.task->intensity);
    int d = 0;
    for (; d + N * V <= tile.d_count; d += N * V)
        blend_rows<N>(tile, plane0 + d, plane1 + d, w, normalise, h, count, out + d, out_pitch, V);
    for (; d < tile.d_count; d += V)
        blend_rows<1>(tile, plane0 + d, plane1 + d, w, normalise, h, count, out + d, out_pitch,
                      lanes_left(tile.d_count - d));
}

// ---- D is contiguous, or nothing is -----------------------------------------------------------

void make_row(const Tile &tile, const char *at, float *row) {
    const std::ptrdiff_t *strides = tile.task->source.strides;
    if (tile.slices_adjoin) {
        const char *const run = at + tile.slices[0] * strides[D];
        prefetch<NEAR>(run + ROWS_AHEAD * strides[W], tile.slices_used * strides[D]);
        convert_row(*tile.task, run, strides[D], nullptr, tile.slices_used, tile.converted);
    } else {
        convert_row(*tile.task, at, strides[D], tile.slices, tile.slices_used, tile.converted);
    }
    for (int d = 0; d < tile.d_count; d += V) {
        Vec a, b;
        pick(tile.converted, tile.d.first + d, tile.d.second + d, a, b);
        lerp(a, b, Vec::load(tile.d.weight + d)).store(row + d);
    }
}

// ---- two neighbours along an axis that a walk keeps -------------------------------------------

class Pair {
  public:
    explicit Pair(float *const (&memory)[2]) : low_(memory[0]), high_(memory[1]) {}

    // Moves on to source positions x0 and x1; make(x, memory) makes what is not there yet.
    template <class Make>
    void move_to(int x0, int x1, const Make &make) {
        if (x0 != at_low_ && x0 == at_high_) {
            float *const spare = low_;
            low_ = high_;
            high_ = spare;
            at_high_ = at_low_;
            at_low_ = x0;
        }
        if (x0 != at_low_)
            make(at_low_ = x0, low_);
        if (x1 != x0 && x1 != at_high_)
            make(at_high_ = x1, high_);
        second_ = x1 == x0 ? low_ : high_;
    }

    const float *first() const { return low_; }
    const float *second() const { return second_; }

  private:
    float *low_, *high_;
    const float *second_ = nullptr;
    int at_low_ = -1, at_high_ = -1;
};

// ---- the walks --------------------------------------------------------------------------------

inline bool is_valid(const Axis &axis, int o) {
    return o >= axis.pad_before && o < axis.pad_before + axis.n_valid;
}

void run_along_w(const Tile &tile) {
    const Task &task = *tile.task;
    const Axis &axis = task.axes[W];
    const std::uint16_t pad = to_half(task.pad_value);
    const std::ptrdiff_t n = tile.d1 - tile.d0;
    const int heights = tile.h1 - tile.h0;
    // Turned output is staged for many w and all h; other output for one w and some h, and then
    // written at once.
    const int at_a_time = task.dhw ? TURNED_ROWS : 1;
    const std::ptrdiff_t pitch = at_a_time * n;
    fill(tile.staged, (task.dhw ? heights : STAGED_ROWS) * pitch, pad);
    const int last = axis.i1[axis.n_valid - 1];
    int asked_for = -1;
    Pair planes(tile.planes);
    for (int w = tile.w0; w < tile.w1; w += at_a_time) {
        const int count = tile.w1 - w < at_a_time ? tile.w1 - w : at_a_time;
        for (int r = 0; r < count; ++r) {
            const int o = w + r - axis.pad_before;
            const bool valid = is_valid(axis, w + r);
            if (valid)
                planes.move_to(axis.i0[o], axis.i1[o],
                               [&](int j, float *plane) { make_plane_of_columns(tile, j, plane); });
            const int next = valid && axis.i1[o] < last ? axis.i1[o] + 1 : -1;
            for (int h = 0; h < heights; h += STAGED_ROWS) {
                const int some = heights - h < STAGED_ROWS ? heights - h : STAGED_ROWS;
                std::uint16_t *out = tile.staged + r * n + (task.dhw ? h * pitch : 0);
                if (next > asked_for)
                    prefetch_columns<FAR>(tile, next, tile.slices_used * h / heights,
                                          tile.slices_used * (h + some) / heights);
                if (valid)
                    blend_w_and_h(tile, planes.first(), planes.second(), axis.w[o], h, some,
                                  out + tile.d_begin, pitch);
                for (int s = 0; s < some; ++s) {
                    if (!valid)
                        fill(out + s * pitch, n, pad);
                    if (!task.dhw)
                        write(tile, tile.h0 + h + s, w, 1, out + s * pitch);
                }
            }
            if (next > asked_for)
                asked_for = next;
        }
        if (task.dhw)
            for (int h = 0; h < heights; ++h)
                write(tile, tile.h0 + h, w, count, tile.staged + h * pitch);
    }
}

void run_along_h(const Tile &tile) {
    const Task &task = *tile.task;
    const Source &source = task.source;
    const Axis &axis_h = task.axes[H], &axis_w = task.axes[W];
    const Normalise normalise(task.intensity);
    const std::uint16_t pad = to_half(task.pad_value);
    const std::ptrdiff_t n = tile.d1 - tile.d0;
    const int at_a_time = task.dhw ? TURNED_ROWS : STAGED_ROWS;
    fill(tile.staged, at_a_time * n, pad);
    const auto make_plane = [&](int i, float *plane) {
        const char *at = static_cast<const char *>(source.data) + i * source.strides[H];
        Pair rows(tile.rows);
        for (int w = tile.w0; w < tile.w1; ++w) {
            if (!is_valid(axis_w, w))
                continue;
            const int o = w - axis_w.pad_before;
            rows.move_to(axis_w.i0[o], axis_w.i1[o], [&](int j, float *row) {
                make_row(tile, at + j * source.strides[W], row);
            });
            float *out = plane + (w - tile.w0) * tile.pitch;
            const Vec weight = Vec::all(axis_w.w[o]);
            for (int d = 0; d < tile.d_count; d += V)
                lerp(Vec::load(rows.first() + d), Vec::load(rows.second() + d), weight)
                    .store(out + d);
        }
    };
    Pair planes(tile.planes);
    for (int h = tile.h0; h < tile.h1; ++h) {
        const int o = h - axis_h.pad_before;
        planes.move_to(axis_h.i0[o], axis_h.i1[o], make_plane);
        const Vec weight = Vec::all(axis_h.w[o]);
        for (int w = tile.w0; w < tile.w1; w += at_a_time) {
            const int count = tile.w1 - w < at_a_time ? tile.w1 - w : at_a_time;
            for (int r = 0; r < count; ++r) {
                std::uint16_t *out = tile.staged + r * n;
                if (!is_valid(axis_w, w + r)) {
                    fill(out, n, pad);
                    continue;
                }
                const std::ptrdiff_t row = (w + r - tile.w0) * tile.pitch;
                const float *a = planes.first() + row, *b = planes.second() + row;
                for (int d = 0; d < tile.d_count; d += V)
                    store(normalise(lerp(Vec::load(a + d), Vec::load(b + d), weight)),
                          out + tile.d_begin + d, lanes_left(tile.d_count - d));
            }
            write(tile, h, w, count, tile.staged);
        }
    }
}

void run_padding(const Tile &tile) {
    const Task &task = *tile.task;
    const std::ptrdiff_t height = task.axes[H].n_out, width = task.axes[W].n_out;
    const int widths = tile.w1 - tile.w0;
    const std::ptrdiff_t n = tile.d1 - tile.d0;
    fill(tile.staged, task.dhw ? widths : STAGED_ROWS * n, to_half(task.pad_value));
    if (task.dhw) {
        for (std::ptrdiff_t d = tile.d0; d < tile.d1; ++d)
            for (int h = tile.h0; h < tile.h1; ++h)
                stream(task.out + (d * height + h) * width + tile.w0, tile.staged, widths);
        return;
    }
    for (int h = tile.h0; h < tile.h1; ++h)
        for (int w = tile.w0; w < tile.w1; w += STAGED_ROWS)
            write(tile, h, w, tile.w1 - w < STAGED_ROWS ? tile.w1 - w : STAGED_ROWS, tile.staged);
}

void run(const Tile &tile) {
    if (tile.is_padding)
        run_padding(tile);
    else if (tile.from_columns)
        run_along_w(tile);
    else
        run_along_h(tile);
    finish_streams();
}

void write_once(std::uint16_t *out, std::size_t n) {
    constexpr std::size_t LINE = LINE_BYTES / sizeof *out;
    alignas(LINE_BYTES) const std::uint16_t line[LINE]{};
    std::size_t x = 0;
    for (; x + LINE <= n; x += LINE)
        stream(out + x, line, LINE);
    fill(out + x, static_cast<std::ptrdiff_t>(n - x), 0);
    finish_streams();
}

void convert_to_half(const float *in, std::uint16_t *out, std::size_t n) {
    std::size_t x = 0;
    for (; x + V <= n; x += V)
        Vec::load(in + x).store_half(out + x);
    for (; x < n; ++x)
        out[x] = to_half(in[x]);
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
