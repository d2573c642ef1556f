// A tile decoded 32 voxels at a time.  CTGPU_VARIANT is avx512 or avx512fp16, which converts
// numbers of 16 bits to float16 by one instruction.

#include "codec/decode.h"

#include <immintrin.h>

#include <memory>

namespace ctgpu::codec {

namespace CTGPU_VARIANT {
namespace {

using Row = __m512i;

Row load(const void *at) { return _mm512_loadu_si512(at); }
Row all(int number) { return _mm512_set1_epi16(static_cast<short>(number)); }
Row all_bytes(int number) { return _mm512_set1_epi8(static_cast<char>(number)); }
Row pair(std::uint32_t two) { return _mm512_set1_epi32(static_cast<int>(two)); }

// What a code says of its group.
struct alignas(64) Group {
    std::uint8_t bytes_of[64];  // of a word of four numbers: its bytes among those of the group
    std::uint8_t bit_of[64];    // the bit of such a word that each byte of the numbers begins at
    // Twice 16 bits each.
    std::uint32_t mask;          // of the numbers
    std::uint32_t half;          // of the numbers without their lowest bit
    std::uint32_t sign;          // of that bit
    std::uint32_t shift;         // of the quotients
    std::uint64_t no_quotients;  // all bits, if it has none
    std::uint64_t none;          // 1, if it has none
    std::uint64_t bytes;         // of its packed bits
};

constexpr std::array<Group, 17> groups_by_width() {
    std::array<Group, 17> groups{};
    for (int width = 0; width <= 16; ++width) {
        Group &group = groups[width];
        for (int byte = 0; byte < 64; ++byte) {
            const int first = byte / 8 * 4 * width, number = byte % 8 / 2;
            group.bytes_of[byte] = static_cast<std::uint8_t>(first / 8 + byte % 8);
            group.bit_of[byte] =
                static_cast<std::uint8_t>((first % 8 + number * width + byte % 2 * 8) % 64);
        }
        const std::uint32_t mask = (1u << width) - 1;
        group.mask = mask * 0x10001u;
        group.half = (mask >> 1) * 0x10001u;
        group.sign = (mask & 1) * 0x10001u;
        group.shift = static_cast<std::uint32_t>(width) * 0x10001u;
    }
    return groups;
}
constexpr std::array<Group, 17> BY_WIDTH = groups_by_width();

using Groups = std::array<Group, 16>;

// By code.
Groups groups_of(Coding coding, int lanes) {
    const std::array<std::uint8_t, 16> bytes = group_bytes(coding, lanes);
    Groups groups;
    for (int code = 0; code < 16; ++code) {
        Group &group = groups[code] = BY_WIDTH[width_of(coding, code)];
        group.bytes = bytes[code];
        group.none = !has_quotients(coding, code);
        group.no_quotients = -group.none;
    }
    return groups;
}

struct Sequences {
    std::uint8_t bytes_from_1[64], byte_in_word[64], before_and_at[64], others_before[64],
        lanes_before[64];
    std::uint64_t numbers[8];
};

constexpr Sequences sequences() {
    Sequences all{};
    for (int byte = 0; byte < 64; ++byte) {
        all.bytes_from_1[byte] = static_cast<std::uint8_t>(byte + 1);
        all.byte_in_word[byte] = byte % 8;
        all.before_and_at[byte] = static_cast<std::uint8_t>((byte / 2 - byte % 2) & 63);
        all.others_before[byte] = static_cast<std::uint8_t>(byte % 8 * 8 + 6);
        // Of the same word; bit 7 gives 0.
        all.lanes_before[byte] =
            static_cast<std::uint8_t>(byte % 8 < 2 ? 0x80 : byte % 16 / 2 * 2 - 2);
    }
    for (int n = 0; n < 8; ++n)
        all.numbers[n] = static_cast<std::uint64_t>(n);
    return all;
}
alignas(64) constexpr Sequences SEQUENCES = sequences();

// Which bytes `others_before` takes: for each word of four lanes those of the words before it, and
// for the first one those of all.
constexpr std::uint64_t WORDS_BEFORE = 0x7F3F1F0F070301FF;

inline std::uint64_t packed_bytes(const TileShape &shape, Coding coding,
                                  const std::uint8_t *codes) {
    const std::array<std::uint8_t, 16> bytes = group_bytes(coding, shape.lanes);
    const Row table =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes.data())));
    const Row low = all_bytes(15);
    Row sum = _mm512_setzero_si512();
    const std::size_t whole = shape.groups() / 2;
    for (std::size_t at = 0; at < whole; at += 64) {
        const __mmask64 there = whole - at < 64 ? (1ull << (whole - at)) - 1 : ~0ull;
        const Row two = _mm512_maskz_loadu_epi8(there, codes + at);
        const Row first = _mm512_maskz_shuffle_epi8(there, table, _mm512_and_si512(two, low));
        const Row second = _mm512_maskz_shuffle_epi8(
            there, table, _mm512_and_si512(_mm512_srli_epi16(two, 4), low));
        sum = _mm512_add_epi64(
            sum, _mm512_sad_epu8(_mm512_add_epi8(first, second), _mm512_setzero_si512()));
    }
    auto total = static_cast<std::uint64_t>(_mm512_reduce_add_epi64(sum));
    if (shape.groups() % 2)
        total += bytes[codes[whole] & 15];
    return total;
}

template <Kind kind>
class Voxels {
  public:
    Voxels(const Stream &stream, __mmask32 lanes)
        : lanes_(lanes), scale_(_mm512_castsi512_ps(_mm512_set1_epi32((127 - stream.grid) << 23))),
          scale_of_halves_(all((15 - stream.grid) << 10)),
          unit_(all(unit_exponent(kind) - stream.grid)),
          tiny_(all(has_significand_bits(kind) ? tiny_bits(kind, stream.grid) : 0)) {}

    Row of(Row k, const TileParts &parts, Progress &progress) const {
        if constexpr (kind == Kind::uint8 || kind == Kind::int16)
            return k;
        else if constexpr (kind == Kind::grid)
            return scaled(k);
        else
            return with_significands(k, parts, progress);
    }

  private:
    // The floats of k units; for bfloat16 of k that are not negative.
    Row scaled(Row k) const {
        if constexpr (kind == Kind::bfloat16) {
            const __m512 even = _mm512_mul_ps(
                _mm512_cvtepi32_ps(_mm512_and_si512(k, _mm512_set1_epi32(0xFFFF))), scale_);
            const __m512 odd = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(k, 16)), scale_);
            return _mm512_mask_blend_epi16(0xAAAAAAAA,
                                           _mm512_srli_epi32(_mm512_castps_si512(even), 16),
                                           _mm512_castps_si512(odd));
        } else {
#ifdef __AVX512FP16__
            return _mm512_castph_si512(
                _mm512_mul_ph(_mm512_cvtepi16_ph(k), _mm512_castsi512_ph(scale_of_halves_)));
#else
            const auto halves = [&](__m256i part) {
                return _mm512_cvtps_ph(
                    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(part)), scale_),
                    _MM_FROUND_TO_NEAREST_INT);
            };
            return _mm512_inserti64x4(_mm512_castsi256_si512(halves(_mm512_castsi512_si256(k))),
                                      halves(_mm512_extracti64x4_epi64(k, 1)), 1);
#endif
        }
    }

    Row with_significands(Row k, const TileParts &parts, Progress &progress) const {
        const Row m = _mm512_subs_epu16(_mm512_abs_epi16(k), all(1)), plain = scaled(m);
        const Row exponent = _mm512_srli_epi16(plain, mantissa_bits(kind));
        const Row count = _mm512_maskz_min_epu16(_mm512_mask_test_epi16_mask(lanes_, k, k),
                                                 _mm512_subs_epu16(unit_, exponent), tiny_);
        // plain | (k & 0x8000)
        const Row voxel = _mm512_ternarylogic_epi32(plain, k, all(0x8000), 0xF8);
        if (_mm512_test_epi16_mask(count, count) == 0)
            return voxel;
        // Words are of four lanes, whose bits fit one with a shift by up to seven.  How many there
        // are in each word up to a lane, then before the word; for the first one, in all of them.
        Row up_to = _mm512_add_epi16(count, _mm512_slli_epi64(count, 16));
        up_to = _mm512_add_epi16(up_to, _mm512_slli_epi64(up_to, 32));
        const Row before = _mm512_sad_epu8(
            _mm512_maskz_permutexvar_epi8(WORDS_BEFORE, load(SEQUENCES.others_before), up_to),
            _mm512_setzero_si512());
        const std::size_t at = progress.significand_bits;
        progress.significand_bits +=
            static_cast<std::size_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(before)));
        const Row first = _mm512_set1_epi64(static_cast<long long>(SEQUENCES.numbers[at % 8]));
        const Row begin = _mm512_mask_add_epi64(first, 0xFE, before, first);
        const Row bytes = _mm512_add_epi8(_mm512_multishift_epi64_epi8(all_bytes(3), begin),
                                          load(SEQUENCES.byte_in_word));
        const Row words = _mm512_srlv_epi64(
            _mm512_permutexvar_epi8(bytes, load(parts.significands.begin + at / 8)),
            _mm512_and_si512(begin, _mm512_set1_epi64(7)));
        const Row bit =
            _mm512_add_epi8(_mm512_shuffle_epi8(up_to, load(SEQUENCES.lanes_before)), all(0x0800));
        const Row low = _mm512_multishift_epi64_epi8(bit, words);
        // voxel | (low & ~(-1 << count))
        return _mm512_ternarylogic_epi32(voxel, low, _mm512_sllv_epi16(all(-1), count), 0xF4);
    }

    __mmask32 lanes_;
    __m512 scale_;
    Row scale_of_halves_, unit_, tiny_;
};

template <Kind kind, bool stream>
void store(Row voxels, __mmask32 lanes, void *at) {
    if constexpr (kind == Kind::uint8)
        _mm256_mask_storeu_epi8(at, lanes, _mm512_cvtepi16_epi8(voxels));
    else if constexpr (stream)
        _mm512_stream_si512(static_cast<__m512i *>(at), voxels);
    else
        _mm512_mask_storeu_epi16(at, lanes, voxels);
}

struct alignas(64) Lanes {
    std::uint16_t k[LANES];
};

template <Kind kind, Coding coding, bool stream>
Fault decode(const Stream &parameters, const TileShape &shape, const TileParts &parts,
             const Groups &groups, const Target &target) {
    const auto lanes = static_cast<__mmask32>((std::uint64_t{1} << shape.lanes) - 1);
    const Voxels<kind> voxels(parameters, lanes);
    const std::uint64_t last_one = std::uint64_t{1} << (shape.lanes - 1);
    // The plane before; all equal and without weights before the first, so that only the row above
    // counts there.
    const auto plane = std::make_unique<Lanes[]>(static_cast<std::size_t>(shape.rows));
    const std::uint8_t *packed = parts.packed;
    Progress progress;
    Row u = all(0), v = u, s = u;
    for (int p = 0; p < target.planes; ++p) {
        Row a = p ? load(plane[0].k) : all(parameters.first), e = a, c = p ? a : all(0);
        auto *out = static_cast<std::uint8_t *>(target.voxels) + p * target.plane_stride;
        std::size_t at = static_cast<std::size_t>(p) * shape.rows;
        for (int r = 0, end = 1; r < shape.rows; end = std::min(r + ROWS_AT_ONCE, shape.rows)) {
            std::uint64_t codes = parts.codes_from(at + r);
            for (; r < end; ++r, codes >>= 4) {
                const Group &group = groups[codes & 15];
                const Row numbers = _mm512_multishift_epi64_epi8(
                    load(group.bit_of),
                    _mm512_permutexvar_epi8(load(group.bytes_of), load(packed)));
                packed += group.bytes;
                Row residual;
                if constexpr (coding == Coding::rice) {
                    const std::size_t bit = progress.quotient_bits;
                    const std::uint64_t ahead =
                        load_word(parts.quotients.begin + bit / 8) >> (bit % 8);
                    progress.quotients_end(
                        _tzcnt_u64((_pdep_u64(last_one, ahead) << 1) + group.none));
                    // One more than where the ones are, beside that of the lane before.
                    const Row ends = _mm512_maskz_permutexvar_epi8(
                        ~std::uint64_t{2}, load(SEQUENCES.before_and_at),
                        _mm512_maskz_compress_epi8(ahead | group.no_quotients,
                                                   load(SEQUENCES.bytes_from_1)));
                    const Row quotients = _mm512_maddubs_epi16(ends, all(0xFF01));
                    // numbers | ~mask: less by 1 << width, as these quotients are 1 too large
                    const Row low =
                        _mm512_ternarylogic_epi32(numbers, pair(group.mask), numbers, 0xF3);
                    const Row z =
                        _mm512_add_epi16(_mm512_sllv_epi16(quotients, pair(group.shift)), low);
                    const Row half = _mm512_srli_epi16(z, 1);
                    residual = _mm512_mask_sub_epi16(half, _mm512_test_epi16_mask(z, all(1)),
                                                     all(-1), half);
                } else {
                    // (numbers >> 1 & half) ^ -(numbers & sign): the numbers have others above them
                    const Row signs =
                        _mm512_sub_epi16(all(0), _mm512_and_si512(numbers, pair(group.sign)));
                    residual = _mm512_ternarylogic_epi32(_mm512_srli_epi16(numbers, 1),
                                                         pair(group.half), signs, 0x6A);
                }
                const Row b = load(plane[r].k), across = _mm512_sub_epi16(b, c);
                Row k = _mm512_add_epi16(residual, across);
                k = _mm512_add_epi16(k, _mm512_mulhrs_epi16(across, v));
                k = _mm512_add_epi16(k, _mm512_mulhrs_epi16(_mm512_sub_epi16(e, c), s));
                k = _mm512_add_epi16(_mm512_add_epi16(k, a),
                                     _mm512_mulhrs_epi16(_mm512_sub_epi16(a, c), u));
                _mm512_store_si512(plane[r].k, k);
                e = a, a = k, c = b;
                store<kind, stream>(voxels.of(k, parts, progress), lanes, out);
                out += target.row_stride;
            }
            if (const Fault fault = progress.so_far(parts); fault != Fault::none)
                return fault;
            if (r == 1)
                e = a;
        }
        u = all(parameters.weights[0]), v = all(parameters.weights[1]),
        s = all(parameters.weights[2]);
    }
    if constexpr (stream)
        _mm_sfence();
    return target.planes < shape.planes ? Fault::none : progress.at_end(parts);
}

template <Kind kind>
Fault decode(const Stream &stream, const TileShape &shape, const TileParts &parts,
             const Target &target) {
    const bool rows_apart = kind != Kind::uint8 && rows_lie_apart(shape, target);
    const Groups groups = groups_of(stream.coding, shape.lanes);
    if (stream.coding == Coding::rice)
        return rows_apart ? decode<kind, Coding::rice, true>(stream, shape, parts, groups, target)
                          : decode<kind, Coding::rice, false>(stream, shape, parts, groups, target);
    return rows_apart ? decode<kind, Coding::pack, true>(stream, shape, parts, groups, target)
                      : decode<kind, Coding::pack, false>(stream, shape, parts, groups, target);
}

}  // namespace
}  // namespace CTGPU_VARIANT
}  // namespace ctgpu::codec

#include "codec/decode_kinds.h"
