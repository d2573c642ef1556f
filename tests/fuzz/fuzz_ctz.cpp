// Fuzzing of the codec of `.ctz`: whatever the bytes are, every variant and the CUDA kernel as the
// host runs it say the same of a tile as docs/ctz.md, make the same voxels, and touch no byte
// besides.  What they do not is thrown.
//
// An input says what to do by its first bytes, and is never too short: behind its end there are
// zeros.  libFuzzer calls this with coverage (make fuzz), kernels/codec/test_ctz.cpp with random
// inputs and with kept ones.

#include "codec/codec.h"
#include "ctz_memory.h"
#include "ctz_page.h"
#include "cuda/ctz_tile.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

extern "C" void ctgpu_emulate_ctz(int kind, int coding, const ctgpu::CtzVolume *volumes,
                                  const ctgpu::CtzTile *tiles, int count, unsigned char *faults);

namespace {

using namespace ctgpu::codec;
using namespace ctz_memory;
using ctz_page::Bytes;
using ctz_page::Decoded;

Stream stream_of(Input &input) {
    Stream stream{};
    stream.kind = static_cast<Kind>(input.below(5));
    stream.coding = static_cast<Coding>(input.below(2));
    const int grid = input.byte();
    if (stream.kind >= Kind::grid) {
        const int least = least_grid(stream.kind);
        stream.grid = least + grid % (most_grid(stream.kind) - least + 1);
    }
    for (std::int16_t &weight : stream.weights)
        weight = static_cast<std::int16_t>(std::max(input.number(), -32767));
    stream.first = static_cast<std::int16_t>(input.number());
    return stream;
}

// ---- Voxels -------------------------------------------------------------------------------------

// The bits of a float of a kind, rounded towards zero.
std::uint16_t bits_of(Kind kind, float value) {
    const auto bits = [](float of) {
        std::uint32_t word;
        std::memcpy(&word, &of, sizeof word);
        return word;
    };
    if (kind == Kind::bfloat16)
        return static_cast<std::uint16_t>(bits(value) >> 16);
    // A float32 so much smaller has the bits of a float16, 13 places up.
    return static_cast<std::uint16_t>(bits(std::fabs(value) * 0x1p-112f) >> 13 |
                                      (std::signbit(value) ? 0x8000u : 0u));
}

// As volumes have them: smooth, or few of them, or anything, made of the rest of the input.
Voxels voxels_of(Input &input, const Stream &stream, std::size_t count) {
    const int texture = input.below(4), calm = input.below(8);
    const auto noise = input.rest();
    Voxels voxels(count);
    int walk = stream.first;
    for (std::size_t n = 0; n < count; ++n) {
        const auto at = [&](std::size_t next) {
            return noise.empty() ? 0 : static_cast<int>(noise[(n + next) % noise.size()]);
        };
        if (texture == 0) {
            voxels[n] = static_cast<std::uint16_t>(at(0) | at(1) << 8);
        } else if (texture == 1) {
            const int few[] = {0, 1, 2, 0xFF, 0x3C00, 0x8000, 0x7C00, 0xFFFF};
            if (n == 0 || at(0) >> calm == 0)
                voxels[n] = static_cast<std::uint16_t>(few[at(1) % 8]);
            else
                voxels[n] = voxels[n - 1];
        } else {
            walk = std::clamp(walk + (static_cast<std::int8_t>(at(0)) >> calm), -32700, 32700);
            const auto fraction = texture == 2 ? 0.0f : static_cast<float>(at(1)) / 256;
            const float value = std::ldexp(static_cast<float>(walk) + fraction, -stream.grid);
            voxels[n] = stream.kind >= Kind::grid ? bits_of(stream.kind, value)
                                                  : static_cast<std::uint16_t>(walk);
            if (stream.kind == Kind::grid && voxels[n] == 0x8000)
                voxels[n] = 0;
        }
        if (stream.kind == Kind::uint8)
            voxels[n] &= 255;
    }
    return voxels;
}

// Changes a few bytes of what was encoded.
void damage(Input &input, std::span<std::uint8_t> bytes) {
    for (int count = input.below(4); count > 0 && !bytes.empty(); --count) {
        const auto at = static_cast<std::size_t>(input.byte() | input.byte() << 8);
        bytes[at % bytes.size()] ^= static_cast<std::uint8_t>(input.byte());
    }
}

// Changes what the table says of a tile, but not how long it is.
void damage(Input &input, Parts &parts) {
    const int what = input.byte();
    if (what < 0xE0 || parts.raw)
        return;
    const auto by = static_cast<std::uint32_t>(static_cast<std::int8_t>(input.byte()));
    if (what & 1)
        parts.packed += by;
    if (what & 2)
        parts.quotients += by;
}

// ---- Tiles --------------------------------------------------------------------------------------

// As `damaged` says, by the kernel as the host runs it, into a target of whole rows.
bool decodes_on_device(const Stream &stream, const Shape &shape, const Member &member,
                       const std::array<int, 3> &start, const Layout &layout, Memory &written) {
    // Of one tile, the rows of which a warp keeps.
    Memory plane(static_cast<std::size_t>(shape[1]) * LANES * sizeof(short), 0x5A);
    ctgpu::CtzVolume volume{};
    volume.out = written.begin() + layout.origin;
    volume.plane_stride = layout.strides[0];
    volume.row_stride = layout.strides[1];
    for (int axis = 0; axis < 3; ++axis) {
        volume.shape[axis] = static_cast<int>(shape[axis]);
        volume.start[axis] = start[axis];
        volume.box[axis] = static_cast<int>(layout.shape[axis]);
        volume.weights[axis] = stream.weights[axis];
    }
    volume.grid = stream.grid;
    volume.first = stream.first;
    const ctgpu::CtzTile tile{member.data,
                              reinterpret_cast<short *>(plane.begin()),
                              member.parts.size,
                              member.parts.packed,
                              member.parts.quotients,
                              member.parts.raw,
                              0,
                              static_cast<int>(member.number)};
    unsigned char fault = 0xFF;
    ctgpu_emulate_ctz(static_cast<int>(stream.kind), static_cast<int>(stream.coding), &volume,
                      &tile, 1, &fault);
    return fault == static_cast<unsigned char>(Fault::none);
}

std::string of_variant(const Variant &variant) { return std::string("variant ") + variant.name; }

// What every variant makes of the voxels, the same bytes.
std::pair<Parts, Bytes> encoded(const Stream &stream, const TileShape &shape,
                                const Voxels &voxels) {
    const auto bytes = static_cast<std::size_t>(voxel_bytes(stream.kind));
    const auto lanes = static_cast<std::size_t>(shape.lanes);
    Memory rows(shape.groups() * LANES * bytes, 0x99);
    for (std::size_t n = 0; n < voxels.size(); ++n)
        std::memcpy(rows.begin() + (n / lanes * LANES + n % lanes) * bytes, &voxels[n], bytes);
    const auto row_stride = static_cast<std::ptrdiff_t>(LANES * bytes);
    std::optional<std::pair<Parts, Bytes>> made;
    for (const Variant *variant : usable_variants()) {
        Memory out(shape.voxels() * bytes);
        Workspace space(shape.rows);
        const Parts parts = variant->encode_tile(
            stream, shape, {rows.begin(), row_stride * shape.rows, row_stride}, space, out.begin());
        std::pair now{parts, Bytes(out.begin(), out.begin() + parts.size)};
        if (made)
            require(std::memcmp(&made->first, &parts, sizeof parts) == 0 &&
                        made->second == now.second,
                    of_variant(*variant) + " encodes a tile otherwise");
        made = std::move(now);
    }
    return *made;
}

// The tile as the page and as every variant decodes it.
Decoded check_tile(const Stream &stream, const TileShape &shape, const Parts &parts,
                   const Bytes &tile, int planes, Input &input) {
    const Decoded page = ctz_page::decode(stream, shape, parts, tile, planes);
    const bool whole = input.below(4) > 0;
    const std::array<int, 3> order = whole ? std::array{2, 1, 0} : std::array{2, 0, 1};
    const Layout layout({planes, shape.rows, shape.lanes}, voxel_bytes(stream.kind), order, input);
    const Expected expected(layout, voxel_bytes(stream.kind));
    const Voxels *const voxels = page.damaged ? nullptr : &page.voxels;
    Memory data(tile.size() + SLACK_BYTES, 0xFF);
    std::copy(tile.begin(), tile.end(), data.begin());
    const auto check = [&](bool sound, Memory &written, const std::string &by) {
        require(sound == !page.damaged, by + (sound ? " finds no damage" : " finds damage"));
        expected.check(written, voxels, by);
    };
    for (const Variant *variant : usable_variants()) {
        Memory written = expected.target();
        const Target target{written.begin() + layout.origin, layout.strides[0], layout.strides[1],
                            planes};
        const Fault fault = variant->decode_tile(stream, shape, parts, data.begin(), target);
        check(fault == Fault::none, written, of_variant(*variant));
    }
    Memory written = expected.target();
    check(decodes_on_device(stream, {shape.planes, shape.rows, shape.lanes},
                            {0, parts, data.begin()}, {}, layout, written),
          written, "the kernel");
    return page;
}

TileShape tile_shape_of(Input &input) {
    const int planes = input.byte(), rows = input.byte(), lanes = input.byte();
    return {1 + planes % PLANES, 1 + rows % 40, lanes < 128 ? 1 + lanes % LANES : LANES};
}

// How many planes of a tile are wanted: mostly all.
int wanted_of(Input &input, const TileShape &shape) {
    const int wanted = input.byte();
    return wanted < 192 ? shape.planes : 1 + wanted % shape.planes;
}

void fuzz_encoded_tile(Input &input) {
    const Stream stream = stream_of(input);
    const TileShape shape = tile_shape_of(input);
    const int planes = wanted_of(input, shape);
    Bytes changes(16);
    for (std::uint8_t &change : changes)
        change = static_cast<std::uint8_t>(input.byte());
    Input last = input;
    const Voxels voxels = voxels_of(input, stream, shape.voxels());
    auto [parts, tile] = encoded(stream, shape, voxels);
    if (parts.raw)
        return;
    const Decoded before = check_tile(stream, shape, parts, tile, planes, last);
    require(!before.damaged, "what was encoded is damaged");
    require(std::equal(before.voxels.begin(), before.voxels.end(), voxels.begin()),
            "what was encoded has other voxels");
    Input chosen(changes.data(), changes.size());
    damage(chosen, parts);
    damage(chosen, tile);
    check_tile(stream, shape, parts, tile, planes, last);
}

// A tile made of the bytes of the input, of which the sizes of its parts may be such that they fit.
void fuzz_any_tile(Input &input) {
    const Stream stream = stream_of(input);
    const TileShape shape = tile_shape_of(input);
    const int planes = wanted_of(input, shape), fitted = input.byte();
    Input last = input;
    Parts parts{0, static_cast<std::uint32_t>(input.number() & 0x3FFF),
                static_cast<std::uint32_t>(input.number() & 0x3FF), 0};
    const auto rest = input.rest();
    Bytes tile(rest.begin(), rest.end());
    const auto fill_up = [&](std::size_t size) { tile.resize(std::max(tile.size(), size)); };
    fill_up(shape.code_bytes());
    if (fitted & 3)
        parts.packed = static_cast<std::uint32_t>(
            ctz_page::packed_bytes(stream.coding, shape, std::span(tile)));
    const std::size_t ones = shape.code_bytes() + parts.packed;
    // So long that a part ends in the byte of its last bit.
    const auto end_at = [&](std::size_t begin, std::size_t bits) {
        fill_up(begin + (bits + 7) / 8);
        if (bits % 8)
            tile[begin + bits / 8] &= static_cast<std::uint8_t>((1 << bits % 8) - 1);
        return static_cast<std::uint32_t>((bits + 7) / 8);
    };
    const auto decoded = [&] {
        parts.size = static_cast<std::uint32_t>(tile.size());
        return ctz_page::decode(stream, shape, parts, tile, planes);
    };
    if (fitted & 6) {
        fill_up(ones + 64 * shape.groups() / 8);
        parts.quotients = static_cast<std::uint32_t>(tile.size() - ones);
        parts.quotients = end_at(ones, decoded().quotient_bits);
    }
    const std::size_t low = ones + parts.quotients;
    fill_up(low);
    if (fitted & 12)
        tile.resize(low + end_at(low, decoded().significand_bits));
    if (fitted & 16)
        tile.resize(std::min<std::size_t>(tile.size(), parts.packed >> (fitted >> 5)));
    parts.size = static_cast<std::uint32_t>(tile.size());
    const Decoded page = check_tile(stream, shape, parts, tile, planes, last);
    if (page.damaged || planes < shape.planes)
        return;
    const auto [again, bytes] = encoded(stream, shape, page.voxels);
    if (again.raw == 0)
        require(ctz_page::decode(stream, shape, again, bytes, planes).voxels == page.voxels,
                "voxels that were decoded have become others");
}

// ---- Volumes ------------------------------------------------------------------------------------

std::array<int, 3> order_of(Input &input) {
    const std::array<int, 3> orders[]{{2, 1, 0}, {0, 2, 1}, {0, 1, 2},
                                      {2, 0, 1}, {1, 0, 2}, {1, 2, 0}};
    return orders[input.below(6)];
}

Volume volume_in(Memory &memory, const Layout &layout, Kind kind) {
    return {memory.begin() + layout.origin, voxel_bytes(kind), layout.shape, layout.strides};
}

struct Encoded {
    std::vector<std::uint32_t> table;
    Bytes bytes;

    bool operator==(const Encoded &) const = default;
};

class FuzzedVolume {
  public:
    explicit FuzzedVolume(Input &input)
        : stream_(stream_of(input)),
          shape_{1 + input.below(40), 1 + input.below(12), 1 + input.below(72)},
          across_((shape_[2] + LANES - 1) / LANES),
          tiles_((shape_[0] + PLANES - 1) / PLANES * across_), chooses_(input.below(4)),
          stored_(shape_, voxel_bytes(stream_.kind), order_of(input), input) {
        for (int axis = 0; axis < 3; ++axis) {
            const int start = input.byte(), size = input.byte();
            start_[axis] = start < 128 ? 0 : start % static_cast<int>(shape_[axis]);
            const auto most = static_cast<int>(shape_[axis]) - start_[axis];
            box_[axis] = size < 128 ? most : 1 + size % most;
        }
        at_once_ = input.below(2) ? 4 : 1;
        changes_.resize(24);
        for (std::uint8_t &change : changes_)
            change = static_cast<std::uint8_t>(input.byte());
    }

    void check(Input &input) {
        const Layout out(box_, voxel_bytes(stream_.kind), order_of(input), input);
        const Voxels voxels =
            voxels_of(input, stream_, static_cast<std::size_t>(shape_[0] * shape_[1] * shape_[2]));
        Memory stored = placed(stored_, voxels, voxel_bytes(stream_.kind), 0x33);
        encode(volume_in(stored, stored_, stream_.kind));
        Voxels wanted;
        for (std::ptrdiff_t d = 0; d < box_[0]; ++d)
            for (std::ptrdiff_t h = 0; h < box_[1]; ++h)
                for (std::ptrdiff_t w = 0; w < box_[2]; ++w)
                    wanted.push_back(voxels[static_cast<std::size_t>(
                        ((d + start_[0]) * shape_[1] + h + start_[1]) * shape_[2] + w +
                        start_[2])]);
        decode(out, wanted, true);
        Input changes(changes_.data(), changes_.size());
        for (int count = changes.below(3); count > 0; --count)
            damage(changes, parts_[static_cast<std::size_t>(changes.byte()) % parts_.size()]);
        damage(changes, encoded_.bytes);
        decode(out, wanted, false);
    }

  private:
    // By every variant, the same.
    void encode(const Volume &volume) {
        std::optional<Encoded> made;
        for (const Variant *variant : usable_variants()) {
            Stream stream = stream_;
            if (chooses_ > 1) {
                const bool any = chooses_ == 3 && has_significand_bits(stream.kind);
                stream = choose_stream(*variant, volume, stream.kind, stream.coding,
                                       any ? std::optional<int>() : stream.grid);
            }
            Encoded now;
            now.table.resize(static_cast<std::size_t>(6 * tiles_));
            Memory out(static_cast<std::size_t>(shape_[0] * shape_[1] * shape_[2]) *
                       static_cast<std::size_t>(voxel_bytes(stream.kind)));
            encode_volume(*variant, volume, stream, now.table.data(), out.begin());
            std::size_t size = 0;
            for (std::ptrdiff_t n = 0; n < tiles_; ++n)
                size += now.table[static_cast<std::size_t>(6 * n)];
            now.bytes.assign(out.begin(), out.begin() + size);
            require(!made || *made == now, of_variant(*variant) + " encodes a volume otherwise");
            made = std::move(now);
            chosen_ = stream;
        }
        encoded_ = std::move(*made);
        for (std::size_t n = 0; n < encoded_.table.size(); n += 6)
            parts_.push_back({encoded_.table[n], encoded_.table[n + 1], encoded_.table[n + 2],
                              encoded_.table[n + 3]});
    }

    bool meets_box(std::ptrdiff_t number) const {
        const std::ptrdiff_t d = number / across_ * PLANES, w = number % across_ * LANES;
        return d < start_[0] + box_[0] && d + PLANES > start_[0] && w < start_[2] + box_[2] &&
               w + LANES > start_[2];
    }

    // What the page says of a tile as far as the box needs it.
    Decoded by_page(std::ptrdiff_t number, std::span<const std::uint8_t> bytes) const {
        const Parts &parts = parts_[static_cast<std::size_t>(number)];
        if (parts.raw)
            return {};
        const std::ptrdiff_t d = number / across_ * PLANES, w = number % across_ * LANES;
        const TileShape shape{static_cast<int>(std::min<std::ptrdiff_t>(PLANES, shape_[0] - d)),
                              static_cast<int>(shape_[1]),
                              static_cast<int>(std::min<std::ptrdiff_t>(LANES, shape_[2] - w))};
        const auto planes = std::min<std::ptrdiff_t>(shape.planes, start_[0] + box_[0] - d);
        return ctz_page::decode(chosen_, shape, parts, bytes, static_cast<int>(planes));
    }

    // Into the box, by every variant; `wanted` is what has to come of tiles that are as they were.
    void decode(const Layout &out, const Voxels &wanted, bool is_whole) {
        // The tiles that the box meets, one after the other.
        Bytes bytes;
        std::vector<std::ptrdiff_t> numbers, faulty;
        std::size_t at = 0;
        for (std::ptrdiff_t n = 0; n < tiles_; ++n) {
            const auto size = parts_[static_cast<std::size_t>(n)].size;
            const auto tile = std::span<const std::uint8_t>(encoded_.bytes).subspan(at, size);
            at += size;
            if (!meets_box(n))
                continue;
            numbers.push_back(n);
            bytes.insert(bytes.end(), tile.begin(), tile.end());
            if (by_page(n, tile).damaged)
                faulty.push_back(n);
        }
        require(!is_whole || faulty.empty(), "what was encoded is damaged");
        Memory data(bytes.size() + SLACK_BYTES, 0xFF);
        std::copy(bytes.begin(), bytes.end(), data.begin());
        std::vector<Member> members;
        std::size_t begin = 0;
        for (const std::ptrdiff_t n : numbers) {
            const Parts &parts = parts_[static_cast<std::size_t>(n)];
            members.push_back({n, parts, data.begin() + begin});
            begin += parts.size;
        }
        decode_members(out, members, faulty, is_whole ? &wanted : nullptr);
    }

    void decode_members(const Layout &out, const std::vector<Member> &members,
                        const std::vector<std::ptrdiff_t> &faulty, const Voxels *wanted) const {
        const Expected expected(out, voxel_bytes(chosen_.kind));
        const Box box{{start_[0], start_[1], start_[2]}, {}};
        std::optional<Bytes> first;
        const auto check = [&](bool damaged, Memory &written, const std::string &by) {
            require(damaged == !faulty.empty(),
                    by + (damaged ? " finds damage in a volume" : " finds no damage in a volume"));
            if (faulty.empty()) {
                Bytes now(written.begin(), written.begin() + written.size());
                require(!first || *first == now, by + " gives other voxels of a volume");
                first = std::move(now);
            }
            expected.check(written, wanted, by);
        };
        for (const Variant *variant : usable_variants()) {
            Memory written = expected.target();
            Box into = box;
            into.out = volume_in(written, out, chosen_.kind);
            std::optional<Damage> damage;
            // Slabs together as callers pass them.
            const std::ptrdiff_t slabs = at_once_ * across_;
            for (auto from = members.begin(); from != members.end() && !damage;) {
                auto to = from;
                while (to != members.end() && to->number / slabs == from->number / slabs)
                    ++to;
                damage = decode_box(*variant, chosen_, shape_, {from, to}, into);
                from = to;
            }
            if (damage)
                require(std::ranges::find(faulty, damage->number) != faulty.end(),
                        of_variant(*variant) + " finds damage in the wrong tile");
            check(damage.has_value(), written, of_variant(*variant));
        }
        if (out.strides[2] != voxel_bytes(chosen_.kind))
            return;
        Memory written = expected.target();
        bool damaged = false;
        for (const Member &member : members)
            damaged |= !decodes_on_device(chosen_, shape_, member, start_, out, written);
        check(damaged, written, "the kernel");
    }

    Stream stream_, chosen_{};
    Shape shape_;
    std::ptrdiff_t across_, tiles_;
    int chooses_;
    Layout stored_;
    std::array<int, 3> start_{};
    Shape box_{};
    int at_once_;
    Bytes changes_;
    std::vector<Parts> parts_;
    Encoded encoded_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *bytes, std::size_t size) {
    Input input(bytes, size);
    switch (input.below(3)) {
    case 0:
        fuzz_any_tile(input);
        break;
    case 1:
        fuzz_encoded_tile(input);
        break;
    default:
        FuzzedVolume(input).check(input);
    }
    return 0;
}
