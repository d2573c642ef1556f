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
// shared memory is where the volume is transposed.  Each thread carries COLUMNS (slot, d) columns
// along W and keeps the two last blends in registers, so a voxel costs two cached loads, not eight.
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

constexpr int THREADS = 320;                        // of a block
constexpr int WARP = 32;                            //
constexpr int COLUMNS = 4;                          // (slot, d) columns of a thread in `blend`
constexpr int PLANE = WARP * VECTOR;                // TILE_W × TILE_D: one warp writes it in one go
constexpr int SLOTS = 40;                           // source rows of a tile, at most
constexpr int SLOT_FLOATS = PLANE + 1;              // odd: slots of a warp fall into distinct banks
constexpr int SHARED_FLOATS = SLOTS * SLOT_FLOATS;  // 41,120 bytes: below what needs no opt-in

// How one output voxel of one axis is sampled: geometry.py's tables.
struct Step {
    int i0, i1;
    float w;

    static CTGPU_DEVICE Step read(const Step *step) {
        return {read_only(&step->i0), read_only(&step->i1), read_only(&step->w)};
    }
};

struct AxisTable {
    const Step *steps;  // n_valid of them
    int n_out;          // voxels of the output
    int pad_before;     // padding at the low side
    int n_valid;        // voxels that are sampled
    int stride;         // of the source, in voxels; may be negative
};

// One volume of a batch.  ctgpu/engines/batch.py fills the same struct.
struct Volume {
    const void *source;  // voxel (0, 0, 0)
    void *out;           // C order, aligned to whole vectors
    AxisTable axes[3];   // H, W, D
    Intensity intensity;
    int first_tile;  // tiles of the batch before this volume
    int tile_h;      // rows of a tile: such that none needs more than SLOTS slots
    int pad_bits;    // a voxel of padding, as it is stored
    int reserved;
};
static_assert(sizeof(Volume) == 136, "ctgpu/engines/batch.py packs 136 bytes");

CTGPU_DEVICE Intensity intensity_of(const Volume &volume) {
    Intensity intensity = volume.intensity;
#ifdef __CUDACC__  // known when the kernel is compiled, so that no voxel asks
    intensity.rescales = CTGPU_RESCALES;
    intensity.clips_before = CTGPU_CLIPS_BEFORE;
#endif
    return intensity;
}

CTGPU_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
CTGPU_DEVICE int larger(int a, int b) { return a > b ? a : b; }
CTGPU_DEVICE int tiles_along(int n, int tile) { return (n + tile - 1) / tile; }

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

// Source rows of a tile along H.  Where the steps lie close together, slot s is row low + s; where
// they skip rows, slots 2t and 2t + 1 are the two rows of step t.  Either way at most 2 · steps.
struct Slots {
    int low;
    int count;
    bool dense;

    CTGPU_DEVICE Slots() : low(0), count(0), dense(true) {}
    CTGPU_DEVICE Slots(const AxisTable &axis, const Range &range) {
        low = read_only(&axis.steps[range.step].i0);
        const int rows = read_only(&axis.steps[range.step + range.steps - 1].i1) - low + 1;
        dense = rows <= 2 * range.steps;
        count = dense ? rows : 2 * range.steps;
    }
    CTGPU_DEVICE int row_of(int slot, const Step *steps) const {
        if (dense)
            return low + slot;
        const Step *const step = steps + slot / 2;
        return read_only(slot % 2 ? &step->i1 : &step->i0);
    }
    CTGPU_DEVICE int first_of(int t, const Step &step) const {
        return dense ? step.i0 - low : 2 * t;
    }
    CTGPU_DEVICE int second_of(int t, const Step &step) const {
        return dense ? step.i1 - low : 2 * t + 1;
    }
};

// Voxel: type of the source.  SWAP: it is in the other byte order.  FAST: the axis along which
// the source is contiguous.  OUT: the axis along which the output is (D of HWD, W of DHW).
template <class Voxel, bool SWAP, int FAST, int OUT>
struct Tile {
    // Long where reading and writing agree on an axis, else square: 32-byte sectors both ways.
    static constexpr int LONG_SIDE = PLANE / 4, SHORT_SIDE = 4, SQUARE_SIDE = 16;
    static constexpr int TILE_W = FAST != OUT     ? SQUARE_SIDE
                                  : OUT == AXIS_W ? LONG_SIDE
                                                  : SHORT_SIDE;
    static constexpr int TILE_D = PLANE / TILE_W;
    static constexpr int TILE_OUT = OUT == AXIS_D ? TILE_D : TILE_W;  // tile's size along OUT
    // Steps along W that a thread carries its blends over.
    static constexpr int RUN = FAST == AXIS_W ? 1 : TILE_W < 8 ? TILE_W : 8;
    static constexpr int RUNS = TILE_W / RUN;

    using Bits = typename VoxelBits<Voxel>::type;

    const Volume &volume;
    const Range h, w, d;

    static CTGPU_DEVICE int tiles_of(const Volume &v) {
        return tiles_along(v.axes[AXIS_H].n_out, v.tile_h) *
               tiles_along(v.axes[AXIS_W].n_out, TILE_W) *
               tiles_along(v.axes[AXIS_D].n_out, TILE_D);
    }

    // Tiles are counted along OUT first, so that blocks of about the same time complete lines.
    CTGPU_DEVICE Tile(const Volume &v, int tile)
        : Tile(v, tile, tiles_along(v.axes[OUT].n_out, TILE_OUT),
               tiles_along(v.axes[AXIS_H].n_out, v.tile_h)) {}

    // Whether any voxel of the tile has a source.
    CTGPU_DEVICE bool is_sampled() const { return h.steps > 0 && w.steps > 0 && d.steps > 0; }

    // First phase.
    CTGPU_DEVICE void blend(int thread, float *shared) const {
        const AxisTable &axis_h = volume.axes[AXIS_H], &axis_w = volume.axes[AXIS_W],
                        &axis_d = volume.axes[AXIS_D];
        const Bits *const source = static_cast<const Bits *>(volume.source);
        const Intensity intensity = intensity_of(volume);
        const Step *const steps_h = axis_h.steps + h.step;
        const Slots slots(axis_h, h);

        // Columns of a thread differ in their slot where lanes follow D, else in their d.
        const int slot_groups = FAST == AXIS_D ? tiles_along(slots.count, COLUMNS) : slots.count;
        constexpr int d_groups = FAST == AXIS_D ? TILE_D : TILE_D / COLUMNS;
        const int items = slot_groups * d_groups * RUNS;

        for (int item = thread; item < items; item += THREADS) {
            int slot, local_d, run;
            if (FAST == AXIS_H) {
                slot = item % slot_groups;
                local_d = item / slot_groups % d_groups;
                run = item / slot_groups / d_groups;
            } else if (FAST == AXIS_D) {
                local_d = item % d_groups;
                slot = item / d_groups % slot_groups;
                run = item / d_groups / slot_groups;
            } else {
                run = item % RUNS;
                slot = item / RUNS % slot_groups;
                local_d = item / RUNS / slot_groups;
            }

            int first[COLUMNS], second[COLUMNS], slot_of[COLUMNS], d_of[COLUMNS];
            float weight[COLUMNS];
            int row = 0;
            Step step{};
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                slot_of[c] = slot + (FAST == AXIS_D ? c * slot_groups : 0);
                d_of[c] = local_d + (FAST == AXIS_D ? 0 : c * d_groups);
                // Beyond the last slot or the sampled range the nearest one is computed again; it
                // lands where `write` does not look.
                if (FAST == AXIS_D || c == 0)
                    row = slots.row_of(smaller(slot_of[c], slots.count - 1), steps_h);
                if (FAST != AXIS_D || c == 0) {
                    const int t = d.first + d_of[c] - axis_d.pad_before;
                    step =
                        Step::read(axis_d.steps + smaller(larger(t, d.step), d.step + d.steps - 1));
                }
                first[c] = row * axis_h.stride + step.i0 * axis_d.stride;
                second[c] = row * axis_h.stride + step.i1 * axis_d.stride;
                weight[c] = step.w;
            }

            const int t_first = w.first + run * RUN - axis_w.pad_before;
            const int t_end = smaller(t_first + RUN, w.step + w.steps);
            int at0 = -1, at1 = -1;  // source columns along W that x0 and x1 hold
            float x0[COLUMNS], x1[COLUMNS];
            for (int t = larger(t_first, w.step); t < t_end; ++t) {
                const Step step = Step::read(&axis_w.steps[t]);
                if (step.i0 != at0) {
                    if (step.i0 == at1)
                        copy(x0, x1);
                    else
                        blend_d(x0, source + step.i0 * axis_w.stride, first, second, weight,
                                intensity);
                    at0 = step.i0;
                }
                if (step.i1 != at1) {
                    blend_d(x1, source + step.i1 * axis_w.stride, first, second, weight, intensity);
                    at1 = step.i1;
                }
                const int local_w = run * RUN + t - t_first;
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
                    shared[slot_of[c] * SLOT_FLOATS + place(local_w, d_of[c])] =
                        lerp(x0[c], x1[c], step.w);
            }
        }
    }

    // Second phase.
    template <Stored STORED>
    CTGPU_DEVICE void write(int thread, const float *shared) const {
        using To = Output<STORED>;
        constexpr int OF_WORD = 4 / sizeof(typename To::Bits), WORDS = VECTOR / OF_WORD;

        const AxisTable &axis_h = volume.axes[AXIS_H], &axis_out = volume.axes[OUT];
        const Range &out = OUT == AXIS_D ? d : w, &across = OUT == AXIS_D ? w : d;
        const bool sampled = is_sampled();
        const Intensity intensity = intensity_of(volume);

        const int lane = thread % WARP;
        const int local_out = lane % (TILE_OUT / VECTOR) * VECTOR;  // first of the vector
        const int local_across = lane / (TILE_OUT / VECTOR);
        if (local_across >= across.size || local_out >= out.size)
            return;
        const int t_across =
            across.first + local_across - volume.axes[OUT == AXIS_D ? AXIS_W : AXIS_D].pad_before;
        const bool has_source =
            sampled && t_across >= across.step && t_across < across.step + across.steps;
        const int t_out = out.first + local_out - axis_out.pad_before;
        const unsigned int pad = static_cast<unsigned int>(volume.pad_bits);
        // Where rows of the output are not whole vectors, they are not aligned to such either.
        const bool whole = axis_out.n_out % VECTOR == 0;

        const Slots slots = sampled ? Slots(axis_h, h) : Slots();
        for (int row = thread / WARP; row < h.size; row += THREADS / WARP) {
            unsigned int words[WORDS];
            const int t_h = h.first + row - axis_h.pad_before;
            if (has_source && t_h >= h.step && t_h < h.step + h.steps) {
                const Step step = Step::read(&axis_h.steps[t_h]);
                const float *const y0 = shared + slots.first_of(t_h - h.step, step) * SLOT_FLOATS;
                const float *const y1 = shared + slots.second_of(t_h - h.step, step) * SLOT_FLOATS;
                float v[VECTOR];
#pragma unroll
                for (int k = 0; k < VECTOR; ++k)
                    v[k] = normalise(lerp(y0[at(lane, k)], y1[at(lane, k)], step.w), intensity);
#pragma unroll
                for (int n = 0; n < WORDS; ++n)
                    words[n] = To::within(out.step, out.step + out.steps, t_out + n * OF_WORD,
                                          To::word(v + n * OF_WORD), pad);
            } else {
#pragma unroll
                for (int n = 0; n < WORDS; ++n)
                    words[n] = To::filled(pad);
            }

            auto *const to = static_cast<typename To::Bits *>(volume.out) +
                             offset_of(h.first + row, across.first + local_across) + out.first +
                             local_out;
            if (whole) {
                store_vector(to, words);
            } else {
#pragma unroll
                for (int k = 0; k < VECTOR; ++k)
                    if (local_out + k < out.size)
                        to[k] = static_cast<typename To::Bits>(words[k / OF_WORD] >>
                                                               k % OF_WORD * (32 / OF_WORD));
            }
        }
    }

  private:
    CTGPU_DEVICE Tile(const Volume &v, int tile, int tiles_out, int tiles_h)
        : volume(v), h(v.axes[AXIS_H], tile / tiles_out % tiles_h, v.tile_h),
          w(v.axes[AXIS_W], OUT == AXIS_W ? tile % tiles_out : tile / tiles_out / tiles_h, TILE_W),
          d(v.axes[AXIS_D], OUT == AXIS_D ? tile % tiles_out : tile / tiles_out / tiles_h, TILE_D) {
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

    static CTGPU_DEVICE float hu_of(Bits bits, const Intensity &intensity) {
        return load_hu(ToFloat<Voxel>::from(SWAP ? swapped(bits) : bits), intensity);
    }

    // Where a voxel of the plane lies in its slot.  `write` reads element k of all lanes' vectors
    // at once, without bank conflicts; `blend` stores 32 neighbours along FAST at once, nearly
    // without.  Where that is H, a warp reaches from one column's slots into the next one's, which
    // meet them in some banks: docs/gpu.md has the counts.
    static CTGPU_DEVICE int at(int lane, int k) { return k * WARP + (lane + 4 * k) % WARP; }
    static CTGPU_DEVICE int place(int local_w, int local_d) {
        const int along = OUT == AXIS_D ? local_d : local_w,
                  across = OUT == AXIS_D ? local_w : local_d;
        return at(across * (TILE_OUT / VECTOR) + along / VECTOR, along % VECTOR);
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
