// Cuts the output into tiles that work out of the cache, and hands them to threads.

#include "cpu/preprocess.h"
#include "cpu/tile.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <thread>

namespace ctgpu {

std::ptrdiff_t item_bytes(Dtype dtype) {
    switch (dtype) {
    case Dtype::int8:
    case Dtype::uint8:
        return 1;
    case Dtype::int16:
    case Dtype::uint16:
    case Dtype::float16:
        return 2;
    case Dtype::int32:
    case Dtype::uint32:
    case Dtype::float32:
        return 4;
    case Dtype::float64:
        return 8;
    }
    return 0;
}

bool is_contiguous(const Source &source, int axis) {
    return std::abs(source.strides[axis]) == item_bytes(source.dtype);
}

namespace {

// Most voxels of a tile, chosen so that two planes and the staged block work out of the second-
// and third-level cache and the source is read in long runs.
struct TileSizes {
    int rows;    // source rows along H, unless two outputs need more
    int widths;  // outputs along W
    int depths;  // outputs along D
};
constexpr int ANY = 1 << 16;
constexpr TileSizes ALONG_H_TO_HWD{528, ANY, 256};
constexpr TileSizes ALONG_H_TO_DHW{528, ANY, 32};
constexpr TileSizes ALONG_W_TO_HWD{ANY, 256, 256};
constexpr TileSizes ALONG_W_TO_DHW{ANY, ANY, 64};
constexpr TileSizes ALONG_D{ANY, 128, 256};
// Wider, since a tile's first and last cache lines in each row are mostly broken.
constexpr TileSizes ALONG_D_TO_DHW_BYTES{ANY, 512, 256};

// Padding is written in strips of this many outputs along H.
constexpr int PADDED_HEIGHTS = 32;

int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// A range of outputs along one axis: all valid or all padding.
struct Range {
    int begin, end;
    bool is_padding;
};

// Memory of one thread, kept for its next volume.
class Scratch {
  public:
    // `bytes` of memory that starts on a cache line.  Its contents are numbers, but any.
    unsigned char *at_least(std::size_t bytes) {
        if (bytes > size_) {
            memory_.reset();
            size_ = 0;
            bytes = (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
            memory_.reset(static_cast<unsigned char *>(std::aligned_alloc(LINE_BYTES, bytes)));
            if (!memory_)
                throw std::bad_alloc();
            std::fill_n(memory_.get(), bytes, static_cast<unsigned char>(0));
            size_ = bytes;
        }
        return memory_.get();
    }

  private:
    struct Free {
        void operator()(unsigned char *memory) const { std::free(memory); }
    };
    std::unique_ptr<unsigned char, Free> memory_;
    std::size_t size_ = 0;
};

thread_local Scratch scratch;

// Which source positions a run of outputs blends, and the blends in terms of those.
struct Sampled {
    std::vector<std::int32_t> positions, first, second;
    std::vector<float> weight;

    Sampled() = default;

    // With `all`, every position between the first and the last counts as used.
    Sampled(const Axis &axis, int begin, int count, bool all) {
        for (int o = begin; o < begin + count; ++o) {
            first.push_back(number(axis.i0[o], all));
            second.push_back(number(axis.i1[o], all));
            weight.push_back(axis.w[o]);
        }
    }

    // Repeats the last blend until there are `count`.
    void extend(int count) {
        first.resize(count, first.back());
        second.resize(count, second.back());
        weight.resize(count, weight.back());
    }

    Blends blends() const { return {first.data(), second.data(), weight.data()}; }

