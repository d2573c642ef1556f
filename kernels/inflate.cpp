#include "inflate.h"

#ifdef CTGPU_LIBDEFLATE

#include <libdeflate.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace nb = nanobind;

namespace {

using Input = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct Free {
    void operator()(libdeflate_decompressor *d) const { libdeflate_free_decompressor(d); }
};
using Decompressor = std::unique_ptr<libdeflate_decompressor, Free>;

Decompressor open_decompressor() {
    Decompressor decompressor(libdeflate_alloc_decompressor());
    if (!decompressor)
        throw std::bad_alloc();
    return decompressor;
}

void check(libdeflate_result result, bool filled) {
    if (result == LIBDEFLATE_INSUFFICIENT_SPACE)
        throw nb::value_error("it inflates to more than was declared");
    if (result != LIBDEFLATE_SUCCESS)
        throw nb::value_error("its deflate stream is damaged");
    if (!filled)
        throw nb::value_error("it inflates to less than was declared");
}

// Fills `out` exactly from all gzip members of `data`, zero padding between and after them allowed.
void gzip_into(const Input &data, const Output &out) {
    const std::uint8_t *in = data.data(), *const in_end = in + data.size();
    std::uint8_t *to = out.data(), *const to_end = to + out.size();
    libdeflate_result result;
    {
        nb::gil_scoped_release unlocked;
        const Decompressor decompressor = open_decompressor();
        do {
            std::size_t consumed = 0, produced = 0;
            result = libdeflate_gzip_decompress_ex(decompressor.get(), in, in_end - in, to,
                                                   to_end - to, &consumed, &produced);
            in += consumed;
            to += produced;
            while (in != in_end && *in == 0)
                ++in;
        } while (result == LIBDEFLATE_SUCCESS && in != in_end);
    }
    check(result, to == to_end);
}

// Fills `out` exactly from the bare deflate stream that is all of `data`.
void deflate_into(const Input &data, const Output &out) {
    std::size_t consumed = 0, produced = 0;
    libdeflate_result result;
    {
        nb::gil_scoped_release unlocked;
        result =
            libdeflate_deflate_decompress_ex(open_decompressor().get(), data.data(), data.size(),
                                             out.data(), out.size(), &consumed, &produced);
    }
    check(result, produced == out.size());
    if (consumed != data.size())
        throw nb::value_error("its deflate stream is damaged");
}

}  // namespace

void bind_inflate(nb::module_ &module) {
    module.def("gzip_into", &gzip_into, nb::arg("data"), nb::arg("out"));
    module.def("deflate_into", &deflate_into, nb::arg("data"), nb::arg("out"));
}

#else

void bind_inflate(nanobind::module_ &) {}

#endif
