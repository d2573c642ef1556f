#include "labels.h"

#include "cpu/preprocess.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nb = nanobind;

namespace {

template <class T>
using Voxels = nb::ndarray<const T, nb::ndim<3>, nb::device::cpu>;
template <class L>
using Labels = nb::ndarray<L, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Known = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class A, class B>
void require_same_shape(const A &one, const B &other) {
    for (std::size_t axis = 0; axis < 3; ++axis)
        if (one.shape(axis) != other.shape(axis))
            throw nb::value_error("the shapes differ");
}

// Calls `work(voxels, stride, labels, n)` for every line of both.
template <class T, class L, class Work>
void for_each_line(const Voxels<T> &voxels, const Labels<L> &labels, const Work &work) {
    const std::size_t n = voxels.shape(2);
    L *line = labels.data();
    for (std::size_t plane = 0; plane < voxels.shape(0); ++plane)
        for (std::size_t row = 0; row < voxels.shape(1); ++row, line += n)
            work(voxels.data() + static_cast<std::ptrdiff_t>(plane) * voxels.stride(0) +
                     static_cast<std::ptrdiff_t>(row) * voxels.stride(1),
                 voxels.stride(2), line, n);
}

// Without a branch in it, so that compilers make vectors of it.
template <class T, class L>
std::size_t add_to_line(const T *voxels, std::ptrdiff_t stride, L *labels, std::size_t n, L label) {
    std::size_t taken = 0;
    // Short runs, so that the number of each fits the vectors' narrow lanes.
    for (std::size_t begin = 0; begin < n; begin += 255) {
        const std::size_t end = std::min(n, begin + 255);
        L over = 0;
        for (std::size_t k = begin; k < end; ++k) {
            const bool inside = voxels[static_cast<std::ptrdiff_t>(k) * stride] > T{0};
            over = static_cast<L>(over + (inside & (labels[k] != 0)));
            labels[k] = inside ? label : labels[k];
        }
        taken += over;
    }
    return taken;
}

// Gives the voxels above 0 a label; how many had another one.
template <class T, class L>
std::size_t add_label(const Voxels<T> &voxels, const Labels<L> &labels, L label) {
    require_same_shape(voxels, labels);
    nb::gil_scoped_release unlocked;
    std::size_t taken = 0;
    for_each_line<T, L>(voxels, labels,
                        [&](const T *from, std::ptrdiff_t stride, L *to, std::size_t n) {
                            taken += stride == 1 ? add_to_line<T, L>(from, 1, to, n, label)
                                                 : add_to_line<T, L>(from, stride, to, n, label);
                        });
    return taken;
}

// Copies numbers for which `known` holds something; the first voxel that is none of these.
template <class T, class L>
std::optional<double> take_labels(const Voxels<T> &voxels, const Labels<L> &labels,
                                  const Known &known) {
    require_same_shape(voxels, labels);
    nb::gil_scoped_release unlocked;
    std::optional<double> unknown;
    const double numbers = static_cast<double>(known.size());
    const std::uint8_t *const table = known.data();
    for_each_line<T, L>(
        voxels, labels, [&](const T *from, std::ptrdiff_t stride, L *to, std::size_t n) {
            for (std::size_t k = 0; k < n && !unknown; ++k) {
                const T voxel = from[static_cast<std::ptrdiff_t>(k) * stride];
                const double value = static_cast<double>(voxel);
                // False of what is no number at all.
                const bool in_table = value >= 0 && value < numbers;
                const std::size_t number = in_table ? static_cast<std::size_t>(voxel) : 0;
                if (!in_table || static_cast<double>(number) != value || table[number] == 0)
                    unknown = value;
                else
                    to[k] = static_cast<L>(number);
            }
        });
    return unknown;
}

// Where in memory each output voxel of an axis comes from.
std::vector<std::ptrdiff_t> offsets_of(const Indices &indices, std::size_t n_source,
                                       std::ptrdiff_t stride) {
    std::vector<std::ptrdiff_t> offsets;
    offsets.reserve(indices.size());
    std::int32_t before = 0;
    for (std::size_t o = 0; o < indices.size(); ++o) {
        const std::int32_t index = indices.data()[o];
        if (index < before || static_cast<std::size_t>(index) >= n_source)
            throw nb::value_error("an axis samples outside its source");
        offsets.push_back(index * stride);
        before = index;
    }
    return offsets;
}

// The label at each voxel of the output, 0 where that is padding.
template <class L>
void gather_labels(const Voxels<L> &labels, const std::array<Indices, 3> &indices,
                   const std::array<std::size_t, 3> &pad_before, const Labels<L> &out,
                   const std::string &variant) {
    ctgpu::Nearest task{labels.data(), sizeof(L), {}, 2, out.data()};
    std::array<std::vector<std::ptrdiff_t>, 3> offsets;
    for (int k = 0; k < 3; ++k) {
        const std::size_t n_out = out.shape(k), n_valid = indices[k].size();
        if (n_valid == 0 || n_valid > n_out || pad_before[k] > n_out - n_valid)
            throw nb::value_error("an axis does not fit the output");
        offsets[k] = offsets_of(indices[k], labels.shape(k), labels.stride(k));
        task.axes[k] = {n_out, pad_before[k], n_valid, offsets[k].data()};
        // Of one voxel the stride may be anything.
        if (labels.shape(k) > 1 && std::abs(labels.stride(k)) == 1)
            task.fast_axis = k;
    }
    const ctgpu::Variant &chosen = ctgpu::find_variant(variant);
    nb::gil_scoped_release unlocked;
    chosen.gather(task);
}

template <class T, class L>
void bind_voxels(nb::module_ &module) {
    module.def("add_label", &add_label<T, L>, nb::arg("voxels").noconvert(),
               nb::arg("labels").noconvert(), nb::arg("label"));
    module.def("take_labels", &take_labels<T, L>, nb::arg("voxels").noconvert(),
               nb::arg("labels").noconvert(), nb::arg("known").noconvert());
}

template <class L>
void bind_stored(nb::module_ &module) {
    bind_voxels<std::int8_t, L>(module);
    bind_voxels<std::uint8_t, L>(module);
    bind_voxels<std::int16_t, L>(module);
    bind_voxels<std::uint16_t, L>(module);
    bind_voxels<std::int32_t, L>(module);
    bind_voxels<std::uint32_t, L>(module);
    bind_voxels<std::int64_t, L>(module);
    bind_voxels<std::uint64_t, L>(module);
    bind_voxels<float, L>(module);
    bind_voxels<double, L>(module);
    module.def("gather_labels", &gather_labels<L>, nb::arg("labels").noconvert(),
               nb::arg("indices").noconvert(), nb::arg("pad_before"), nb::arg("out").noconvert(),
               nb::arg("variant"));
}

}  // namespace

void bind_labels(nb::module_ &module) {
    bind_stored<std::uint8_t>(module);
    bind_stored<std::uint16_t>(module);
}
