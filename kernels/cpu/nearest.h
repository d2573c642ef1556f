// Labels by nearest neighbour: the same code for every variant, with the instructions that it has.
//
// The source decides how the output is written, so that memory is read in runs:
//
//   gather_lines   its fastest axis is the output's last: voxels are picked along it, 16 bytes at a
//                  time by two shuffles
//   gather_turned  it is another one: blocks of the source are turned in registers, and each line
//                  of the output is copied from a line of the turned block

#include "cpu/preprocess.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace ctgpu {
namespace CTGPU_VARIANT {
namespace {

constexpr std::size_t VECTOR_BYTES = 16;

// ---- turning 16 x 16 bytes, or 8 x 8 of two ----------------------------------------------------

#if defined(__SSE2__)
#define CTGPU_TURNS
using ByteVec = __m128i;
inline ByteVec load_bytes(const void *at) {
    return _mm_loadu_si128(static_cast<const __m128i *>(at));
}
inline void store_bytes(void *at, ByteVec v) { _mm_storeu_si128(static_cast<__m128i *>(at), v); }
// The items of two vectors in turn: those of their low halves, and those of their high ones.
template <class L>
inline void interleave(ByteVec a, ByteVec b, ByteVec &low, ByteVec &high) {
    if constexpr (sizeof(L) == 1) {
        low = _mm_unpacklo_epi8(a, b);
        high = _mm_unpackhi_epi8(a, b);
    } else {
        low = _mm_unpacklo_epi16(a, b);
        high = _mm_unpackhi_epi16(a, b);
    }
}
#elif defined(__ARM_NEON)
#define CTGPU_TURNS
using ByteVec = uint8x16_t;
inline ByteVec load_bytes(const void *at) {
    return vld1q_u8(static_cast<const std::uint8_t *>(at));
}
inline void store_bytes(void *at, ByteVec v) { vst1q_u8(static_cast<std::uint8_t *>(at), v); }
template <class L>
inline void interleave(ByteVec a, ByteVec b, ByteVec &low, ByteVec &high) {
    if constexpr (sizeof(L) == 1) {
        low = vzip1q_u8(a, b);
        high = vzip2q_u8(a, b);
    } else {
        const uint16x8_t x = vreinterpretq_u16_u8(a), y = vreinterpretq_u16_u8(b);
        low = vreinterpretq_u8_u16(vzip1q_u16(x, y));
        high = vreinterpretq_u8_u16(vzip2q_u16(x, y));
    }
}
#endif

// Items of a vector, and so lines of a block that is turned at once.
template <class L>
constexpr std::size_t ITEMS = VECTOR_BYTES / sizeof(L);

// `to[r * pitch + k]` is `from[k][r]`, for as many k and r as a vector has items.
template <class L>
inline void turn(const L *const *from, std::ptrdiff_t begin, L *to, std::size_t pitch) {
    constexpr std::size_t n = ITEMS<L>;
#if defined(CTGPU_TURNS)
    // To interleave line k with line k + n / 2, as often as halves can be made of n, turns a block.
    ByteVec lines[2][n];
    for (std::size_t k = 0; k < n; ++k)
        lines[0][k] = load_bytes(from[k] + begin);
    int now = 0;
    for (std::size_t step = 1; step < n; step *= 2, now = 1 - now)
        for (std::size_t k = 0; k < n / 2; ++k)
            interleave<L>(lines[now][k], lines[now][k + n / 2], lines[1 - now][2 * k],
                          lines[1 - now][2 * k + 1]);
    for (std::size_t r = 0; r < n; ++r)
        store_bytes(to + r * pitch, lines[now][r]);
#else
    for (std::size_t r = 0; r < n; ++r)
        for (std::size_t k = 0; k < n; ++k)
            to[r * pitch + k] = from[k][begin + static_cast<std::ptrdiff_t>(r)];
#endif
}

// A turned block has so many source positions, and of so many lines of the output, which lie side
// by side in memory, so many voxels of each: all of them where they are few.
constexpr std::ptrdiff_t MOST_POSITIONS = 64;
constexpr std::size_t MOST_LINES = 16;
template <class L>
constexpr std::size_t COLUMNS = 512 / sizeof(L);
template <class L>
constexpr std::size_t WIDTH = 1024 / sizeof(L);

// Parts of neighbouring lines: `count` voxels of each, with padding before and after them.
template <class L>
struct Part {
    std::size_t head, count, tail, lines;
    const std::ptrdiff_t *columns;  // offsets of the voxels within a line
    const L *from[MOST_LINES];

