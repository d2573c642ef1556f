// One tile of a `.ctz` (docs/ctz.md), decoded by one warp: a lane a column, eight rows at a time.
//
// Where a row's packed bits begin follows from the codes alone, and which ones of the quotients are
// its own from how many rows have some; only prediction goes from row to row, and only significand
// bits wait for it.  So what eight rows need is loaded at once, then they are predicted one after
// the other, and then their significand bits are loaded at once.
//
// The plane before is kept in global memory, 64 bytes a row that only their own lane reads and
// writes, and loaded with the packed bits: shared memory would hold seven such planes of 480 rows
// on a multiprocessor, and none of 4,000; from the output they would have to be made out of floats
// again, and a crop does not write all of them.

#ifndef CTGPU_CUDA_CTZ_TILE_H
#define CTGPU_CUDA_CTZ_TILE_H

#include "ctz_warp.h"

namespace ctgpu {

using codec::Coding;
using codec::Fault;
using codec::Kind;

constexpr int ROWS = 8;     // that are decoded at a time: their codes are one word
constexpr int ONES = 2048;  // places of ones that are kept: those of ROWS rows, and of a stretch
constexpr int STRETCH = 32 * LANES;  // bits of quotients that are looked through at a time
static_assert(ONES >= ROWS * LANES + STRETCH && (ONES & (ONES - 1)) == 0);

// One volume of a batch, and the box of it that is wanted.  ctgpu/engines/ctz_on_device.py fills
// the same structs.
struct CtzVolume {
    void *out;                           // the first voxel of the box
    long long plane_stride, row_stride;  // of the output, in bytes; along W voxels lie side by side
    int shape[3];                        // D, H, W
    int start[3], box[3];
    int grid;
    short weights[3], first;
};
static_assert(sizeof(CtzVolume) == 72, "ctgpu/engines/ctz_on_device.py packs 72 bytes");

struct CtzTile {
    const unsigned char *data;  // codec::SLACK_BYTES may be read behind it
    short *plane;               // LANES numbers for each row
    unsigned size, packed, quotients, raw;
    int volume, number;
};
static_assert(sizeof(CtzTile) == 40, "ctgpu/engines/ctz_on_device.py packs 40 bytes");

CTGPU_WARP int least(int a, int b) { return a < b ? a : b; }

template <Kind KIND, Coding CODING>
class TileDecoder {
  public:
    // `ones` has ONES numbers, of this warp alone.
    CTGPU_WARP TileDecoder(const CtzVolume &volume, const CtzTile &tile, unsigned *ones)
        : volume_(volume), tile_(tile), ones_(ones), lane_(lane_numbers()) {
        const int across = (volume.shape[2] + LANES - 1) / LANES;
        first_plane_ = tile.number / across * codec::PLANES;
        first_column_ = tile.number % across * LANES;
        planes_ = least(codec::PLANES, volume.shape[0] - first_plane_);
        // What lies behind the box's last plane is not decoded.
        wanted_ = least(planes_, volume.start[0] + volume.box[0] - first_plane_);
        rows_ = volume.shape[1];
        columns_ = least(LANES, volume.shape[2] - first_column_);
        in_tile_ = select(lane_ < columns_, Lanes<unsigned>(~0u), Lanes<unsigned>(0u));
        column_ = lane_ + (first_column_ - volume.start[2]);
        in_box_ = (lane_ < columns_) & (column_ >= 0) & (column_ < volume.box[2]);
        const auto address = reinterpret_cast<unsigned long long>(tile.data);
        words_ = reinterpret_cast<const unsigned *>(address & ~3ull);
        begin_ = static_cast<unsigned>(address & 3) * 8;
        end_ = begin_ + 8 * tile.size;
    }

    CTGPU_WARP Fault run() {
        if (tile_.raw) {
            if (tile_.size != static_cast<unsigned>(planes_ * rows_ * columns_ * BYTES))
                return Fault::size;
            copy();
            return Fault::none;
        }
        const unsigned code_bytes = static_cast<unsigned>(planes_ * rows_ + 1) / 2;
        const unsigned long long stated = 0ull + code_bytes + tile_.packed + tile_.quotients;
        if (stated > tile_.size)
            return Fault::size;
        if (packed_bytes() != tile_.packed)
            return Fault::packed;
        packed_ = begin_ + 8 * code_bytes;
        const unsigned quotients = packed_ + 8 * tile_.packed;
        significands_ = quotients_end_ = quotients + 8 * tile_.quotients;
        word_ = quotients / 32;
        quotients_begin_ = quotients;
        store(ones_, lane_, Lanes<unsigned>(quotients - 1), lane_ == 0);
        sync_warp();
        for (int plane = 0; plane < wanted_; ++plane)
            for (int row = 0; row < rows_; row += ROWS)
                if (const Fault fault = decode_rows(plane, row); fault != Fault::none)
                    return fault;
        return wanted_ < planes_ ? Fault::none : fault_of_end();
    }

  private:
    static constexpr bool IS_FLOAT = codec::has_significand_bits(KIND);
    static constexpr int BYTES = codec::voxel_bytes(KIND), M = codec::mantissa_bits(KIND);

    // ---- Bits ----------------------------------------------------------------------------------

    // 32 bits from a place on.
    CTGPU_WARP Lanes<unsigned> bits_at(const Lanes<unsigned> &at) const {
        const Lanes<unsigned> index = at >> 5u;
        return funnel(word_at(words_, index), word_at(words_, index + 1u), at & 31u);
    }
    CTGPU_WARP unsigned shared_bits_at(unsigned at) const {
        return of_last(bits_at(Lanes<unsigned>(at)));
    }

    static CTGPU_WARP int width_of(int code) {
        if constexpr (CODING == Coding::pack)
            return code == codec::PACK_WIDE ? 16 : code;
        else
            return code == codec::RICE_ZERO ? 0 : code == codec::RICE_WIDE ? 16 : code;
    }

    // What the codes say of the bytes of the packed bits: nothing below reads outside of these.
    CTGPU_WARP unsigned packed_bytes() const {
        const int groups = planes_ * rows_;
        Lanes<unsigned> bytes(0u);
        for (int first = 0; first < groups; first += ROWS * LANES) {
            const Lanes<int> own = lane_ * ROWS + first;
            const Lanes<unsigned> codes = bits_at(cast<unsigned>(own) * 4u + begin_);
#pragma unroll
            for (int n = 0; n < ROWS; ++n) {
                const Lanes<unsigned> code = codes >> static_cast<unsigned>(4 * n) & 15u;
                bytes = bytes + select(own + n < groups, bytes_of(code), Lanes<unsigned>(0u));
            }
        }
        return of_last(running_sum(bytes));
    }
    CTGPU_WARP Lanes<unsigned> bytes_of(const Lanes<unsigned> &code) const {
        const Lanes<unsigned> wide(16u), none(0u);
        const Lanes<unsigned> width =
            CODING == Coding::pack
                ? select(code == Lanes<unsigned>(codec::PACK_WIDE), wide, code)
                : select(code == Lanes<unsigned>(codec::RICE_ZERO), none,
                         select(code == Lanes<unsigned>(codec::RICE_WIDE), wide, code));
        return (width * static_cast<unsigned>(columns_) + 7u) >> 3u;
    }

    // ---- Quotients -----------------------------------------------------------------------------

