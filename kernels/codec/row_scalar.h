// One row of a tile as an array, for compilers to make vectors of.

#include "codec/codec.h"

#include <bit>
#include <cstring>

namespace ctgpu::codec {
namespace CTGPU_VARIANT {
namespace {

struct Row {
    std::uint16_t lane[LANES];

    template <class Of>
    static Row each(const Of &of) {
        Row row;
        for (int n = 0; n < LANES; ++n)
            row.lane[n] = static_cast<std::uint16_t>(of(n));
        return row;
    }
    static Row all(unsigned value) {
        return each([=](int) { return value; });
    }
    // All bits of the first lanes.
    static Row first_lanes(int lanes) {
        return each([=](int n) { return n < lanes ? 0xFFFF : 0; });
    }
    static Row load(const std::uint16_t *at) {
        Row row;
        std::memcpy(row.lane, at, sizeof row.lane);
        return row;
    }
    static Row load(const std::uint8_t *at) {
        return each([=](int n) { return at[n]; });
    }
    void store(std::uint16_t *at) const { std::memcpy(at, lane, sizeof lane); }
};

inline Row operator+(const Row &a, const Row &b) {
    return Row::each([&](int n) { return a.lane[n] + b.lane[n]; });
}
inline Row operator-(const Row &a, const Row &b) {
    return Row::each([&](int n) { return a.lane[n] - b.lane[n]; });
}
inline Row operator&(const Row &a, const Row &b) {
    return Row::each([&](int n) { return a.lane[n] & b.lane[n]; });
}
inline Row operator|(const Row &a, const Row &b) {
    return Row::each([&](int n) { return a.lane[n] | b.lane[n]; });
}
// Both as int16.
inline Row rounded_product(const Row &a, const Row &b) {
    return Row::each([&](int n) {
        return (static_cast<std::int16_t>(a.lane[n]) * static_cast<std::int16_t>(b.lane[n]) +
                (1 << 14)) >>
               15;
    });
}
inline Row zigzag(const Row &r) {
    return Row::each([&](int n) {
        return r.lane[n] << 1 ^ (static_cast<std::int16_t>(r.lane[n]) < 0 ? 0xFFFF : 0);
    });
}
inline Row negated_where_negative(const Row &a, const Row &signs) {
    return Row::each([&](int n) { return signs.lane[n] >> 15 ? -a.lane[n] : a.lane[n]; });
}
// All bits where they are equal.
inline Row equal(const Row &a, const Row &b) {
    return Row::each([&](int n) { return a.lane[n] == b.lane[n] ? 0xFFFF : 0; });
}
// `a` where `mask` has all bits, else `b`.
inline Row either(const Row &mask, const Row &a, const Row &b) {
    return Row::each(
        [&](int n) { return (a.lane[n] & mask.lane[n]) | (b.lane[n] & ~mask.lane[n]); });
}
template <int bits>
Row shifted_left(const Row &a) {
    return Row::each([&](int n) { return a.lane[n] << bits; });
}
template <int bits>
Row shifted_right(const Row &a) {
    return Row::each([&](int n) { return a.lane[n] >> bits; });
}
inline Row shifted_right(const Row &a, int bits) {
    return Row::each([=](int n) { return a.lane[n] >> bits; });
}
// Unsigned, 0 where it would be less.
inline Row minus_down_to_zero(const Row &a, const Row &b) {
    return Row::each([&](int n) { return a.lane[n] > b.lane[n] ? a.lane[n] - b.lane[n] : 0; });
}
// The upper halves of unsigned products.
inline Row high_product(const Row &a, const Row &b) {
    return Row::each([&](int n) { return std::uint32_t{a.lane[n]} * b.lane[n] >> 16; });
}

// 16 numbers to look up by lanes, each below 16.
class Lookup {
  public:
    explicit Lookup(const std::uint16_t (&numbers)[16]) {
        std::memcpy(numbers_, numbers, sizeof numbers_);
    }
    Row operator()(const Row &which) const {
        return Row::each([&](int n) { return numbers_[which.lane[n]]; });
    }

  private:
    std::uint16_t numbers_[16];
};

// All lanes, or'ed.
inline unsigned any_bits(const Row &a) {
    unsigned bits = 0;
    for (const std::uint16_t lane : a.lane)
        bits |= lane;
    return bits;
}
inline unsigned sum(const Row &a) {
    unsigned total = 0;
    for (const std::uint16_t lane : a.lane)
        total += lane;
    return total;
}

// For the first lanes: so many zeros and a one, from the lowest bit on.  They fit 64 bits.
inline std::uint64_t quotient_word(const Row &quotients, int lanes) {
    std::uint64_t word = 0;
    for (int n = 0, at = 0; n < lanes; ++n) {
        at += quotients.lane[n];
        word |= std::uint64_t{1} << at++;
    }
    return word;
}

// The low `width` bits of each lane, 1 to 16, one after the other; writes PACK_BYTES at most.
inline void pack(const Row &z, int width, std::uint8_t *out) {
    const std::uint64_t mask = (std::uint64_t{1} << width) - 1;
    for (int n = 0; n < LANES; n += 4) {
        std::uint64_t word = 0;
        for (int i = 0; i < 4; ++i)
            word |= (z.lane[n + i] & mask) << (i * width);
        const int bit = n * width;
        std::uint8_t *const at = out + bit / 8;
        if (bit % 8) {
            const std::uint64_t joined = word << 4 | (*at & 15);
            std::memcpy(at, &joined, sizeof joined);
        } else {
            std::memcpy(at, &word, sizeof word);
        }
    }
}

// The bits of `low` that `mask` has, lane after lane, each word's to `take(bits, count)`.
template <class Take>
void extract(const Row &low, const Row &mask, const Take &take) {
    for (int n = 0; n < LANES; ++n)
        if (mask.lane[n])
            take(std::uint64_t{low.lane[n]}, std::popcount(mask.lane[n]));
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec
