// A tile decoded row by row: the same template for AVX2 and NEON.
//
// A decode_*.cpp defines CTGPU_VARIANT, includes its unpack_*.h and then this file, and is compiled
// with its own flags.

#include "codec/unpack.h"

#include <algorithm>
#include <memory>

namespace ctgpu::codec {

namespace CTGPU_VARIANT {
namespace {

// ---- quotients ----------------------------------------------------------------------------------

// Behind whatever a word can have, and still the seventh bit of a length.
constexpr std::uint8_t NO_END = 64;

// For each byte, one more than where its ones are, the lowest first.
struct EndsIn {
    std::uint8_t byte[256][8];
};

constexpr EndsIn ends_in_bytes() {
    EndsIn ends{};
    for (int byte = 0; byte < 256; ++byte) {
        int count = 0;
        for (int bit = 0; bit < 8; ++bit)
            if (byte >> bit & 1)
                ends.byte[byte][count++] = static_cast<std::uint8_t>(bit + 1);
        while (count < 8)
            ends.byte[byte][count++] = NO_END;
    }
    return ends;
}
alignas(64) constexpr EndsIn ENDS_IN = ends_in_bytes();

// The bits at which the quotients of a group end.
class Ends {
  public:
    // That of the first lane; that of the lane before it is 0.
    const std::uint8_t *begin() const { return bytes_ + FIRST; }

    // As if each were 0: one bit long.
    void count_up() {
        for (int n = 0; n < LANES; ++n)
            bytes_[FIRST + n] = static_cast<std::uint8_t>(n + 1);
    }
    // Those of a word, NO_END or more in lanes that have none.
    void find(std::uint64_t word) {
        std::memset(bytes_ + FIRST, NO_END, LANES);
        const Ones ones(word);
        for (int byte = 0; byte < 8; ++byte) {
            const std::uint64_t ends =
                load_word(ENDS_IN.byte[word >> 8 * byte & 255]) + 0x0808080808080808u * byte;
            std::memcpy(bytes_ + FIRST + ones.before(byte), &ends, sizeof ends);
        }
    }

  private:
    static constexpr int FIRST = 16;
    // Behind those of the lanes are as many as a word can have.
    std::uint8_t bytes_[FIRST + 2 * LANES]{};
};

// ---- groups -------------------------------------------------------------------------------------

using Groups = std::array<Group, 16>;

// By code.
Groups groups_of(Coding coding, int lanes) {
    const std::array<std::uint8_t, 16> bytes = group_bytes(coding, lanes);
    Groups groups;
    for (int code = 0; code < 16; ++code) {
        groups[code] = BY_WIDTH[width_of(coding, code)];
        groups[code].bytes = bytes[code];
        groups[code].has_quotients = has_quotients(coding, code);
    }
    return groups;
}

// Finds the ends of quotients one group before they are wanted: bytes of several stores cannot be
// loaded as one vector at once.
class QuotientReader {
  public:
    QuotientReader(const TileParts &parts, const Groups &groups, const TileShape &shape, int planes,
                   Progress &progress)
        : parts_(parts), groups_(groups), last_lane_(shape.lanes - 1),
          count_(static_cast<std::size_t>(planes) * shape.rows), progress_(progress) {
        find();
    }

    // Those of one group after the other, until the next ones are.
    const Ends &next() {
        find();
        return ends_[given_++ % 2];
    }

  private:
    void find() {
        if (found_ == count_)
            return;
        Ends &ends = ends_[found_ % 2];
        const int code = parts_.codes[found_ / 2] >> (found_ % 2 * 4) & 15;
        ++found_;
        if (!groups_[code].has_quotients) {
            ends.count_up();
            return;
        }
        const std::size_t bit = progress_.quotient_bits;
        ends.find(load_word(parts_.quotients.begin + bit / 8) >> (bit % 8));
        progress_.quotients_end(ends.begin()[last_lane_]);
    }

    const TileParts &parts_;
    const Groups &groups_;
    const int last_lane_;
    const std::size_t count_;
    Progress &progress_;
    std::size_t found_ = 0, given_ = 0;
    Ends ends_[2];
};

// ---- voxels -------------------------------------------------------------------------------------

// What a row needs of the significands: the voxels without their low bits, and how many those are.
struct Open {
    Row voxels;
    Counts counts;
};

template <Kind kind>
class Voxels {
  public:
    Voxels(const Stream &stream, int lanes)
        : lanes_(Row::first_lanes(lanes)), grid_(stream.grid),
          unit_(Row::all(static_cast<unsigned>(unit_exponent(kind) - stream.grid))),
          tiny_(Row::all(has_significand_bits(kind)
                             ? static_cast<unsigned>(tiny_bits(kind, stream.grid))
                             : 0)) {}

    Row whole(Row k) const {
        if constexpr (kind == Kind::grid)
            return grid_.halves(k);
        else
            return k;
    }
    Open open(Row k) const {
        const Row none = Row::all(0), one = Row::all(1);
        const Row m = minus_down_to_zero(negated_where_negative(k, k), one);
        const Row plain = kind == Kind::float16 ? grid_.halves(m) : grid_.bfloats(m);
        const Row low = minus_down_to_zero(unit_, shifted_right<mantissa_bits(kind)>(plain));
        const Row count = either(equal(k, none), none, lesser(low, tiny_) & lanes_);
        return {plain | (k & Row::all(0x8000)), Counts(count)};
    }

