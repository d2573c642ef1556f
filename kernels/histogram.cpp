#include "histogram.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Neighbours are often equal, and an increment waits for the one before it at the same address: so
// each of a few neighbours has a table of its own.
template <typename Word>
void count(const std::uint8_t *data, std::size_t n, std::int64_t *counts) {
    constexpr std::size_t values = std::size_t{1} << 8 * sizeof(Word), lanes = 4;
    // Tables a multiple of 4 KiB apart would alias in the memory of pending stores.
    constexpr std::size_t pitch = values + 272;
    constexpr std::size_t most = std::numeric_limits<std::uint32_t>::max();
    std::vector<std::uint32_t> tables(lanes * pitch);
    std::uint32_t *table[lanes];
    for (std::size_t lane = 0; lane < lanes; ++lane)
        table[lane] = tables.data() + lane * pitch;
    while (n != 0) {
        const std::size_t part = std::min(n, most);
        std::fill(tables.begin(), tables.end(), 0);
        const std::uint8_t *const whole = data + part / lanes * sizeof(Word[lanes]);
        for (; data != whole; data += sizeof(Word[lanes])) {
            Word words[lanes];
            std::memcpy(words, data, sizeof words);
            for (std::size_t lane = 0; lane < lanes; ++lane)
                ++table[lane][words[lane]];
        }
        for (std::size_t k = 0; k < part % lanes; ++k, data += sizeof(Word)) {
            Word word;
            std::memcpy(&word, data, sizeof word);
            ++table[0][word];
        }
        for (const std::uint32_t *const one : table)
            for (std::size_t k = 0; k < values; ++k)
                counts[k] += one[k];
        n -= part;
    }
}

// Adds to `counts`, 256 or 65536 of them, how often each word of one or two bytes is in `data`.
void count_words(const Bytes &data, const Counts &counts) {
    const bool bytes = counts.size() == 256;
    if (!bytes && (counts.size() != 65536 || data.size() % 2 != 0))
        throw nb::value_error("words are of one or two bytes, and there is a count for each");
    nb::gil_scoped_release unlocked;
    if (bytes)
        count<std::uint8_t>(data.data(), data.size(), counts.data());
    else
        count<std::uint16_t>(data.data(), data.size() / 2, counts.data());
}

}  // namespace

void bind_histogram(nb::module_ &module) {
    module.def("count_words", &count_words, nb::arg("data"), nb::arg("counts"));
}