    std::size_t length() const { return head + count + tail; }

    const L *column(std::size_t line, std::size_t c) const {
        return from[line] + columns[std::min(c, count - 1)];
    }
    void clear_padding(L *to) const {
        for (std::size_t line = 0; line < lines; ++line, to += length()) {
            std::fill_n(to, head, L{0});
            std::fill_n(to + head + count, tail, L{0});
        }
    }
};

// One block: `n` outputs along the fast axis, whose source positions begin at `begin` and are
// `span`.
template <class L>
void copy_turned(const std::ptrdiff_t *offsets, std::size_t n, std::ptrdiff_t begin,
                 std::ptrdiff_t span, const Part<L> &part, L *to, std::size_t pitch) {
    constexpr auto lanes = static_cast<std::ptrdiff_t>(ITEMS<L>);
    if (span < lanes || span > 8 * static_cast<std::ptrdiff_t>(n)) {
        for (std::size_t f = 0; f < n; ++f, to += pitch) {
            part.clear_padding(to);
            for (std::size_t line = 0; line < part.lines; ++line)
                for (std::size_t c = 0; c < part.count; ++c)
                    to[line * part.length() + part.head + c] = part.column(line, c)[offsets[f]];
        }
        return;
    }
    // The next block's, which lie in other pages, where hardware does not see them coming; past the
    // end of the source it does no harm.
    const std::ptrdiff_t ahead = offsets[n - 1] < offsets[0] ? begin - MOST_POSITIONS / 2
                                                             : begin + span + MOST_POSITIONS / 2;
    // A vector more, for what the last columns are repeated by.
    constexpr std::size_t PITCH = WIDTH<L> + ITEMS<L>;
    alignas(64) L block[MOST_POSITIONS * PITCH];
    for (std::size_t line = 0; line < part.lines; ++line)
        for (std::size_t c = 0; c < part.count; c += ITEMS<L>) {
            const L *columns[ITEMS<L>];
            for (std::size_t k = 0; k < ITEMS<L>; ++k) {
                columns[k] = part.column(line, c + k);
                __builtin_prefetch(columns[k] + ahead);
            }
            L *const at = block + line * part.length() + part.head + c;
            for (std::ptrdiff_t r = 0; r < span; r += lanes) {
                // The last positions once more, rather than what lies behind them.
                const std::ptrdiff_t first = std::min(r, span - lanes);
                turn<L>(columns, begin + first, at + static_cast<std::size_t>(first) * PITCH,
                        PITCH);
            }
        }
    for (std::size_t r = 0; r < static_cast<std::size_t>(span); ++r)
        part.clear_padding(block + r * PITCH);
    const auto bytes = static_cast<std::ptrdiff_t>(part.lines * part.length() * sizeof(L));
    for (std::size_t f = 0; f < n; ++f)
        stream(to + f * pitch, block + static_cast<std::size_t>(offsets[f] - begin) * PITCH, bytes);
}

// All outputs along the fast axis, in blocks.
template <class L>
void gather_part(const NearestAxis &fast, const Part<L> &part, L *to, std::size_t pitch) {
    for (std::size_t f0 = 0, f1 = 0; f0 < fast.n_valid; f0 = f1) {
        const std::ptrdiff_t first = fast.offsets[f0];
        while (f1 < fast.n_valid && std::abs(fast.offsets[f1] - first) < MOST_POSITIONS)
            ++f1;
        const std::ptrdiff_t final = fast.offsets[f1 - 1];
        copy_turned<L>(fast.offsets + f0, f1 - f0, std::min(first, final),
                       std::abs(final - first) + 1, part, to + f0 * pitch, pitch);
    }
}

template <class L>
void gather_turned(const Nearest &task) {
    const int fast_axis = task.fast_axis;
    const NearestAxis &fast = task.axes[fast_axis], &other = task.axes[1 - fast_axis],
                      &last = task.axes[2];
    const std::size_t pitches[] = {task.axes[1].n_out * last.n_out, last.n_out};
    const std::size_t pitch = pitches[fast_axis], other_pitch = pitches[1 - fast_axis];
    L *const out = static_cast<L *>(task.out) + fast.pad_before * pitch;
    const std::size_t begin = last.pad_before, end = begin + last.n_valid;
    const bool adjoin = fast_axis == 0 && last.n_out <= COLUMNS<L>;
    const std::size_t most = adjoin ? std::min(MOST_LINES, WIDTH<L> / last.n_out) : 1;
    for (std::size_t o = 0; o < other.n_valid; o += most)
        for (std::size_t c0 = 0; c0 < last.n_out; c0 += COLUMNS<L>) {
            const std::size_t c1 = std::min(last.n_out, c0 + COLUMNS<L>);
            const std::size_t first = std::clamp(begin, c0, c1), past = std::clamp(end, c0, c1);
            Part<L> part{first - c0,
                         past - first,
                         c1 - past,
                         std::min(most, other.n_valid - o),
                         last.offsets + (past > first ? first - begin : 0),
                         {}};
            for (std::size_t line = 0; line < part.lines; ++line)
                part.from[line] = static_cast<const L *>(task.labels) + other.offsets[o + line];
            gather_part<L>(fast, part, out + (other.pad_before + o) * other_pitch + c0, pitch);
        }
}

// ---- picking along lines -----------------------------------------------------------------------

// Two vectors of source bytes, and for each byte of the result where in which of them it is.
#if defined(__SSSE3__)
#define CTGPU_PICKS
inline ByteVec picked(const std::uint8_t *from, const std::uint8_t *low, const std::uint8_t *high) {
    return _mm_or_si128(_mm_shuffle_epi8(load_bytes(from), load_bytes(low)),
                        _mm_shuffle_epi8(load_bytes(from + VECTOR_BYTES), load_bytes(high)));
}
#elif defined(__ARM_NEON)
#define CTGPU_PICKS
inline ByteVec picked(const std::uint8_t *from, const std::uint8_t *low, const std::uint8_t *high) {
    return vorrq_u8(vqtbl1q_u8(load_bytes(from), load_bytes(low)),
                    vqtbl1q_u8(load_bytes(from + VECTOR_BYTES), load_bytes(high)));
}
#endif

// How a vector of the output is picked out of two of the source.
struct Pick {
    bool is_near;  // or the voxels lie too far apart
    std::ptrdiff_t begin;
    std::uint8_t low[VECTOR_BYTES], high[VECTOR_BYTES];
};

template <class L>
std::vector<Pick> picks_of(const NearestAxis &axis) {
#if defined(CTGPU_PICKS)
    constexpr auto item = static_cast<std::ptrdiff_t>(sizeof(L));
    constexpr std::ptrdiff_t window = 2 * VECTOR_BYTES;
    constexpr std::uint8_t nothing = 0x80;
    std::vector<Pick> picks(axis.n_valid / ITEMS<L>);
    if (picks.empty())
        return picks;
    const std::ptrdiff_t *const offsets = axis.offsets;
    const auto [least, most] = std::minmax(offsets[0], offsets[axis.n_valid - 1]);
    for (std::size_t k = 0; k < picks.size(); ++k) {
        const std::ptrdiff_t *const from = offsets + k * ITEMS<L>;
        const auto [first, last] = std::minmax(from[0], from[ITEMS<L> - 1]);
        Pick &one = picks[k];
        // Nothing is read that the line does not reach, for it may be the source's last.
        one.begin = std::min(first * item, (most + 1) * item - window);
        one.is_near = one.begin >= least * item && (last + 1) * item - one.begin <= window;
        for (std::size_t b = 0; one.is_near && b < VECTOR_BYTES; ++b) {
            const std::ptrdiff_t voxel = from[b / sizeof(L)] * item - one.begin;
            const auto at = static_cast<std::size_t>(voxel) + b % sizeof(L);
            const bool is_low = at < VECTOR_BYTES;
            one.low[b] = is_low ? static_cast<std::uint8_t>(at) : nothing;
            one.high[b] = is_low ? nothing : static_cast<std::uint8_t>(at - VECTOR_BYTES);
        }
    }
    return picks;
#else
    static_cast<void>(axis);
    return {};
#endif
}

template <class L>
void pick_line(const L *from, const NearestAxis &axis, const std::vector<Pick> &picks, L *to) {
    std::size_t x = 0;
#if defined(CTGPU_PICKS)
    for (const Pick &one : picks) {
        if (one.is_near)
            store_bytes(to + x, picked(reinterpret_cast<const std::uint8_t *>(from) + one.begin,
                                       one.low, one.high));
        else
            for (std::size_t k = x; k < x + ITEMS<L>; ++k)
                to[k] = from[axis.offsets[k]];
        x += ITEMS<L>;
    }
#else
    static_cast<void>(picks);
#endif
    for (; x < axis.n_valid; ++x)
        to[x] = from[axis.offsets[x]];
}

template <class L>
void gather_lines(const Nearest &task) {
    const NearestAxis &first = task.axes[0], &middle = task.axes[1], &last = task.axes[2];
    const std::vector<Pick> picks = picks_of<L>(last);
    const std::size_t after = last.n_out - last.pad_before - last.n_valid;
    for (std::size_t a = 0; a < first.n_valid; ++a) {
        const L *const from = static_cast<const L *>(task.labels) + first.offsets[a];
        L *to = static_cast<L *>(task.out) + last.pad_before +
                ((a + first.pad_before) * middle.n_out + middle.pad_before) * last.n_out;
        for (std::size_t b = 0; b < middle.n_valid; ++b, to += last.n_out) {
            std::memset(to - last.pad_before, 0, last.pad_before * sizeof(L));
            if (b > 0 && middle.offsets[b] == middle.offsets[b - 1])
                std::memcpy(to, to - last.n_out, last.n_valid * sizeof(L));
            else
                pick_line<L>(from + middle.offsets[b], last, picks, to);
            std::memset(to + last.n_valid, 0, after * sizeof(L));
        }
    }
}

// The lines of the output that are nothing but padding.
template <class L>
void clear_lines(const Nearest &task) {
    const NearestAxis &first = task.axes[0], &middle = task.axes[1];
    const std::size_t line = task.axes[2].n_out, plane = middle.n_out * line;
    L *const out = static_cast<L *>(task.out);
    const auto clear = [&](std::size_t begin, std::size_t end) {
        std::memset(out + begin, 0, (end - begin) * sizeof(L));
    };
    clear(0, first.pad_before * plane);
    for (std::size_t a = first.pad_before; a < first.pad_before + first.n_valid; ++a) {
        clear(a * plane, a * plane + middle.pad_before * line);
        clear(a * plane + (middle.pad_before + middle.n_valid) * line, (a + 1) * plane);
    }
    clear((first.pad_before + first.n_valid) * plane, first.n_out * plane);
}

template <class L>
void gather_as(const Nearest &task) {
    clear_lines<L>(task);
    if (task.fast_axis == 2)
        gather_lines<L>(task);
    else
        gather_turned<L>(task);
}

void gather(const Nearest &task) {
    task.item_bytes == 1 ? gather_as<std::uint8_t>(task) : gather_as<std::uint16_t>(task);
    finish_streams();
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu
