// The CUDA engine's work on one tile of output, thread by thread.
//
// A block makes a box of the output: up to tile_h × TILE_W × TILE_D voxels.  It works in two
// phases with one barrier between them:
//
//   blend   source voxels → Y[slot][w][d] in shared memory: gather, rescale, clip, blend along D
//           and W.  A slot is one source row (along H) that the tile needs, so that the last blend
//           finds both of its rows in shared memory.
//   write   Y → output: blend along H, normalise, round, store eight voxels at once; padding needs
//           no source.
//
// In `blend` neighbouring threads follow the source's contiguous axis, in `write` the output's:
// shared memory is where the volume is transposed.  There are two ways to blend:
//
//   ROWS = 1   Any strides.  A thread carries COLUMNS (slot, d) columns along W and keeps the two
//              last blends in registers, so a voxel costs two cached loads, not eight.
//   ROWS = 4   Four rows lie together in memory and one load brings them.  A thread goes from one
//              source column along W to the next, and has the loads of those ahead under way.
//
// The arithmetic is preprocess_math.h's, and a blend along D or W that several outputs share is
// computed once: reuse changes no bits.
//
// Everything here compiles as device code and for the host; host_emulation.cpp runs the same
// phases one thread after the other, which is how the index logic is tested without a GPU.

#ifndef CTGPU_CUDA_TILE_H
#define CTGPU_CUDA_TILE_H

#include "voxel.h"

namespace ctgpu {

enum Axis { AXIS_H = 0, AXIS_W = 1, AXIS_D = 2 };

constexpr int THREADS = 320;  // of a block
constexpr int WARP = 32;
constexpr int COLUMNS = 4;            // (slot, d) columns of a thread in `blend` with ROWS = 1
constexpr int PLANE = WARP * VECTOR;  // TILE_W × TILE_D: one warp writes it in one go
constexpr int MOST_VOLUMES = 16;      // of a launch
constexpr int SLOTS = 40;             // source rows of a tile, at most
constexpr int RUN_VOXELS = 8;         // along W that a thread carries its blends over, at most

// How one output voxel of one axis is sampled: geometry.py's tables, with what the kernel would
// compute of their indices.
struct alignas(16) Step {
    // Of the two rows or voxels: along H the bytes of shared memory before the slots that they are
    // in, along W and D the source's voxels before them.
    int at0;
    float w;
    int at1;
    int reserved;

    static CTGPU_DEVICE Step read(const Step *step) {
#ifdef __CUDACC__
        const int4 read = __ldg(reinterpret_cast<const int4 *>(step));
        return {read.x, __int_as_float(read.y), read.z, 0};
#else
        return *step;
#endif
    }
};

// What a tile needs along H: source voxels before each row, or with ROWS = 4 before the first of
// each group of four.
struct Band {
    int count;
    int rows[SLOTS];
};

// A step along W with ROWS = 4, done as soon as the second of its two columns is there.  One that
// has the last column of the source alone waits for the one behind that.
struct ColumnStep {
    int column;
    float w;

    static CTGPU_DEVICE ColumnStep read(const ColumnStep *step) {
#ifdef __CUDACC__
        const int2 read = __ldg(reinterpret_cast<const int2 *>(step));
        return {read.x, __int_as_float(read.y)};
#else
        return *step;
#endif
    }
};

constexpr int NO_COLUMN = 0x7fffffff;  // of what stands behind the last step

// RUN_VOXELS outputs along W.
struct alignas(8) Run {
    int first;  // of these the first that is sampled
    int last;   // the last source column that they need
    ColumnStep steps[RUN_VOXELS + 1];
};

struct AxisTable {
    const Step *steps;  // n_valid of them
    int n_out;          // voxels of the output
    int pad_before;     // padding at the low side
    int n_valid;        // voxels that are sampled
    int reserved;
};

// One volume.  ctgpu/engines/batch.py fills the same structs.
struct Volume {
    const void *source;      // voxel (0, 0, 0); with ROWS = 4 the first in memory of its row
    void *out;               // C order, aligned to whole vectors
    const Band *bands;       // of each tile along H
    const Run *runs;         // of all tiles along W, for ROWS = 4
    long long column_bytes;  // from one source column along W to the next
    AxisTable axes[3];       // H, W, D
    Intensity intensity;
    PairLimits pair_limits;
    int tile_h;    // rows of a tile: such that none needs more than SLOTS slots
    int pad_bits;  // a voxel of padding, as it is stored
};

// The kernel's argument: volumes that one launch makes.
struct Batch {
    Volume volumes[MOST_VOLUMES];
    int first_z[MOST_VOLUMES];  // of the grid, whose x and y reach as far as any volume needs
    int count;
    int reserved;
};
static_assert(sizeof(Step) == 16 && sizeof(Band) == 164 && sizeof(Run) == 80 &&
                  sizeof(Volume) == 160 && sizeof(Batch) == 2632,
              "ctgpu/engines packs as many bytes");

CTGPU_DEVICE Intensity intensity_of(const Volume &volume) {
    Intensity intensity = volume.intensity;
#ifdef __CUDACC__  // known when the kernel is compiled, so that no voxel asks
    intensity.rescales = CTGPU_RESCALES;
    intensity.clips_before = CTGPU_CLIPS_BEFORE;
#endif
    return intensity;
}

constexpr CTGPU_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
CTGPU_DEVICE int larger(int a, int b) { return a > b ? a : b; }

// Which tile a block makes.  The grid's x counts along OUT, so that blocks of about the same time
// complete lines, and its y along H.  What lies beyond a volume's own tiles has nothing to do.
struct Place {
    int volume, along_out, along_h, along_other;

    CTGPU_DEVICE Place(const Batch &batch, int x, int y, int z)
        : volume(0), along_out(x), along_h(y) {
        while (volume + 1 < batch.count && z >= batch.first_z[volume + 1])
            ++volume;
        along_other = z - batch.first_z[volume];
    }
};

// ---- One tile ----------------------------------------------------------------------------------

// A tile's share of one axis, in output voxels and in steps.
struct Range {
    int first;  // output voxel
    int size;   // voxels inside the output
    int step;   // step of the first sampled voxel
    int steps;  // sampled voxels

    CTGPU_DEVICE Range(const AxisTable &axis, int tile, int tile_size) {
        first = tile * tile_size;
        size = smaller(tile_size, axis.n_out - first);
        step = larger(first - axis.pad_before, 0);
        steps = smaller(first + size - axis.pad_before, axis.n_valid) - step;
    }
};

// Voxel: type of the source.  SWAP: it is in the other byte order.  FAST: the axis along which
// the source is contiguous.  OUT: the axis along which the output is (D of HWD, W of DHW).  ROWS:
// those that one load brings.  PAIRS: they are clipped two at a time, before they are converted.
template <class Voxel, bool SWAP, int FAST, int OUT, int ROWS, bool PAIRS>
struct Tile {
    static_assert(ROWS == 1 || (ROWS == 4 && FAST == AXIS_H), "rows lie together only along H");

    // Long where reading and writing agree on an axis, else square: 32-byte sectors both ways.
    static constexpr int LONG_SIDE = PLANE / 4, SHORT_SIDE = 4, SQUARE_SIDE = 16;
    static constexpr int TILE_W = FAST != OUT     ? SQUARE_SIDE
                                  : OUT == AXIS_W ? LONG_SIDE
                                                  : SHORT_SIDE;
    static constexpr int TILE_D = PLANE / TILE_W;
    static constexpr int VECTORS = (OUT == AXIS_D ? TILE_D : TILE_W) / VECTOR;  // along OUT
    // Steps along W that a thread carries its blends over.
    static constexpr int RUN = FAST == AXIS_W ? 1 : smaller(TILE_W, RUN_VOXELS);
    static constexpr int RUNS = TILE_W / RUN;

    // Shared memory.  PITCH lies between the elements of a vector, GROUP between groups of ROWS
    // slots, SLOT between the slots of a group.  `write` reads one element of all lanes' vectors at
    // once, without bank conflicts; `blend` stores 32 neighbours along FAST.  With ROWS = 4 these
    // are 10 groups, then the next d: 2 banks on, as are 10 times the 29 of a group (mod 32).
    static constexpr int PITCH = ROWS == 4 ? WARP + 2 : FAST == OUT ? WARP + 4 : WARP + 1;
    static constexpr int GROUPS = SLOTS / ROWS;
    static constexpr int GROUP = VECTOR * PITCH + (ROWS == 4 ? 13 : 1);
    static constexpr int SLOT = GROUPS * GROUP;
    static constexpr int SHARED_FLOATS = ROWS * SLOT;  // below what needs no opt-in
    static_assert(SHARED_FLOATS * sizeof(float) <= 48 << 10, "");

    using Bits = typename VoxelBits<Voxel>::type;
    using Four = Quad<static_cast<int>(sizeof(Bits))>;

    const Volume &volume;
    const Range h, w, d;
    const Band &band;
    CTGPU_DEVICE Tile(const Batch &batch, const Place &place)
        : volume(batch.volumes[place.volume]), h(volume.axes[AXIS_H], place.along_h, volume.tile_h),
          w(volume.axes[AXIS_W], OUT == AXIS_W ? place.along_out : place.along_other, TILE_W),
          d(volume.axes[AXIS_D], OUT == AXIS_D ? place.along_out : place.along_other, TILE_D),
          band(volume.bands[place.along_h]) {}

    // Whether any voxel of the tile has a source.
    CTGPU_DEVICE bool is_sampled() const { return h.steps > 0 && w.steps > 0 && d.steps > 0; }

    // First phase.
    CTGPU_DEVICE void blend(unsigned int thread, float *shared) const {
        if constexpr (ROWS == 4)
            blend_rows(thread, shared);
        else
            blend_columns(thread, shared);
    }

    // Second phase.
    template <Stored STORED>
    CTGPU_DEVICE void write(unsigned int thread, const float *shared) const {
        using To = Output<STORED>;
        constexpr int WORDS = To::WORDS;

        const AxisTable &axis_h = volume.axes[AXIS_H], &axis_out = volume.axes[OUT];
        const Range &out = OUT == AXIS_D ? d : w, &across = OUT == AXIS_D ? w : d;
        const unsigned int lane = thread % WARP;
        const int vector = static_cast<int>(lane % VECTORS), local_out = vector * VECTOR,
                  local_across = static_cast<int>(lane / VECTORS),
                  first_row = static_cast<int>(thread / WARP);
        if (local_across >= across.size || local_out >= out.size)
            return;
        auto *to = static_cast<typename To::Bits *>(volume.out) +
                   offset_of(h.first + first_row, across.first + local_across) + out.first +
                   local_out;
        // Where rows of the output are not whole vectors, they are not aligned to such either.
        const bool whole = axis_out.n_out % VECTOR == 0;
        const auto store = [&](const unsigned int (&words)[WORDS]) {
            if (whole)
                store_vector(to, words);
            else
                To::store_part(to, words, out.size - local_out);
        };

        const unsigned int pad = To::filled(static_cast<unsigned int>(volume.pad_bits));
        unsigned int padding[WORDS];
#pragma unroll
        for (int n = 0; n < WORDS; ++n)
            padding[n] = pad;

        // Of each word the bits that are sampled, and what stands in the others.
        const int t_across =
            across.first + local_across - volume.axes[OUT == AXIS_D ? AXIS_W : AXIS_D].pad_before;
        const bool has_source =
            is_sampled() && t_across >= across.step && t_across < across.step + across.steps;
        const int before = out.step - (out.first + local_out - axis_out.pad_before);
        unsigned int kept[WORDS], rest[WORDS];
        To::keep(kept, has_source ? before : VECTOR, before + out.steps);
#pragma unroll
        for (int n = 0; n < WORDS; ++n)
            rest[n] = pad & ~kept[n];

        const Intensity intensity = intensity_of(volume);
        const float *const y = shared + vector_at(local_across, vector);
        const long long stride = offset_of(THREADS / WARP, 0);
        for (int row = first_row; row < h.size; row += THREADS / WARP, to += stride) {
            const int t_h = h.first + row - axis_h.pad_before;
            if (!is_sampled() || t_h < h.step || t_h >= h.step + h.steps) {
                store(padding);
                continue;
            }
            const Step step = Step::read(&axis_h.steps[t_h]);
            const float *const y0 = bytes_behind(y, step.at0);
            const float *const y1 = bytes_behind(y, step.at1);
            float v[VECTOR];
#pragma unroll
            for (int k = 0; k < VECTOR; ++k)
                v[k] = normalise(lerp(y0[k * PITCH], y1[k * PITCH], step.w), intensity);
            unsigned int words[WORDS];
#pragma unroll
            for (int n = 0; n < WORDS; ++n)
                words[n] = (To::word(v + n * (VECTOR / WORDS)) & kept[n]) | rest[n];
            store(words);
        }
    }

  private:
    // Any strides.
    CTGPU_DEVICE void blend_columns(unsigned int thread, float *shared) const {
        const AxisTable &axis_w = volume.axes[AXIS_W], &axis_d = volume.axes[AXIS_D];
        const Bits *const source = static_cast<const Bits *>(volume.source);
        const Intensity intensity = intensity_of(volume);
        const int slots = read_only(&band.count);

        // Columns of a thread differ in their slot where lanes follow D, else in their d.
        const unsigned int slot_groups =
            static_cast<unsigned int>(FAST == AXIS_D ? (slots + COLUMNS - 1) / COLUMNS : slots);
        constexpr unsigned int D_GROUPS = FAST == AXIS_D ? TILE_D : TILE_D / COLUMNS;
        const unsigned int items = slot_groups * D_GROUPS * RUNS;

        for (unsigned int item = thread; item < items; item += THREADS) {
            unsigned int slot, local_d, run_along_w;
            if (FAST == AXIS_H) {
                slot = item % slot_groups;
                local_d = item / slot_groups % D_GROUPS;
                run_along_w = item / slot_groups / D_GROUPS;
            } else if (FAST == AXIS_D) {
                local_d = item % D_GROUPS;
                slot = item / D_GROUPS % slot_groups;
                run_along_w = item / D_GROUPS / slot_groups;
            } else {
                run_along_w = item % RUNS;
                slot = item / RUNS % slot_groups;
                local_d = item / RUNS / slot_groups % D_GROUPS;  // which tells how many there are
            }
            const int run = static_cast<int>(run_along_w);
            int first[COLUMNS], second[COLUMNS], slot_of[COLUMNS], d_of[COLUMNS];
            float weight[COLUMNS];
            int row = 0;
            Step step{};
#pragma unroll
            for (unsigned int c = 0; c < COLUMNS; ++c) {
                slot_of[c] = static_cast<int>(slot + (FAST == AXIS_D ? c * slot_groups : 0));
                d_of[c] = static_cast<int>(local_d + (FAST == AXIS_D ? 0 : c * D_GROUPS));
                // Beyond the last slot or the sampled range the nearest one is computed again; it
                // lands where `write` does not look.
                if (FAST == AXIS_D || c == 0)
                    row = read_only(&band.rows[smaller(slot_of[c], slots - 1)]);
                if (FAST != AXIS_D || c == 0)
                    step = Step::read(axis_d.steps + sampled_d(d_of[c]));
                first[c] = row + step.at0;
                second[c] = row + step.at1;
                weight[c] = step.w;
            }

            const int t_first = w.first + run * RUN - axis_w.pad_before;
            const int t_end = smaller(t_first + RUN, w.step + w.steps);
            constexpr int NONE = -0x7fffffff - 1;
            int at0 = NONE, at1 = NONE;  // source columns along W that x0 and x1 hold
            float x0[COLUMNS], x1[COLUMNS];
            for (int t = larger(t_first, w.step); t < t_end; ++t) {
                const Step step = Step::read(&axis_w.steps[t]);
                if (step.at0 != at0) {
                    if (step.at0 == at1)
                        copy(x0, x1);
                    else
                        blend_d(x0, source + step.at0, first, second, weight, intensity);
                    at0 = step.at0;
                }
                if (step.at1 != at1) {
                    blend_d(x1, source + step.at1, first, second, weight, intensity);
                    at1 = step.at1;
                }
                const int local_w = run * RUN + t - t_first;
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
                    shared[slot_of[c] * GROUP + voxel_at(local_w, d_of[c])] =
                        lerp(x0[c], x1[c], step.w);
            }
        }
    }

    // Four rows at a time; every thread has one run.
    CTGPU_DEVICE void blend_rows(unsigned int thread, float *shared) const {
        static_assert(ROWS == 1 || GROUPS * TILE_D * RUNS == THREADS, "");
        // Loads under way: of 16 bytes, or of the eight of two-byte voxels.
        constexpr int AHEAD = sizeof(Bits) > 4 ? 1 : sizeof(Bits) > 2 ? 2 : 4, UNROLLED = 4;

        const unsigned int column_of_d = thread / GROUPS;
        const int group = static_cast<int>(thread % GROUPS),
                  local_d = static_cast<int>(column_of_d % TILE_D),
                  run = same_in_warp(static_cast<int>(column_of_d / TILE_D));
        const Run &steps = volume.runs[w.first / RUN + run];
        const ColumnStep *next = steps.steps;
        ColumnStep step = ColumnStep::read(next);
        if (group >= read_only(&band.count) || step.column == NO_COLUMN)
            return;

        const Intensity intensity = intensity_of(volume);
        const Step depth = Step::read(volume.axes[AXIS_D].steps + sampled_d(local_d));
        const Bits *const source =
            static_cast<const Bits *>(volume.source) + read_only(&band.rows[group]);
        const int first = step.column - 1, last = read_only(&steps.last);
        const long long skipped = first * volume.column_bytes;
        const Bits *near = bytes_behind(source + depth.at0, skipped),
                   *far = bytes_behind(source + depth.at1, skipped);
        float *to = shared + group * GROUP + voxel_at(run * RUN + read_only(&steps.first), local_d);

        Four low[AHEAD], high[AHEAD];
        const auto load = [&](int n, int column) {
            if (column > last)
                return;
            low[n] = Four::read(near);
            high[n] = Four::read(far);
            near = bytes_behind(near, volume.column_bytes);
            far = bytes_behind(far, volume.column_bytes);
        };
        const auto store = [&](const float (&x0)[ROWS], const float (&x1)[ROWS]) {
#pragma unroll
            for (int c = 0; c < ROWS; ++c)
                to[c * SLOT] = lerp(x0[c], x1[c], step.w);
            to += OUT == AXIS_D ? 1 : PITCH;  // along W, within a run
            step = ColumnStep::read(++next);
        };
#pragma unroll
        for (int n = 0; n < AHEAD; ++n)
            load(n, first + n);
        float x[2][ROWS];  // blends of the last column and of the one before
        for (int column = first;; column += UNROLLED) {
#pragma unroll
            for (int n = 0; n < UNROLLED; ++n) {
                float (&x1)[ROWS] = x[n % 2];
                blend_four(x1, low[n % AHEAD], high[n % AHEAD], depth.w, intensity);
                load(n % AHEAD, column + n + AHEAD);
                while (step.column == column + n)
                    store(x[(n + 1) % 2], x1);
                if (column + n == last) {
                    while (step.column != NO_COLUMN)
                        store(x1, x1);
                    return;
                }
            }
        }
    }

