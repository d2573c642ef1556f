// The compiled module: ctgpu._native.

#include "codec.h"
#include "cpu/floor.h"
#include "cpu/preprocess.h"
#include "foreground.h"
#include "histogram.h"
#include "inflate.h"
#include "labels.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Indices = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using HalfBits = nb::ndarray<std::uint16_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
// Of uint8 or uint16, as require_voxels checks.
using StoredVolume = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using StoredVoxels = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;

ctgpu::Dtype parse_dtype(const std::string &name) {
    constexpr const char *names[] = {"int8",   "uint8",   "int16",   "uint16", "int32",
                                     "uint32", "float16", "float32", "float64"};
    for (int n = 0; n < static_cast<int>(std::size(names)); ++n)
        if (name == names[n])
            return static_cast<ctgpu::Dtype>(n);
    throw std::invalid_argument("voxels of dtype " + name + " are not supported");
}

ctgpu::Stored parse_stored(const std::string &name) {
    constexpr const char *names[] = {"float16", "bfloat16",       "int16",
                                     "uint8",   "float16_grid10", "float16_grid11"};
    for (int n = 0; n < static_cast<int>(std::size(names)); ++n)
        if (name == names[n])
            return static_cast<ctgpu::Stored>(n);
    throw std::invalid_argument("there is no output of type " + name);
}

// That the dtype of `out` is the unsigned one of the size of what is stored.
void require_voxels(const nb::dlpack::dtype &dtype, ctgpu::Stored stored) {
    const bool fits = ctgpu::voxel_bytes(stored) == 1 ? dtype == nb::dtype<std::uint8_t>()
                                                      : dtype == nb::dtype<std::uint16_t>();
    if (!fits)
        throw std::invalid_argument("out is not unsigned and of the size of what is stored");
}

// ctgpu.volume.geometry.AxisPlan, checked so that no index leaves the source.
struct AxisTables {
    int n_source, pad_before;
    Indices i0, i1;
    Weights w;

    ctgpu::Axis check(std::size_t n_out) const {
        const std::size_t n = w.shape(0);
        if (n == 0 || i0.shape(0) != n || i1.shape(0) != n || pad_before < 0 ||
            pad_before + n > n_out)
            throw std::invalid_argument("an axis does not fit the output");
        std::int32_t before = 0;
        for (std::size_t o = 0; o < n; ++o) {
            const std::int32_t first = i0.data()[o], second = i1.data()[o];
            if (first < before || second < first || second - first > 1 || second >= n_source)
                throw std::invalid_argument("an axis samples outside its source");
            before = first;
        }
        return {static_cast<int>(n), static_cast<int>(n_out),
                pad_before,          i0.data(),
                i1.data(),           w.data()};
    }
};

void preprocess(std::uintptr_t address, const std::string &dtype, bool swapped,
                std::array<std::ptrdiff_t, 3> strides,
                const std::array<const AxisTables *, 3> &axes, ctgpu::Intensity intensity,
                float pad, const std::string &layout, const std::string &stored, StoredVolume out,
                const std::string &variant, int threads) {
    if (threads < 1)
        throw std::invalid_argument("threads is " + std::to_string(threads) +
                                    "; it must be 1 or more");
    const bool dhw = layout == "DHW";
    ctgpu::Task task{};
    task.source = {reinterpret_cast<const void *>(address),
                   parse_dtype(dtype),
                   swapped,
                   {strides[0], strides[1], strides[2]}};
    for (int axis = 0; axis < 3; ++axis)
        task.axes[axis] = axes[axis]->check(out.shape(dhw ? (axis + 1) % 3 : axis));
    task.intensity = intensity;
    task.pad = pad;
    task.stored = parse_stored(stored);
    require_voxels(out.dtype(), task.stored);
    task.dhw = dhw;
    task.out = out.data();
    const ctgpu::Variant &chosen = ctgpu::find_variant(variant);
    nb::gil_scoped_release release;
    ctgpu::preprocess(task, chosen, threads);
}

void round_to(const std::string &stored, Weights in, StoredVoxels out, const std::string &variant) {
    if (in.shape(0) != out.shape(0))
        throw std::invalid_argument("the lengths differ");
    const ctgpu::Stored type = parse_stored(stored);
    require_voxels(out.dtype(), type);
    ctgpu::find_variant(variant).round_to(type, in.data(), out.data(), in.shape(0));
}

// The caller takes the time; the result keeps the compiler from dropping the read.
unsigned touch_memory(std::uintptr_t source, std::size_t planes, std::ptrdiff_t plane_stride,
                      std::size_t rows, std::ptrdiff_t row_stride, std::size_t run_bytes,
                      HalfBits out) {
    nb::gil_scoped_release release;
    ctgpu::find_variant("").write_once(out.data(), out.size());
    return ctgpu::read_runs(reinterpret_cast<const char *>(source), planes, plane_stride, rows,
                            row_stride, run_bytes);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The compiled parts of ctgpu; use ctgpu.engines and ctgpu.decode.";

    nb::class_<AxisTables>(m, "Axis").def(
        "__init__",
        [](AxisTables *self, int n_source, int pad_before, Indices i0, Indices i1, Weights w) {
            new (self) AxisTables{n_source, pad_before, i0, i1, w};
        },
        "n_source"_a, "pad_before"_a, "i0"_a, "i1"_a, "w"_a);

    nb::class_<ctgpu::Intensity>(m, "Intensity")
        .def(
            "__init__",
            [](ctgpu::Intensity *self, float slope, float intercept, float clip_lo, float clip_hi,
               float scale, float offset, bool rescales, bool clips_before) {
                new (self) ctgpu::Intensity{slope, intercept, clip_lo,  clip_hi,
                                            scale, offset,    rescales, clips_before};
            },
            nb::kw_only(), "slope"_a, "intercept"_a, "clip_lo"_a, "clip_hi"_a, "scale"_a,
            "offset"_a, "rescales"_a, "clips_before"_a);

    m.def("preprocess", &preprocess, nb::kw_only(), "address"_a, "dtype"_a, "swapped"_a,
          "strides"_a, "axes"_a, "intensity"_a, "pad"_a, "layout"_a, "stored"_a, "out"_a,
          "variant"_a, "threads"_a);
    m.def(
        "cpu_variant", [](const std::string &name) { return ctgpu::find_variant(name).name; },
        "name"_a, "The variant of that name, or for \"\" the best this CPU can run.");
    m.def("cpu_variants", [] {
        std::vector<std::string> names;
        for (const ctgpu::Variant *variant : ctgpu::usable_variants())
            names.emplace_back(variant->name);
        return names;
    });
    m.def("round_to", &round_to, "stored"_a, "values"_a, "out"_a, "variant"_a,
          "What step 8 does to numbers; for tests.");
    m.def("touch_memory", &touch_memory, nb::kw_only(), "source"_a, "planes"_a, "plane_stride"_a,
          "rows"_a, "row_stride"_a, "run_bytes"_a, "out"_a,
          "For benchmarks: writes `out` and reads runs of the source, once each.");
    bind_codec(m);
    bind_foreground(m);
    bind_histogram(m);
    bind_inflate(m);
    bind_labels(m);
}
