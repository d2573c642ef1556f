// A tile encoded row by row: the same template for every processor.
//
// An encode_*.cpp defines CTGPU_VARIANT, includes its row_*.h and then this file, and is compiled
// with its own flags.

#include "codec/codec.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace ctgpu::codec {
namespace CTGPU_VARIANT {
namespace {

// ---- from voxels to the numbers that are predicted ----------------------------------------------

struct Numbers {
    Row k;
    Row low, mask;  // significand bits, and which they are; of kinds that have some
};

// `impossible` has a bit once there was a voxel that the kind cannot hold.
template <Kind kind>
class Split {
  public:
    explicit Split(int) {}
    template <class Voxel>
    Numbers operator()(const Voxel *voxels, Row &) const {
        return {Row::load(voxels), Row::all(0), Row::all(0)};
    }
};

// Of floats.  Their numbers of units are their significands times a power of two that their
// exponents name, the rest below a unit is what stays open.
template <Kind kind>
struct Significands {
    static constexpr int M = mantissa_bits(kind);
    // The exponent of which one unit in the last place is a unit, less what makes the exponents
    // below it all 0: those of tiny numbers.
    int below;
    std::uint16_t powers[16]{}, masks[16]{};

    explicit Significands(int grid) : below(unit_exponent(kind) - grid - M - 1) {
        masks[0] = static_cast<std::uint16_t>((1u << tiny_bits(kind, grid)) - 1);
        for (int e = 1; e < 16; ++e) {
            powers[e] = static_cast<std::uint16_t>(1u << e);
            masks[e] = static_cast<std::uint16_t>((1u << std::max(M + 1 - e, 0)) - 1);
        }
    }
    unsigned most() const { return static_cast<unsigned>((below + 16) << M) - 1; }
};

template <Kind kind>
    requires(kind == Kind::float16 || kind == Kind::bfloat16 || kind == Kind::grid)
class Split<kind> {
  public:
    explicit Split(int grid) : Split(Significands<kind>(grid)) {}

    Numbers operator()(const std::uint16_t *voxels, Row &impossible) const {
        constexpr int M = mantissa_bits(kind);
        const Row bits = Row::load(voxels), plain = bits & Row::all(0x7FFF), none = Row::all(0);
        const Row exponent = minus_down_to_zero(shifted_right<M>(plain), below_);
        impossible = impossible | minus_down_to_zero(plain, most_);
        const Row whole = (plain & Row::all((1u << M) - 1)) | Row::all(1u << M);
        // Exponents that are impossible are taken as any.
        const Row index = exponent & Row::all(15);
        const Row m = high_product(shifted_left<15 - M>(whole), powers_(index));
        const Row open = masks_(index), low = either(equal(index, none), plain, whole) & open;
        if constexpr (kind == Kind::grid) {
            impossible = impossible | low | equal(bits, Row::all(0x8000));
            return {negated_where_negative(m, bits), low, open};
        } else {
            const Row zero = equal(bits, none);
            const Row k = negated_where_negative(m + Row::all(1), bits);
            return {either(zero, none, k), low, either(zero, none, open)};
        }
    }

  private:
    explicit Split(const Significands<kind> &of)
        : below_(Row::all(static_cast<unsigned>(of.below))), most_(Row::all(of.most())),
          powers_(of.powers), masks_(of.masks) {}