    // The step along D of a voxel of the tile, or the nearest that is sampled.
    CTGPU_DEVICE int sampled_d(int local_d) const {
        const int t = d.first + local_d - volume.axes[AXIS_D].pad_before;
        return smaller(larger(t, d.step), d.step + d.steps - 1);
    }

    static CTGPU_DEVICE void copy(float (&to)[COLUMNS], const float (&from)[COLUMNS]) {
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            to[c] = from[c];
    }

    // Steps 1 to 4 for every column at one place along W: all loads first, then their use.
    static CTGPU_DEVICE void blend_d(float (&x)[COLUMNS], const Bits *source,
                                     const int (&first)[COLUMNS], const int (&second)[COLUMNS],
                                     const float (&weight)[COLUMNS], const Intensity &intensity) {
        Bits low[COLUMNS], high[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            low[c] = read_only(source + first[c]);
            high[c] = read_only(source + second[c]);
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            x[c] = lerp(hu_of(low[c], intensity), hu_of(high[c], intensity), weight[c]);
    }

    // The same for four rows.
    CTGPU_DEVICE void blend_four(float (&x)[ROWS], const Four &low, const Four &high, float weight,
                                 const Intensity &intensity) const {
        Intensity rest = intensity;
        Four a = low, b = high;
        if constexpr (PAIRS) {
            a.clip_pairs(volume.pair_limits);
            b.clip_pairs(volume.pair_limits);
            rest.clips_before = 0;
        }
#pragma unroll
        for (int c = 0; c < ROWS; ++c)
            x[c] = lerp(hu_of(a.template voxel<Bits>(c), rest),
                        hu_of(b.template voxel<Bits>(c), rest), weight);
    }

    static CTGPU_DEVICE float hu_of(Bits bits, const Intensity &intensity) {
        return load_hu(ToFloat<Voxel>::from(SWAP ? swapped(bits) : bits), intensity);
    }

    // Where a vector begins in its slot, and where a voxel lies there.
    static CTGPU_DEVICE int vector_at(int across, int vector) {
        // Else 8 steps along D, from one vector into the next, were not 8 times one of them.
        if (ROWS == 4 && OUT == AXIS_D)
            return across + vector * (WARP / VECTORS);
        return across * VECTORS + vector;
    }
    static CTGPU_DEVICE int voxel_at(int local_w, int local_d) {
        const unsigned int along = static_cast<unsigned int>(OUT == AXIS_D ? local_d : local_w);
        const int across = OUT == AXIS_D ? local_w : local_d;
        return static_cast<int>(along % VECTOR) * PITCH +
               vector_at(across, static_cast<int>(along / VECTOR));
    }

    // Output voxels before (h, across) along OUT; a volume may have more than 2³¹ of them.
    CTGPU_DEVICE long long offset_of(int at_h, int at_across) const {
        const long long n_h = volume.axes[AXIS_H].n_out, n_w = volume.axes[AXIS_W].n_out,
                        n_d = volume.axes[AXIS_D].n_out;
        return OUT == AXIS_D ? (at_h * n_w + at_across) * n_d : (at_across * n_h + at_h) * n_w;
    }
};

}  // namespace ctgpu

#endif
