// One tile of the output with everything a kernel needs to make it: tables in the tile's own
// numbering, and scratch memory.  Made by preprocess.cpp, consumed by kernel.h.

#ifndef CTGPU_CPU_TILE_H
#define CTGPU_CPU_TILE_H

#include "cpu/preprocess.h"

namespace ctgpu {

// The widest vector of any variant, in floats: rows of scratch are padded to it.
constexpr int LANES = 16;

// Converted source rows kept while a plane is made: LANES outputs blend at most 2 * LANES rows.
constexpr int RING_ROWS = 2 * LANES;

// Output rows that are staged together when they are written as they lie.
constexpr int STAGED_ROWS = 16;

constexpr std::size_t LINE_BYTES = 64;

// Output positions along W that are staged together when D has to be turned away from the end.
constexpr int turned_rows(int voxel_bytes) { return static_cast<int>(LINE_BYTES) / voxel_bytes; }

// Outputs as blends of two elements of a table or rows of a plane.
struct Blends {
    const std::int32_t *first, *second;
    const float *weight;
};

struct Tile {
    const Task *task;

    // Output voxels [h0, h1) x [w0, w1) x [d0, d1); in h either all valid or all padding.
    int h0, h1, w0, w1, d0, d1;
    bool is_padding;       // nothing is sampled: padding in h or in d
    int d_begin, d_count;  // valid outputs within [d0, d1), from d0

    // Source positions along D, and d_count blends of them (padded to LANES).
    const std::int32_t *slices;
    int slices_used;
    bool slices_adjoin;  // each is the next of the one before, and beside it in memory
    Blends d;

    // The axis that the source is read along.  Where that is H or W, row_count source positions on
    // it from first_row; and for H the blends of them for [h0, h1).
    int read_along;
    int first_row, row_count;
    Blends h;

    // Scratch.  A plane is of `pitch` floats along D; its rows are source positions along H where
    // it is read along H, else outputs along W.
    float *planes[2];
    float *rows[2];  // read along W a plane of source positions, along D two rows
    std::ptrdiff_t pitch;
    float *converted;  // RING_ROWS rows along H or W, or one along D
    std::ptrdiff_t converted_pitch;
    void *staged;  // voxels of voxel_bytes(task->stored)
};

}  // namespace ctgpu

#endif