    Row below_, most_;
    Lookup powers_, masks_;
};

// ---- prediction ---------------------------------------------------------------------------------

// The neighbours of a row: a, b, c and e of docs/ctz.md.
struct Neighbours {
    Row a, b, c, e;
};

// Walks a tile row by row, and calls work(numbers, neighbours, plane, row) for each; it may return
// false to end the walk.
template <Kind kind, class Work>
bool walk(const Stream &stream, const TileShape &shape, const Source &source, Workspace &space,
          const Work &work) {
    using Voxel = std::conditional_t<kind == Kind::uint8, std::uint8_t, std::uint16_t>;
    const Split<kind> split(stream.grid);
    Row impossible = Row::all(0);
    const Row lanes = Row::first_lanes(shape.lanes);
    for (int p = 0; p < shape.planes; ++p) {
        const char *at = static_cast<const char *>(source.voxels) + p * source.plane_stride;
        std::uint16_t *k = space.plane.data();
        Row a = Row::all(0), c = a, e = a;
        for (int r = 0; r < shape.rows; ++r, at += source.row_stride, k += LANES) {
            const Row b = Row::load(k);
            const Numbers numbers = split(reinterpret_cast<const Voxel *>(at), impossible);
            numbers.k.store(k);
            work(numbers, Neighbours{a, b, c, e}, p, r);
            if (r == 0)
                e = numbers.k;
            else
                e = a;
            a = numbers.k;
            c = b;
        }
        if (any_bits(impossible & lanes))
            return false;
    }
    return true;
}

class Prediction {
  public:
    explicit Prediction(const Stream &stream)
        : u_(weight(stream, 0)), v_(weight(stream, 1)), s_(weight(stream, 2)),
          first_(Row::all(static_cast<std::uint16_t>(stream.first))) {}

    Row operator()(const Neighbours &of, int plane, int row) const {
        if (plane == 0)
            return row == 0 ? first_ : of.a;
        if (row == 0)
            return of.b;
        const Row ac = of.a - of.c, bc = of.b - of.c;
        return of.a + bc + rounded_product(ac, u_) + rounded_product(bc, v_) +
               rounded_product(of.e - of.c, s_);
    }

  private:
    static Row weight(const Stream &stream, int n) {
        return Row::all(static_cast<std::uint16_t>(stream.weights[n]));
    }
    Row u_, v_, s_, first_;
};

// ---- coding -------------------------------------------------------------------------------------

// The code of fewest bits, of two the smaller, for a z of that total.
inline int rice(const Row &z, unsigned total, int lanes) {
    const auto most = static_cast<unsigned>(QUOTIENT_BITS - lanes);
    // The least that can fit: a shift takes less than 1 from each lane, beside the halving.
    const int halvings = std::max(bit_length(total) - 6, 0);
    int width = halvings + (total >> halvings > most + static_cast<unsigned>(lanes));
    Row quotients = shifted_right(z, width);
    if (lanes == LANES && width + 2 < RICE_WIDE) {
        // At most 57 and 28 of these are left, so that two sums fit one.  One bit more costs as
        // many bits as there are lanes, which is more than it can save of quotients that fit.  No
        // branches, for no processor could foresee them.
        const unsigned sums = sum(quotients + shifted_left<8>(shifted_right<1>(quotients)));
        width += ((sums & 255) > most) + (sums >> 8 > most);
        return total == 0 ? RICE_ZERO : width;
    }
    if (total == 0)
        return RICE_ZERO;
    unsigned now = sum(quotients);
    for (; now > most && width < RICE_WIDE; now = sum(quotients)) {
        ++width;
        quotients = shifted_right<1>(quotients);
    }
    // What one bit more saves of quotients gets ever less.
    while (width + 1 < RICE_WIDE) {
        const Row next = shifted_right<1>(quotients);
        const unsigned then = sum(next);
        if (now - then <= static_cast<unsigned>(lanes))
            break;
        ++width;
        quotients = next;
        now = then;
    }
    const bool wide =
        width >= RICE_WIDE || lanes * (width + 1) + static_cast<int>(now) > 16 * lanes;
    return wide ? RICE_WIDE : width;
}

// Bits that are put one after the other.
class BitWriter {
  public:
    explicit BitWriter(std::uint8_t *begin) : begin_(begin), at_(begin) {}