  private:
    Row lanes_;
    Scale grid_;
    Row unit_, tiny_;
};

inline Row filled(const Open &open, const std::uint8_t *part, std::size_t &at) {
    if (open.counts.none())
        return open.voxels;
    return open.voxels | low_bits(open.counts, part, at);
}

template <Kind kind, bool past_caches>
void store(Row voxels, int lanes, std::uint8_t *at) {
    alignas(64) std::uint8_t row[LANES * sizeof(std::uint16_t)];
    if constexpr (kind == Kind::uint8) {
        store_bytes(voxels, row);
        std::memcpy(at, row, lanes);
    } else if constexpr (past_caches) {
        store_past_caches(voxels, at);
    } else if (lanes == LANES) {
        std::memcpy(at, &voxels, sizeof voxels);
    } else {
        std::memcpy(row, &voxels, sizeof voxels);
        std::memcpy(at, row, lanes * sizeof(std::uint16_t));
    }
}

// ---- tiles --------------------------------------------------------------------------------------

inline Row residuals(const Group &group, Row numbers, const Ends &ends) {
    // Quotients are 1 too large, for which bits above the numbers make up.
    const Row z =
        shifted_left(quotients(ends.begin()), group.width) + (numbers | pair(group.above));
    return shifted_right<1>(z) ^ (Row::all(0) - (z & Row::all(1)));
}

inline Row residuals(const Group &group, Row numbers) {
    // The numbers have others above them.
    return (shifted_right<1>(numbers) & pair(group.half)) ^
           (Row::all(0) - (numbers & pair(group.sign)));
}

struct alignas(64) Lanes {
    std::uint16_t k[LANES];
};

template <Kind kind, Coding coding, bool past_caches>
Fault decode(const Stream &stream, const TileShape &shape, const TileParts &parts,
             const Groups &groups, const Target &target) {
    const Voxels<kind> voxels(stream, shape.lanes);
    const auto weight = [&](int n) {
        return Row::all(static_cast<std::uint16_t>(stream.weights[n]));
    };
    // The plane before; all equal and without weights before the first, so that only the row above
    // counts there.
    const auto plane = std::make_unique<Lanes[]>(static_cast<std::size_t>(shape.rows));
    const std::uint8_t *packed = parts.packed;
    Open open[has_significand_bits(kind) ? ROWS_AT_ONCE : 1];
    Progress progress;
    QuotientReader quotients(parts, groups, shape, coding == Coding::rice ? target.planes : 0,
                             progress);
    Row u = Row::all(0), v = u, s = u;
    for (int p = 0; p < target.planes; ++p) {
        Row a = p ? Row::load(plane[0].k) : Row::all(static_cast<std::uint16_t>(stream.first));
        Row e = a, c = p ? a : Row::all(0);
        auto *out = static_cast<std::uint8_t *>(target.voxels) + p * target.plane_stride;
        const std::size_t at = static_cast<std::size_t>(p) * shape.rows;
        for (int r = 0, end = 1; r < shape.rows; end = std::min(r + ROWS_AT_ONCE, shape.rows)) {
            std::uint64_t codes = parts.codes_from(at + r);
            const int begin = r;
            for (; r < end; ++r, codes >>= 4) {
                const Group &group = groups[codes & 15];
                Row k = unpacked(group, packed);
                packed += group.bytes;
                if constexpr (coding == Coding::rice)
                    k = residuals(group, k, quotients.next());
                else
                    k = residuals(group, k);
                const Row b = Row::load(plane[r].k), across = b - c;
                k = k + across + rounded_product(across, v) + rounded_product(e - c, s);
                k = k + a + rounded_product(a - c, u);
                k.store(plane[r].k);
                e = a, a = k, c = b;
                if constexpr (has_significand_bits(kind)) {
                    open[r - begin] = voxels.open(k);
                } else {
                    store<kind, past_caches>(voxels.whole(k), shape.lanes, out);
                    out += target.row_stride;
                }
            }
            if constexpr (has_significand_bits(kind))
                // Apart from the rest, so that no row waits for another's.
                for (int n = 0; n < end - begin; ++n, out += target.row_stride)
                    store<kind, past_caches>(
                        filled(open[n], parts.significands.begin, progress.significand_bits),
                        shape.lanes, out);
            if (const Fault fault = progress.so_far(parts); fault != Fault::none)
                return fault;
            if (r == 1)
                e = a;
        }
        u = weight(0), v = weight(1), s = weight(2);
    }
    if constexpr (past_caches)
        fence();
    return target.planes < shape.planes ? Fault::none : progress.at_end(parts);
}

template <Kind kind, Coding coding>
Fault decode(const Stream &stream, const TileShape &shape, const TileParts &parts,
             const Target &target) {
    const Groups groups = groups_of(coding, shape.lanes);
    if constexpr (kind != Kind::uint8 && STORES_PAST_CACHES) {
        if (rows_lie_apart(shape, target))
            return decode<kind, coding, true>(stream, shape, parts, groups, target);
    }
    return decode<kind, coding, false>(stream, shape, parts, groups, target);
}

template <Kind kind>
Fault decode(const Stream &stream, const TileShape &shape, const TileParts &parts,
             const Target &target) {
    return stream.coding == Coding::rice ? decode<kind, Coding::rice>(stream, shape, parts, target)
                                         : decode<kind, Coding::pack>(stream, shape, parts, target);
}

// What the codes say of the bytes of the packed bits.
std::size_t packed_bytes(const TileShape &shape, Coding coding, const std::uint8_t *codes) {
    const std::array<std::uint8_t, 16> bytes = group_bytes(coding, shape.lanes);
    const std::size_t pairs = shape.groups() / 2, whole = pairs / CODE_BYTES * CODE_BYTES;
    std::size_t sum = looked_up(bytes, codes, whole);
    for (std::size_t n = whole; n < pairs; ++n)
        sum += bytes[codes[n] & 15] + std::size_t{bytes[codes[n] >> 4]};
    return sum + (shape.groups() % 2 ? bytes[codes[pairs] & 15] : 0);
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec

#include "codec/decode_kinds.h"