    // Makes so many more ones known, if the part has them.
    CTGPU_WARP bool find_ones(int count) {
        while (known_ - next_ < count) {
            if (word_ * 32 >= quotients_end_)
                return false;
            const Lanes<unsigned> word = quotient_words();
            const Lanes<unsigned> ones = cast<unsigned>(count_ones(word));
            const Lanes<unsigned> sum = running_sum(ones);
            sync_warp();  // those that are written over have been read
            store_places<ONES>(ones_, cast<int>(sum - ones) + known_, word,
                               (cast<unsigned>(lane_) + word_) * 32u);
            sync_warp();
            known_ += static_cast<int>(of_last(sum));
            word_ += LANES;
        }
        return true;
    }
    CTGPU_WARP Lanes<unsigned> place_of(const Lanes<int> &number) const {
        return load(ones_, number & (ONES - 1));
    }
    // The next STRETCH bits, without those that belong to other parts.
    CTGPU_WARP Lanes<unsigned> quotient_words() const {
        const Lanes<unsigned> index = cast<unsigned>(lane_) + word_, bit = index * 32u;
        const Lanes<unsigned> none(0u), all(~0u);
        const Lanes<unsigned> left = select(bit < quotients_end_, quotients_end_ - bit, none);
        const Lanes<unsigned> up_to =
            select(left < 32u, (Lanes<unsigned>(1u) << (left & 31u)) - 1u, all);
        const Lanes<unsigned> from =
            select(bit < quotients_begin_, all << (quotients_begin_ & 31u), all);
        return word_at(words_, index) & up_to & from;
    }

    // Residuals of a row, by its code, and where its quotients are longer than they may be.
    CTGPU_WARP Lanes<int> residuals(int code, Lanes<bool> &too_long) {
        const int width = width_of(code);
        const unsigned step = static_cast<unsigned>(width), mask = (1u << step) - 1;
        Lanes<unsigned> z = bits_at(cast<unsigned>(lane_) * step + packed_) & in_tile_ & mask;
        packed_ += static_cast<unsigned>(columns_ * width + 7) / 8 * 8;
        if constexpr (CODING == Coding::rice) {
            const bool has_quotients = code < codec::RICE_WIDE;
            const Lanes<unsigned> own = in_tile_ & (has_quotients ? ~0u : 0u);
            const Lanes<int> number = lane_ + next_;
            const Lanes<unsigned> place = place_of(number);
            const Lanes<unsigned> length = (place - place_of(Lanes<int>(next_ - 1))) & own;
            too_long = too_long | (length >= static_cast<unsigned>(codec::QUOTIENT_BITS + 1));
            z = z + (((place - place_of(number - 1) - 1u) & own) << step);
            next_ += has_quotients ? columns_ : 0;
        }
        z = z & 0xffffu;
        return cast<int>((z >> 1u) ^ (Lanes<unsigned>(0u) - (z & 1u)));
    }
    static CTGPU_WARP int with_quotients(unsigned codes) {
        int count = 0;
        for (int n = 0; n < ROWS; ++n)
            count += static_cast<int>(codes >> 4 * n & 15) < codec::RICE_WIDE;
        return count;
    }

    // ---- Rows ----------------------------------------------------------------------------------

    // Codes of so many rows, lowest first; of rows behind them what stands for no bits.
    CTGPU_WARP unsigned codes_of(int group, int rows) const {
        const unsigned codes = shared_bits_at(begin_ + 4 * static_cast<unsigned>(group));
        const unsigned absent = rows < ROWS ? ~0u << 4 * rows : 0;
        return CODING == Coding::pack ? codes & ~absent : codes | absent;
    }