    // The lowest `count` bits, 1 to 64, the others being 0.
    void put(std::uint64_t bits, int count) {
        if (count > QUOTIENT_BITS) [[unlikely]] {
            put(bits & 0xFFFFFFFF, 32);
            bits >>= 32;
            count -= 32;
        }
        word_ |= bits << used_;
        std::memcpy(at_, &word_, sizeof word_);
        used_ += count;
        at_ += used_ >> 3;
        word_ = used_ < 64 ? word_ >> (used_ & 56) : 0;
        used_ &= 7;
    }

    std::uint32_t finish() {
        std::memcpy(at_, &word_, sizeof word_);
        return static_cast<std::uint32_t>(at_ - begin_ + (used_ > 0));
    }

  private:
    std::uint8_t *begin_, *at_;
    std::uint64_t word_ = 0;
    int used_ = 0;
};

Parts store_raw(const TileShape &shape, const Source &source, int voxel_bytes, std::uint8_t *out) {
    const std::size_t row_bytes = static_cast<std::size_t>(shape.lanes) * voxel_bytes;
    std::uint8_t *to = out;
    for (int p = 0; p < shape.planes; ++p)
        for (int r = 0; r < shape.rows; ++r, to += row_bytes)
            std::memcpy(to,
                        static_cast<const char *>(source.voxels) + p * source.plane_stride +
                            r * source.row_stride,
                        row_bytes);
    return {static_cast<std::uint32_t>(to - out), 0, 0, 1};
}

// Codes the residuals of a tile, several groups at a time: a step of one waits for the one before,
// and a processor then has others to go on with.
template <Coding coding>
class Residuals {
  public:
    Residuals(Workspace &space, int lanes)
        : lanes_(lanes), codes_(space.codes.data()), packed_(space.packed.data()),
          quotients_(space.quotients.data()) {}

    void add(const Row &z) {
        z.store(z_[count_]);
        measures_[count_] = coding == Coding::pack ? any_bits(z) : sum(z);
        if (++count_ == TOGETHER)
            write();
    }

    // After the last of them: bytes of packed bits, and of quotients.
    std::array<std::uint32_t, 2> finish(const Workspace &space) {
        write();
        *codes_ = 0;
        return {static_cast<std::uint32_t>(packed_ - space.packed.data()), quotients_.finish()};
    }

  private:
    static constexpr int TOGETHER = 8;

    void write() {
        int codes[TOGETHER];
        for (int n = 0; n < count_; ++n)
            codes[n] = coding == Coding::pack ? std::min(bit_length(measures_[n]), PACK_WIDE)
                                              : rice(Row::load(z_[n]), measures_[n], lanes_);
        std::uint8_t *packed = packed_;
        BitWriter quotients = quotients_;
        for (int n = 0; n < count_; ++n) {
            const int code = codes[n];
            codes_[n] = static_cast<std::uint8_t>(code);
            if (coding == Coding::rice && code == RICE_ZERO)
                continue;
            const Row z = Row::load(z_[n]);
            const int width = code < (coding == Coding::pack ? PACK_WIDE : RICE_WIDE) ? code : 16;
            if (width > 0)
                pack(z, width, packed);
            packed += (lanes_ * width + 7) / 8;
            if (coding == Coding::rice && code < RICE_WIDE) {
                const std::uint64_t word = quotient_word(shifted_right(z, code), lanes_);
                quotients.put(word, 64 - __builtin_clzll(word));
            }
        }
        codes_ += count_;
        packed_ = packed;
        quotients_ = quotients;
        count_ = 0;
    }

