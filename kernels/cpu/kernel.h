// One tile of the output, from source voxels to stored ones: the same template for every CPU.
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
//                    blend W, blend H, scale, round, vectors along D
//   run_along_h  D is contiguous (C order), or W is.  For each source position along H:
//                    convert   voxels, blend D by picking vectors along D, or where W is
//                              contiguous as above, into a plane of source positions (W, D)
//                    blend W   into a plane (W, D)
//                for each output along H:
//                    blend H, scale, round, vectors along D
//
// Contiguous means either way round: flipped voxels are read as they lie and turned in registers.

#include "cpu/convert.h"
#include "cpu/write.h"

#include <type_traits>

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

// ---- prefetch ---------------------------------------------------------------------------------

// Runs of source voxels lie apart, often by a power of two, where hardware does not see the next
// one coming and a cache holds only a few of them.  So they are asked for just before their turn,
// and columns also one plane before, into the outer cache.  To ask for what lies past the end of
// the source does no harm.
enum Nearness { FAR = 2, NEAR = 3 };
constexpr int ROWS_AHEAD = 3;

// `n` voxels that lie side by side, the first of them at `at`.
template <Nearness nearness>
void prefetch(const char *at, std::ptrdiff_t stride, int n) {
    constexpr auto LINE = static_cast<std::ptrdiff_t>(LINE_BYTES);
    const std::ptrdiff_t bytes = std::abs(stride) * n;
    const char *const lowest = stride < 0 ? at + stride * (n - 1) : at;
    for (std::ptrdiff_t x = 0; x < bytes; x += LINE)
        __builtin_prefetch(lowest + x, 0, nearness);
}

// The first voxel that the tile reads of a column plane: `position` counts along W where columns
// lie along H, and along H where they lie along W.
inline const char *plane_of_columns(const Tile &tile, int position) {
    const Source &source = tile.task->source;
    const int along = tile.read_along, across = along == H ? W : H;
    return static_cast<const char *>(source.data) + position * source.strides[across] +
           tile.first_row * source.strides[along];
}

// Its columns of slices [from, to).
template <Nearness nearness>
void prefetch_columns(const Tile &tile, const char *plane, int from, int to) {
    const Source &source = tile.task->source;
    if (!is_contiguous(source, tile.read_along))
        return;
    for (int k = from; k < to && k < tile.slices_used; ++k)
        prefetch<nearness>(plane + tile.slices[k] * source.strides[D],
                           source.strides[tile.read_along], tile.row_count);
}

// Asks for the plane after those at hand, part by part while these are blended.
class PlaneAhead {
  public:
    PlaneAhead(const Tile &tile, const Axis &across, bool upwards)
        : tile_(tile), first_(across.i0[0]), last_(across.i1[across.n_valid - 1]),
          upwards_(upwards) {}

    // The walk has come to the planes at x0 and x1.
    void come_to(int x0, int x1) {
        const int next = upwards_ ? x1 + 1 : x0 - 1;
        asks_ = next != next_ && next >= first_ && next <= last_;
        next_ = next;
    }

    // Parts [from, to) of `all`.
    void ask_for(int from, int to, int all) const {
        if (asks_)
            prefetch_columns<FAR>(tile_, plane_of_columns(tile_, next_),
                                  tile_.slices_used * from / all, tile_.slices_used * to / all);
    }

  private:
    const Tile &tile_;
    const int first_, last_;
    const bool upwards_;
    int next_ = -1;
    bool asks_ = false;
};

// ---- H or W is contiguous ---------------------------------------------------------------------

void make_plane_of_columns(const Tile &tile, int position, float *plane) {
    const Source &source = tile.task->source;
    const char *const at = plane_of_columns(tile, position);
    const std::ptrdiff_t stride = source.strides[tile.read_along];
    const auto ring_row = [&](int slice) {
        return tile.converted + (slice % RING_ROWS) * tile.converted_pitch;
    };
    int ready = 0;
    for (int d = 0; d < tile.d_count; d += V) {
        for (; ready <= tile.d.second[d + V - 1]; ++ready) {
            prefetch_columns<NEAR>(tile, at, ready + ROWS_AHEAD, ready + ROWS_AHEAD + 1);
            convert_row(*tile.task, at + tile.slices[ready] * source.strides[D], stride, nullptr,
                        tile.row_count, ring_row(ready));
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

// Outputs h to h + count at N vectors along D from d, each into a row of its own; the two rows
// blended stay in registers.
template <int N, Stored stored>
void blend_rows(const Tile &tile, const float *plane0, const float *plane1, Vec w,
                const Finish<stored> &finish, int h, int count, Voxel<stored> *const *out, int d,
                int lanes) {
    Vec a[N]{}, b[N]{};
    const auto blend_w = [&](int row, Vec *into) {
        const std::ptrdiff_t at = row * tile.pitch + d;
        for (int n = 0; n < N; ++n)
            into[n] = lerp(Vec::load(plane0 + at + n * V), Vec::load(plane1 + at + n * V), w);
    };
    int in_a = -1, in_b = -1;
    for (const int end = h + count; h < end; ++h, ++out) {
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
        Voxel<stored> *const row = *out + tile.d_begin + d;
        for (int n = 0; n < N; ++n)
            finish(lerp(a[n], b[n], weight), row + n * V, lanes);
    }
}

template <Stored stored>
void blend_w_and_h(const Tile &tile, const float *plane0, const float *plane1, float weight, int h,
                   int count, Voxel<stored> *const *out) {
    const Vec w = Vec::all(weight);
    const Finish<stored> finish(tile.task->intensity);
    int d = 0;
    const auto blend = [&]<int N>(std::integral_constant<int, N>) {
        for (; d + N * V <= tile.d_count; d += N * V)
            blend_rows<N>(tile, plane0, plane1, w, finish, h, count, out, d, V);
    };
    blend(std::integral_constant<int, Vec::unroll>());
    blend(std::integral_constant<int, 2>());
    for (; d < tile.d_count; d += V)
        blend_rows<1>(tile, plane0, plane1, w, finish, h, count, out, d,
                      lanes_left(tile.d_count - d));
}

// ---- D is contiguous, or nothing is -----------------------------------------------------------

void make_row(const Tile &tile, const char *at, float *row) {
    const std::ptrdiff_t *strides = tile.task->source.strides;
    if (tile.slices_adjoin) {
        const char *const run = at + tile.slices[0] * strides[D];
        prefetch<NEAR>(run + ROWS_AHEAD * strides[W], strides[D], tile.slices_used);
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
    explicit Pair(float *const (&memory)[2]) : memory_(memory) {}

    // Moves on to source positions x0 and x1; make(x, memory) makes what is not there yet.
    template <class Make>
    void move_to(int x0, int x1, const Make &make) {
        first_ = at_[1] == x0 || (at_[0] == x1 && x1 != x0) ? 1 : 0;
        second_ = x1 == x0 ? first_ : 1 - first_;
        if (at_[first_] != x0)
            make(at_[first_] = x0, memory_[first_]);
        if (at_[second_] != x1)
            make(at_[second_] = x1, memory_[second_]);
    }

    const float *first() const { return memory_[first_]; }
    const float *second() const { return memory_[second_]; }

  private:
    float *const (&memory_)[2];
    int at_[2]{-1, -1};
    int first_ = 0, second_ = 0;
};

// ---- the walks --------------------------------------------------------------------------------

inline bool is_valid(const Axis &axis, int o) {
    return o >= axis.pad_before && o < axis.pad_before + axis.n_valid;
}

template <Stored stored, bool dhw>
void run_along_w(const Tile &tile) {
    const Task &task = *tile.task;
    const Axis &axis = task.axes[W];
    const Voxel<stored> pad = round_to<stored>(task.pad);
    Voxel<stored> *const staged = static_cast<Voxel<stored> *>(tile.staged);
    const std::ptrdiff_t n = tile.d1 - tile.d0;
    const int heights = tile.h1 - tile.h0;
    const int widths = tile.w1 - tile.w0;
    // In the order of memory, which is what hardware foresees.
    const bool upwards = task.source.strides[W] >= 0;
    // Turned output is staged for all h until its cache line is full, each voxel at the place that
    // it has in its line; other output for some h, and written at once.
    constexpr int places = dhw ? turned_rows(voxel_bytes(stored)) : 1;
    const int first_place = place_in_line(output<stored>(tile, tile.h0, tile.w0));
    const int step = axis.n_out & (places - 1);
    const auto place = [&](int h, int w) {
        return (first_place + w - tile.w0 + h * step) & (places - 1);
    };
    fill(staged, (dhw ? heights : STAGED_ROWS) * places * n, pad);
    PlaneAhead ahead(tile, axis, upwards);
    Pair planes(tile.planes);
    for (int made = 0; made < widths; ++made) {
        const int w = upwards ? tile.w0 + made : tile.w1 - 1 - made, o = w - axis.pad_before;
        const bool valid = is_valid(axis, w);
        if (valid) {
            planes.move_to(axis.i0[o], axis.i1[o],
                           [&](int j, float *plane) { make_plane_of_columns(tile, j, plane); });
            ahead.come_to(axis.i0[o], axis.i1[o]);
        }
        for (int h = 0; h < heights; h += STAGED_ROWS) {
            const int some = heights - h < STAGED_ROWS ? heights - h : STAGED_ROWS;
            Voxel<stored> *rows[STAGED_ROWS];
            for (int s = 0; s < some; ++s) {
                rows[s] = staged + ((dhw ? h + s : s) * places + place(h + s, w)) * n;
                if (!dhw)
                    prefetch_broken_lines(output<stored>(tile, tile.h0 + h + s, w), n);
            }
            if (valid) {
                ahead.ask_for(h, h + some, heights);
                blend_w_and_h<stored>(tile, planes.first(), planes.second(), axis.w[o], h, some,
                                      rows);
            }
            for (int s = 0; s < some; ++s) {
                if (!valid)
                    fill(rows[s], n, pad);
                if (!dhw)
                    write<stored>(tile, tile.h0 + h + s, w, 1, rows[s]);
            }
        }
        for (int h = 0; dhw && h < heights; ++h) {
            const int here = place(h, w), left = upwards ? places - 1 - here : here;
            if (left > 0 && made + 1 < widths)
                continue;
            const int others = places - 1 - left, count = 1 + (others < made ? others : made);
            const int before = upwards ? count - 1 : 0;
            write<stored>(tile, tile.h0 + h, w - before, count,
                          staged + (h * places + here - before) * n);
        }
    }
}

// Blends D and W at source position i along H, into a plane (W, D).
void make_plane_of_outputs(const Tile &tile, int i, float *plane) {
    const Source &source = tile.task->source;
    const Axis &axis = tile.task->axes[W];
    const char *const at = static_cast<const char *>(source.data) + i * source.strides[H];
    const bool from_columns = tile.read_along == W;
    if (from_columns)
        make_plane_of_columns(tile, i, tile.rows[0]);
    const auto column = [&](int j) { return tile.rows[0] + (j - tile.first_row) * tile.pitch; };
    Pair rows(tile.rows);
    for (int w = tile.w0; w < tile.w1; ++w) {
        if (!is_valid(axis, w))
            continue;
        const int o = w - axis.pad_before, j0 = axis.i0[o], j1 = axis.i1[o];
        if (!from_columns)
            rows.move_to(j0, j1, [&](int j, float *row) {
                make_row(tile, at + j * source.strides[W], row);
            });
        const float *const first = from_columns ? column(j0) : rows.first();
        const float *const second = from_columns ? column(j1) : rows.second();
        float *const out = plane + (w - tile.w0) * tile.pitch;
        const Vec weight = Vec::all(axis.w[o]);
        for (int d = 0; d < tile.d_count; d += V)
            lerp(Vec::load(first + d), Vec::load(second + d), weight).store(out + d);
    }
}

template <Stored stored>
void run_along_h(const Tile &tile) {
    const Task &task = *tile.task;
    const Axis &axis_h = task.axes[H], &axis_w = task.axes[W];
    const Finish<stored> finish(task.intensity);
    const Voxel<stored> pad = round_to<stored>(task.pad);
    Voxel<stored> *const staged = static_cast<Voxel<stored> *>(tile.staged);
    const std::ptrdiff_t n = tile.d1 - tile.d0;
    const int most = task.dhw ? turned_rows(voxel_bytes(stored)) : STAGED_ROWS;
    fill(staged, most * n, pad);
    PlaneAhead ahead(tile, axis_h, true);
    Pair planes(tile.planes);
    for (int h = tile.h0; h < tile.h1; ++h) {
        const int o = h - axis_h.pad_before;
        planes.move_to(axis_h.i0[o], axis_h.i1[o],
                       [&](int i, float *plane) { make_plane_of_outputs(tile, i, plane); });
        ahead.come_to(axis_h.i0[o], axis_h.i1[o]);
        const Vec weight = Vec::all(axis_h.w[o]);
        for (int w = tile.w0, count; w < tile.w1; w += count) {
            const int whole = task.dhw ? most - place_in_line(output<stored>(tile, h, w)) : most;
            count = tile.w1 - w < whole ? tile.w1 - w : whole;
            if (tile.read_along == W)
                ahead.ask_for(w - tile.w0, w - tile.w0 + count, tile.w1 - tile.w0);
            for (int r = 0; r < count; ++r) {
                Voxel<stored> *out = staged + r * n;
                if (!is_valid(axis_w, w + r)) {
                    fill(out, n, pad);
                    continue;
                }
                const std::ptrdiff_t row = (w + r - tile.w0) * tile.pitch;
                const float *a = planes.first() + row, *b = planes.second() + row;
                for (int d = 0; d < tile.d_count; d += V)
                    finish(lerp(Vec::load(a + d), Vec::load(b + d), weight), out + tile.d_begin + d,
                           lanes_left(tile.d_count - d));
            }
            write<stored>(tile, h, w, count, staged);
        }
    }
}

template <Stored stored>
void run_padding(const Tile &tile) {
    const Task &task = *tile.task;
    const std::ptrdiff_t height = task.axes[H].n_out, width = task.axes[W].n_out;
    const int widths = tile.w1 - tile.w0;
    const std::ptrdiff_t n = tile.d1 - tile.d0;
    Voxel<stored> *const out = static_cast<Voxel<stored> *>(task.out);
    Voxel<stored> *const staged = static_cast<Voxel<stored> *>(tile.staged);
    fill(staged, task.dhw ? widths : STAGED_ROWS * n, round_to<stored>(task.pad));
    if (task.dhw) {
        for (std::ptrdiff_t d = tile.d0; d < tile.d1; ++d)
            for (int h = tile.h0; h < tile.h1; ++h)
                stream_voxels(out + (d * height + h) * width + tile.w0, staged, widths);
        return;
    }
    for (int h = tile.h0; h < tile.h1; ++h)
        for (int w = tile.w0; w < tile.w1; w += STAGED_ROWS)
            write<stored>(tile, h, w, tile.w1 - w < STAGED_ROWS ? tile.w1 - w : STAGED_ROWS,
                          staged);
}

void run(const Tile &tile) {
    with_stored(tile.task->stored, [&]<Stored stored>() {
        if (tile.is_padding)
            run_padding<stored>(tile);
        else if (tile.read_along == H)
            tile.task->dhw ? run_along_w<stored, true>(tile) : run_along_w<stored, false>(tile);
        else
            run_along_h<stored>(tile);
    });
    finish_streams();
}

void write_once(std::uint16_t *out, std::size_t n) {
    constexpr std::size_t LINE = LINE_BYTES / sizeof *out;
    alignas(LINE_BYTES) const std::uint16_t line[LINE]{};
    std::size_t x = 0;
    for (; x + LINE <= n; x += LINE)
        stream_voxels(out + x, line, LINE);
    fill<std::uint16_t>(out + x, static_cast<std::ptrdiff_t>(n - x), 0);
    finish_streams();
}

void round_all(Stored stored, const float *in, void *out, std::size_t n) {
    with_stored(stored, [&]<Stored type>() {
        Voxel<type> *const to = static_cast<Voxel<type> *>(out);
        std::size_t x = 0;
        for (; x + V <= n; x += V)
            save(round_to<type>(Vec::load(in + x)), to + x);
        for (; x < n; ++x)
            to[x] = round_to<type>(in[x]);
    });
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