    // What is not there of the rows is decoded like rows without bits, and not written.
    CTGPU_WARP Fault decode_rows(int plane, int row) {
        const int rows = least(ROWS, rows_ - row);
        short *const kept = tile_.plane + row * LANES;
        const unsigned codes = codes_of(plane * rows_ + row, rows);
        if constexpr (CODING == Coding::rice)
            if (!find_ones(columns_ * with_quotients(codes)))
                return Fault::quotients;
        Lanes<int> before[ROWS], k[ROWS];
#pragma unroll
        for (int n = 0; n < ROWS; ++n)
            before[n] =
                plane > 0 && n < rows ? cast<int>(load(kept, lane_ + n * LANES)) : Lanes<int>(0);
        Lanes<bool> too_long(false);
#pragma unroll
        for (int n = 0; n < ROWS; ++n)
            k[n] = residuals(static_cast<int>(codes >> 4 * n & 15), too_long);
        if (any(too_long))
            return Fault::quotients;
        if (row == 0) {
            above_ = plane > 0 ? before[0] : Lanes<int>(volume_.first);
            corner_ = before[0];
            second_ = above_;
        }
        const bool is_kept = plane + 1 < wanted_;
#pragma unroll
        for (int n = 0; n < ROWS; ++n) {
            k[n] = wrapped(k[n] + predicted(plane, before[n]));
            second_ = row + n == 0 ? k[n] : above_;
            above_ = k[n];
            corner_ = before[n];
            if (is_kept && n < rows)
                store(kept, lane_ + n * LANES, cast<short>(k[n]), lane_ >= 0);
        }
        if constexpr (IS_FLOAT) {
            return write_floats(plane, row, rows, k);
        } else {
#pragma unroll
            for (int n = 0; n < ROWS; ++n)
                if (n < rows)
                    write(plane, row + n, voxel_of(k[n]));
            return Fault::none;
        }
    }

    // Of a, b, c and e as the page names them.  The first plane of a tile has neither b nor c,
    // which are 0 there, and no weights.
    CTGPU_WARP Lanes<int> predicted(int plane, const Lanes<int> &b) const {
        const auto weight = [&](int n) { return plane > 0 ? volume_.weights[n] : 0; };
        return above_ + b - corner_ + product(above_ - corner_, weight(0)) +
               product(b - corner_, weight(1)) + product(second_ - corner_, weight(2));
    }
    static CTGPU_WARP Lanes<int> product(const Lanes<int> &difference, int weight) {
        return (wrapped(difference) * weight + (1 << 14)) >> 15;
    }

    // ---- Voxels --------------------------------------------------------------------------------

    static CTGPU_WARP Lanes<int> magnitude(const Lanes<int> &k) {
        return select(k < 0, Lanes<int>(0) - k, k);
    }
    static CTGPU_WARP Lanes<unsigned> sign(const Lanes<int> &k) {
        return cast<unsigned>(k) >> 16u & 0x8000u;
    }
    CTGPU_WARP Lanes<float> scaled(const Lanes<int> &units) const {
        return float_of(units) * Lanes<float>(power_of_two(-volume_.grid));
    }
    // Only damaged tiles have numbers of more bits than a significand: they become what the page
    // has them become.
    static CTGPU_WARP Lanes<unsigned> bits_of(const Lanes<float> &value) {
        if constexpr (KIND == Kind::bfloat16)
            return float_bits(value) >> 16u;
        else
            return half_bits(value);
    }
    CTGPU_WARP Lanes<unsigned> voxel_of(const Lanes<int> &k) const {
        if constexpr (KIND == Kind::grid)
            return bits_of(scaled(k));
        else
            return cast<unsigned>(k);
    }