    const int lanes_;
    std::uint8_t *codes_, *packed_;
    BitWriter quotients_;
    int count_ = 0;
    unsigned measures_[TOGETHER];
    alignas(64) std::uint16_t z_[TOGETHER][LANES];
};

template <Kind kind, Coding coding>
Parts encode(const Stream &stream, const TileShape &shape, const Source &source, Workspace &space,
             std::uint8_t *out) {
    const Prediction predict(stream);
    const Row lanes = Row::first_lanes(shape.lanes);
    Residuals<coding> residuals(space, shape.lanes);
    BitWriter significands(space.significands.data());
    const auto put = [&](const Numbers &numbers, const Neighbours &neighbours, int plane, int row) {
        residuals.add(zigzag(numbers.k - predict(neighbours, plane, row)) & lanes);
        if constexpr (has_significand_bits(kind))
            extract(numbers.low, numbers.mask & lanes,
                    [&](std::uint64_t bits, int count) { significands.put(bits, count); });
    };
    const bool possible = walk<kind>(stream, shape, source, space, put);
    const std::size_t raw_bytes = shape.voxels() * static_cast<std::size_t>(voxel_bytes(kind));
    const auto [packed_bytes, quotient_bytes] = residuals.finish(space);
    const std::uint32_t significand_bytes = significands.finish();
    const std::size_t size =
        shape.code_bytes() + packed_bytes + quotient_bytes + std::size_t{significand_bytes};
    if (!possible || size > raw_bytes)
        return store_raw(shape, source, voxel_bytes(kind), out);
    const std::uint8_t *const codes = space.codes.data();
    for (std::size_t n = 0; n < shape.code_bytes(); ++n)
        *out++ = static_cast<std::uint8_t>(codes[2 * n] | codes[2 * n + 1] << 4);
    std::memcpy(out, space.packed.data(), packed_bytes);
    std::memcpy(out + packed_bytes, space.quotients.data(), quotient_bytes);
    std::memcpy(out + packed_bytes + quotient_bytes, space.significands.data(), significand_bytes);
    return {static_cast<std::uint32_t>(size), packed_bytes, quotient_bytes, 0};
}

template <Kind kind>
void measure(const Stream &stream, const TileShape &shape, const Source &source, Workspace &space,
             Moments &moments) {
    // Lanes of one row cannot overflow 64 bits, nor can their sums over a volume.
    alignas(64) std::uint16_t difference[4][LANES];
    walk<kind>(stream, shape, source, space,
               [&](const Numbers &numbers, const Neighbours &of, int plane, int row) {
                   if (plane == 0 || row == 0)
                       return;
                   const Row bc = of.b - of.c;
                   (of.a - of.c).store(difference[0]);
                   bc.store(difference[1]);
                   (of.e - of.c).store(difference[2]);
                   (numbers.k - of.a - bc).store(difference[3]);
                   const auto product = [&](int i, int j) {
                       std::int64_t total = 0;
                       for (int n = 0; n < shape.lanes; ++n)
                           total += static_cast<std::int16_t>(difference[i][n]) *
                                    static_cast<std::int16_t>(difference[j][n]);
                       return total;
                   };
                   for (int i = 0, at = 0; i < 3; ++i) {
                       for (int j = i; j < 3; ++j)
                           moments.products[at++] += product(i, j);
                       moments.targets[i] += product(i, 3);
                   }
               });
}

// Calls of() for a kind.
template <class Of>
auto with_kind(Kind kind, const Of &of) {
    switch (kind) {
    case Kind::uint8:
        return of.template operator()<Kind::uint8>();
    case Kind::int16:
        return of.template operator()<Kind::int16>();
    case Kind::grid:
        return of.template operator()<Kind::grid>();
    case Kind::float16:
        return of.template operator()<Kind::float16>();
    case Kind::bfloat16:
        break;
    }
    return of.template operator()<Kind::bfloat16>();
}

}  // namespace

Parts encode_tile(const Stream &stream, const TileShape &shape, const Source &source,
                  Workspace &space, std::uint8_t *out) {
    return with_kind(stream.kind, [&]<Kind kind>() {
        return stream.coding == Coding::rice
                   ? encode<kind, Coding::rice>(stream, shape, source, space, out)
                   : encode<kind, Coding::pack>(stream, shape, source, space, out);
    });
}

void measure_tile(const Stream &stream, const TileShape &shape, const Source &source,
                  Workspace &space, Moments &moments) {
    with_kind(stream.kind,
              [&]<Kind kind>() { measure<kind>(stream, shape, source, space, moments); });
}

}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec
