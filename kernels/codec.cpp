#include "codec.h"

#include "codec/codec.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

namespace codec = ctgpu::codec;

using Voxels = nb::ndarray<nb::ndim<3>, nb::device::cpu>;
using ReadVoxels = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ReadBytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<std::uint32_t, nb::shape<-1, 6>, nb::c_contig, nb::device::cpu>;
using ReadTable = nb::ndarray<const std::uint32_t, nb::shape<-1, 6>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Shape = std::array<std::ptrdiff_t, 3>;

constexpr std::ptrdiff_t MOST_VOXELS = 65535;

struct CtzFault : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

[[noreturn]] void refuse(const std::string &why) { throw nb::value_error(why.c_str()); }

codec::Kind parse_kind(const std::string &name) {
    constexpr const char *names[] = {"uint8", "int16", "grid", "float16", "bfloat16"};
    for (int n = 0; n < static_cast<int>(std::size(names)); ++n)
        if (name == names[n])
            return static_cast<codec::Kind>(n);
    refuse("there is no kind of numbers '" + name + "'");
}

codec::Coding parse_coding(const std::string &name) {
    if (name != "pack" && name != "rice")
        refuse("there is no coding '" + name + "'");
    return name == "pack" ? codec::Coding::pack : codec::Coding::rice;
}

void require_grid(codec::Kind kind, int grid) {
    const bool units = kind != codec::Kind::uint8 && kind != codec::Kind::int16;
    if (grid < (units ? codec::least_grid(kind) : 0) || grid > (units ? codec::most_grid(kind) : 0))
        refuse("the kind has no grid of 2^-" + std::to_string(grid));
}

void require_axis(std::ptrdiff_t voxels) {
    if (voxels < 1 || voxels > MOST_VOXELS)
        refuse("an axis has " + std::to_string(voxels) + " voxels; it takes 1 to 65535");
}

template <class Array>
codec::Volume volume_of(const Array &array, codec::Kind kind) {
    const int bytes = codec::voxel_bytes(kind);
    if (array.dtype() != (bytes == 1 ? nb::dtype<std::uint8_t>() : nb::dtype<std::uint16_t>()))
        refuse("voxels are not unsigned and of the size of their kind");
    codec::Volume volume{
        static_cast<std::uint8_t *>(const_cast<void *>(static_cast<const void *>(array.data()))),
        bytes,
        {},
        {}};
    for (std::size_t axis = 0; axis < 3; ++axis) {
        volume.shape[axis] = static_cast<std::ptrdiff_t>(array.shape(axis));
        volume.strides[axis] = static_cast<std::ptrdiff_t>(array.stride(axis)) * bytes;
    }
    return volume;
}

std::ptrdiff_t tiles_of(const Shape &shape) {
    return (shape[0] + codec::PLANES - 1) / codec::PLANES *
           ((shape[2] + codec::LANES - 1) / codec::LANES);
}

std::tuple<int, std::tuple<int, int, int>, int>
encode(const ReadVoxels &voxels, const std::string &kind, const std::string &coding,
       std::optional<int> grid, const Table &table, const Bytes &out, const std::string &variant) {
    const codec::Kind numbers = parse_kind(kind);
    const codec::Coding how = parse_coding(coding);
    const codec::Volume volume = volume_of(voxels, numbers);
    for (const std::ptrdiff_t axis : volume.shape)
        require_axis(axis);
    if (!grid && !codec::has_significand_bits(numbers))
        refuse("voxels of the kind " + kind + " are on a grid that has to be named");
    if (grid)
        require_grid(numbers, *grid);
    if (static_cast<std::ptrdiff_t>(table.shape(0)) != tiles_of(volume.shape))
        refuse("the table has not an entry for each tile");
    if (out.size() < voxels.size() * static_cast<std::size_t>(volume.voxel_bytes))
        refuse("out is shorter than the volume");
    const codec::Variant &chosen = codec::find_variant(variant);
    nb::gil_scoped_release unlocked;
    const codec::Stream stream = codec::choose_stream(chosen, volume, numbers, how, grid);
    codec::encode_volume(chosen, volume, stream, table.data(), out.data());
    return {stream.grid, {stream.weights[0], stream.weights[1], stream.weights[2]}, stream.first};
}

const char *fault_text(codec::Fault fault) {
    switch (fault) {
    case codec::Fault::packed:
        return "its packed bits are not as long as its codes say";
    case codec::Fault::quotients:
        return "its quotients do not end where they should";
    case codec::Fault::significands:
        return "its significand bits do not end where they should";
    default:
        return "its parts are longer than it is";
    }
}

// The tiles as the table says that they lie in `data`.
std::vector<codec::Member> members_of(const Numbers &numbers, const ReadTable &table,
                                      const ReadBytes &data, const Shape &shape, codec::Kind kind) {
    if (table.shape(0) != numbers.shape(0))
        refuse("the table has not an entry for each tile");
    const std::ptrdiff_t tiles = tiles_of(shape);
    const std::ptrdiff_t across = (shape[2] + codec::LANES - 1) / codec::LANES;
    std::vector<codec::Member> members;
    members.reserve(numbers.size());
    std::size_t at = 0;
    for (std::size_t n = 0; n < numbers.size(); ++n) {
        const std::ptrdiff_t number = numbers.data()[n];
        if (number < 0 || number >= tiles)
            refuse("there is no tile " + std::to_string(number));
        const std::uint32_t *const entry = table.data() + 6 * n;
        const codec::Parts parts{entry[0], entry[1], entry[2], entry[3]};
        members.push_back({number, parts, data.data() + at});
        at += parts.size;
        if (at + codec::SLACK_BYTES > data.size())
            refuse("data ends before the tiles do");
        const std::ptrdiff_t planes =
            std::min<std::ptrdiff_t>(codec::PLANES, shape[0] - number / across * codec::PLANES);
        const std::ptrdiff_t lanes =
            std::min<std::ptrdiff_t>(codec::LANES, shape[2] - number % across * codec::LANES);
        const auto raw =
            static_cast<std::size_t>(planes * shape[1] * lanes) * codec::voxel_bytes(kind);
        if (parts.raw > 1 || (parts.raw == 1 && parts.size != raw))
            throw CtzFault("tile " + std::to_string(number) + ": " +
                           fault_text(codec::Fault::size));
    }
    return members;
}

void decode(const std::string &kind, const std::string &coding, int grid,
            const std::array<int, 3> &weights, int first, const Shape &shape,
            const Numbers &numbers, const ReadTable &table, const ReadBytes &data,
            const Shape &start, const Voxels &out, const std::string &variant) {
    codec::Stream stream{parse_kind(kind), parse_coding(coding), grid, {}, 0};
    require_grid(stream.kind, grid);
    for (int n = 0; n < 3; ++n) {
        if (weights[n] < -32767 || weights[n] > 32767)
            refuse("a weight is " + std::to_string(weights[n]) + "; it takes -32767 to 32767");
        stream.weights[n] = static_cast<std::int16_t>(weights[n]);
    }
    if (first < -32768 || first > 32767)
        refuse("the first number is " + std::to_string(first) + "; it takes 16 bits");
    stream.first = static_cast<std::int16_t>(first);
    const codec::Box box{start, volume_of(out, stream.kind)};
    for (int axis = 0; axis < 3; ++axis) {
        require_axis(shape[axis]);
        if (start[axis] < 0 || start[axis] > shape[axis] ||
            box.out.shape[axis] > shape[axis] - start[axis])
            refuse("the box does not lie in the volume");
    }
    const std::vector<codec::Member> members = members_of(numbers, table, data, shape, stream.kind);
    const codec::Variant &chosen = codec::find_variant(variant);
    std::optional<codec::Damage> damage;
    {
        nb::gil_scoped_release unlocked;
        damage = codec::decode_box(chosen, stream, shape, members, box);
    }
    if (damage)
        throw CtzFault("tile " + std::to_string(damage->number) + ": " + fault_text(damage->fault));
}

}  // namespace

void bind_codec(nb::module_ &module) {
    nb::exception<CtzFault>(module, "CtzFault", PyExc_ValueError);
    module.def("ctz_encode", &encode, nb::kw_only(), "voxels"_a.noconvert(), "kind"_a, "coding"_a,
               "grid"_a.none(), "table"_a.noconvert(), "out"_a.noconvert(), "variant"_a);
    module.def("ctz_decode", &decode, nb::kw_only(), "kind"_a, "coding"_a, "grid"_a, "weights"_a,
               "first"_a, "shape_dhw"_a, "numbers"_a.noconvert(), "table"_a.noconvert(),
               "data"_a.noconvert(), "start_dhw"_a, "out"_a.noconvert(), "variant"_a);
    module.def("ctz_variants", [] {
        std::vector<std::string> names;
        for (const codec::Variant *variant : codec::usable_variants())
            names.emplace_back(variant->name);
        return names;
    });
}