    CTGPU_WARP Fault write_floats(int plane, int row, int rows, const Lanes<int> (&k)[ROWS]) {
        const Lanes<int> tiny(codec::tiny_bits(KIND, volume_.grid)), none(0);
        Lanes<unsigned> voxel[ROWS], open[ROWS], at[ROWS];
#pragma unroll
        for (int n = 0; n < ROWS; ++n) {
            const Lanes<int> less = magnitude(k[n]) - 1, m = select(less < 0, none, less);
            const Lanes<float> value = scaled(m);
            voxel[n] = bits_of(value) | sign(k[n]);
            // Of L bits of m, M + 1 - L are open, and L is the exponent less 126, but for the grid;
            // of none the exponent is 0.
            Lanes<int> few =
                Lanes<int>(M + 127 - volume_.grid) - cast<int>(float_bits(value) >> 23u);
            few = select(few < 0, none, select(few < tiny, few, tiny));
            open[n] =
                cast<unsigned>(select(k[n] == none, none, few)) & in_tile_ & (n < rows ? ~0u : 0u);
        }
        // The places of two rows at a time, in halves of a word: a row has less than 2^16 bits.
#pragma unroll
        for (int n = 0; n < ROWS; n += 2) {
            const Lanes<unsigned> sums = running_sum(open[n] | open[n + 1] << 16u);
            const unsigned total = of_last(sums);
            at[n] = (sums & 0xffffu) - open[n] + significands_;
            significands_ += total & 0xffffu;
            at[n + 1] = (sums >> 16u) - open[n + 1] + significands_;
            significands_ += total >> 16;
        }
#pragma unroll
        for (int n = 0; n < ROWS; ++n)
            if (n < rows) {
                const Lanes<unsigned> mask = (Lanes<unsigned>(1u) << open[n]) - 1u;
                write(plane, row + n, voxel[n] | (bits_at(at[n]) & mask));
            }
        return significands_ > end_ ? Fault::significands : Fault::none;
    }

    // The parts end where they should, and the rest of their last bytes is 0.
    CTGPU_WARP Fault fault_of_end() const {
        const unsigned used = ones_[(next_ - 1) & (ONES - 1)] + 1;
        if ((used + 7) / 8 != (quotients_end_ + 7) / 8 || known_ != next_)
            return Fault::quotients;
        const unsigned left = end_ - significands_;
        const unsigned rest = shared_bits_at(significands_) & ((1u << (left & 7)) - 1);
        return left < 8 && rest == 0 ? Fault::none : Fault::significands;
    }

    // ---- The output ----------------------------------------------------------------------------

    CTGPU_WARP bool is_wanted(int plane, int row) const {
        const int d = first_plane_ + plane - volume_.start[0], h = row - volume_.start[1];
        return d >= 0 && d < volume_.box[0] && h >= 0 && h < volume_.box[1];
    }
    CTGPU_WARP void write(int plane, int row, const Lanes<unsigned> &voxel) const {
        if (!is_wanted(plane, row))
            return;
        const int d = first_plane_ + plane - volume_.start[0], h = row - volume_.start[1];
        char *const to =
            static_cast<char *>(volume_.out) + d * volume_.plane_stride + h * volume_.row_stride;
        if constexpr (BYTES == 1)
            store(reinterpret_cast<unsigned char *>(to), column_, cast<unsigned char>(voxel),
                  in_box_);
        else
            store(reinterpret_cast<unsigned short *>(to), column_, cast<unsigned short>(voxel),
                  in_box_);
    }

    // A tile of voxels as they are.
    CTGPU_WARP void copy() const {
        const unsigned bits = 8 * BYTES;
        for (int plane = 0; plane < wanted_; ++plane)
#pragma unroll 8
            for (int row = 0; row < rows_; ++row) {
                const auto before = static_cast<unsigned>((plane * rows_ + row) * columns_);
                if (is_wanted(plane, row))
                    write(plane, row, bits_at((cast<unsigned>(lane_) + before) * bits + begin_));
            }
    }

    const CtzVolume &volume_;
    const CtzTile &tile_;
    unsigned *ones_;
    Lanes<int> lane_;
    int first_plane_, first_column_, planes_, wanted_, rows_, columns_;
    Lanes<unsigned> in_tile_;  // all bits in lanes that have a voxel, none in others
    Lanes<int> column_;        // of the box
    Lanes<bool> in_box_;

    // Places are bits of the words.
    const unsigned *words_;
    unsigned begin_, end_;
    unsigned packed_ = 0, significands_ = 0, quotients_begin_ = 0, quotients_end_ = 0;
    unsigned word_ = 0;         // the next to be looked through for ones
    int next_ = 1, known_ = 1;  // of ones_: those of the next row, and the end
    Lanes<int> above_, second_, corner_;
};

}  // namespace ctgpu

#endif