  private:
    // The number of a position that is not below any asked for before, but for the last two.
    std::int32_t number(std::int32_t position, bool all) {
        while (positions.empty() || positions.back() < position)
            positions.push_back(all && !positions.empty() ? positions.back() + 1 : position);
        std::size_t n = positions.size() - 1;
        while (positions[n] != position)
            --n;
        return static_cast<std::int32_t>(n);
    }
};

struct Helpers {
    std::vector<std::thread> threads;
    ~Helpers() {
        for (std::thread &thread : threads)
            thread.join();
    }
};

class Engine {
  public:
    Engine(const Task &task, const Variant &variant, int threads)
        : task_(task), variant_(variant), read_along_(nearest_axis(task.source)),
          sizes_(sizes_of(task, read_along_)), turned_rows_(turned_rows(voxel_bytes(task.stored))) {
        const Axis &h = task.axes[H];
        add_cuts(heights_, 0, h.pad_before, PADDED_HEIGHTS, true);
        cut_valid_heights();
        add_cuts(heights_, h.pad_before + h.n_valid, h.n_out, PADDED_HEIGHTS, true);
        add_cuts(depths_, 0, task.axes[D].n_out, sizes_.depths, false);
        // What a tile begins with is made by its neighbour too, so only threads call for more.
        const int width = task.axes[W].n_out;
        int parts = cuts(width, sizes_.widths);
        if (threads > 1) {
            const int others = static_cast<int>(heights_.size() * depths_.size());
            parts = std::max(parts, std::min(cuts(width, turned_rows_), cuts(4 * threads, others)));
        }
        add_cuts(widths_, 0, width, round_up(cuts(width, parts), turned_rows_), false);
    }

    void run(int threads) {
        const int tiles = static_cast<int>(heights_.size() * widths_.size() * depths_.size());
        std::atomic<int> next{0};
        std::atomic_flag failed = ATOMIC_FLAG_INIT;
        std::exception_ptr failure;
        const auto work = [&] {
            try {
                for (int n; (n = next.fetch_add(1, std::memory_order_relaxed)) < tiles;)
                    run_tile(n);
            } catch (...) {
                if (!failed.test_and_set())
                    failure = std::current_exception();
            }
        };
        {
            Helpers helpers;
            for (int t = 1; t < std::min(threads, tiles); ++t)
                helpers.threads.emplace_back(work);
            work();
        }
        if (failure)
            std::rethrow_exception(failure);
    }

  private:
    // The axis whose voxels lie nearest to each other; D in doubt.
    static int nearest_axis(const Source &source) {
        int nearest = D;
        for (int axis : {H, W})
            if (std::abs(source.strides[axis]) < std::abs(source.strides[nearest]))
                nearest = axis;
        return nearest;
    }

    static const TileSizes &sizes_of(const Task &task, int read_along) {
        if (read_along == H)
            return task.dhw ? ALONG_H_TO_DHW : ALONG_H_TO_HWD;
        if (read_along == W)
            return task.dhw ? ALONG_W_TO_DHW : ALONG_W_TO_HWD;
        return task.dhw && voxel_bytes(task.stored) == 1 ? ALONG_D_TO_DHW_BYTES : ALONG_D;
    }

    static int cuts(int n, int size) { return (n + size - 1) / size; }

    static void add_cuts(std::vector<Range> &ranges, int begin, int end, int size, bool padding) {
        for (; begin < end; begin += size)
            ranges.push_back({begin, std::min(end, begin + size), padding});
    }

    // Strips of outputs that need at most sizes_.rows source rows.
    void cut_valid_heights() {
        const Axis &axis = task_.axes[H];
        const int rows = axis.i1[axis.n_valid - 1] - axis.i0[0] + 1;
        const int height = cuts(axis.n_valid, cuts(rows, sizes_.rows));
        for (int o = 0; o < axis.n_valid;) {
            int end = o + 1;
            while (end < axis.n_valid && end < o + height &&
                   axis.i1[end] - axis.i0[o] < sizes_.rows)
                ++end;
            heights_.push_back({axis.pad_before + o, axis.pad_before + end, false});
            o = end;
        }
    }

    void run_tile(int number) const {
        const int n_widths = static_cast<int>(widths_.size());
        const int n_depths = static_cast<int>(depths_.size());
        const Range &height = heights_[number / (n_widths * n_depths)];
        const Range &width = widths_[number / n_depths % n_widths];
        const Range &depth = depths_[number % n_depths];
        const Axis &axis_h = task_.axes[H], &axis_d = task_.axes[D];

        Tile tile{};
        tile.task = &task_;
        tile.h0 = height.begin, tile.h1 = height.end;
        tile.w0 = width.begin, tile.w1 = width.end;
        tile.d0 = depth.begin, tile.d1 = depth.end;
        const int d_begin = std::max(depth.begin, axis_d.pad_before);
        const int d_end = std::min(depth.end, axis_d.pad_before + axis_d.n_valid);
        const std::size_t row = voxel_bytes(task_.stored) * (tile.d1 - tile.d0);
        if (height.is_padding || d_begin >= d_end) {
            tile.is_padding = true;
            tile.staged = scratch.at_least(std::max<std::size_t>(
                STAGED_ROWS * row, voxel_bytes(task_.stored) * (tile.w1 - tile.w0)));
            return variant_.run(tile);
        }
        tile.d_begin = d_begin - depth.begin;
        tile.d_count = d_end - d_begin;
        tile.pitch = round_up(tile.d_count, LANES);
        tile.read_along = read_along_;
        tile.slices_adjoin = read_along_ == D && is_contiguous(task_.source, D);
        Sampled slices(axis_d, d_begin - axis_d.pad_before, tile.d_count, tile.slices_adjoin);
        slices.extend(round_up(tile.d_count, LANES));
        tile.slices = slices.positions.data();
        tile.slices_used = static_cast<int>(slices.positions.size());
        tile.d = slices.blends();

        // Floats of one plane, of each of `rows`, of `converted`; vectors may be read and written
        // up to the next multiple of LANES.
        std::size_t plane = (tile.w1 - tile.w0) * tile.pitch, kept[2]{}, converted;
        std::size_t staged_rows = task_.dhw ? turned_rows_ : STAGED_ROWS;
        Sampled rows;
        if (read_along_ == H) {
            rows = Sampled(axis_h, height.begin - axis_h.pad_before, tile.h1 - tile.h0, true);
            tile.first_row = rows.positions.front();
            tile.row_count = static_cast<int>(rows.positions.size());
            tile.h = rows.blends();
            if (task_.dhw)
                staged_rows *= tile.h1 - tile.h0;
        } else if (read_along_ == W) {
            find_rows(tile);
        }
        if (read_along_ == D) {
            kept[0] = kept[1] = tile.pitch;
            converted = round_up(tile.slices_used, LANES) + LANES;
        } else {
            tile.converted_pitch = round_up(tile.row_count, LANES);
            (read_along_ == H ? plane : kept[0]) = tile.converted_pitch * tile.pitch;
            converted = RING_ROWS * tile.converted_pitch;
        }
        float *memory = reinterpret_cast<float *>(scratch.at_least(
            sizeof(float) * (2 * plane + kept[0] + kept[1] + converted) + staged_rows * row));
        for (float *&part : tile.planes)
            part = memory, memory += plane;
        for (int part : {0, 1})
            tile.rows[part] = memory, memory += kept[part];
        tile.converted = memory;
        tile.staged = memory + converted;
        variant_.run(tile);
    }

    // Source positions along W that the tile's valid outputs blend, if it has any.
    void find_rows(Tile &tile) const {
        const Axis &axis = task_.axes[W];
        const int begin = std::max(tile.w0 - axis.pad_before, 0);
        const int end = std::min(tile.w1 - axis.pad_before, axis.n_valid);
        if (begin >= end)
            return;
        tile.first_row = axis.i0[begin];
        tile.row_count = axis.i1[end - 1] - tile.first_row + 1;
    }

    const Task &task_;
    const Variant &variant_;
    const int read_along_;
    const TileSizes &sizes_;
    const int turned_rows_;
    std::vector<Range> heights_, widths_, depths_;
};

}  // namespace

void preprocess(const Task &task, const Variant &variant, int threads) {
    Engine(task, variant, threads).run(threads);
}

}  // namespace ctgpu
