// The CPU engine without Python, for sanitizers and for emulated CPUs.
//
//   test_bits --random COUNT SEED      random volumes through every variant this CPU can run, with
//                                      1 and 3 threads; all must give the bits of `scalar`
//   test_bits CASE RESULT VARIANT      one case that tests/engines/test_cpu_bits.py wrote, through
//                                      one variant; writes the output's bytes
//
// Every table, source and output lies in memory of exactly its size, so that AddressSanitizer sees
// a single element too many.

#include "cpu/preprocess.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <stdexcept>

using namespace ctgpu;

namespace {

struct Table {
    int n_out = 0, pad_before = 0;
    std::vector<std::int32_t> i0, i1;
    std::vector<float> w;

    Axis axis() const {
        return {static_cast<int>(w.size()), n_out, pad_before, i0.data(), i1.data(), w.data()};
    }
};

struct Case {
    std::vector<char> voxels;
    std::ptrdiff_t origin = 0;  // of voxel (0, 0, 0) in `voxels`
    Dtype dtype{};
    bool swapped = false;
    std::ptrdiff_t strides[3]{};
    Table tables[3];
    Intensity intensity{};
    float pad = 0;
    Stored stored{};
    bool dhw = false;

    // The output's bytes.
    std::vector<unsigned char> run(const std::string &variant, int threads) const {
        const std::size_t n =
            static_cast<std::size_t>(tables[H].n_out) * tables[W].n_out * tables[D].n_out;
        std::vector<unsigned char> out(n * voxel_bytes(stored), 0xde);
        Task task{};
        task.source = {
            voxels.data() + origin, dtype, swapped, {strides[H], strides[W], strides[D]}};
        for (int axis = 0; axis < 3; ++axis)
            task.axes[axis] = tables[axis].axis();
        task.intensity = intensity;
        task.pad = pad;
        task.stored = stored;
        task.dhw = dhw;
        task.out = out.data();
        preprocess(task, find_variant(variant), threads);
        return out;
    }
};

// ---- random cases -----------------------------------------------------------------------------

class Random {
  public:
    explicit Random(unsigned seed) : bits_(seed) {}
    int below(int n) { return static_cast<int>(bits_() % static_cast<unsigned>(n)); }
    int between(int low, int high) { return low + below(high - low + 1); }
    float unit() { return static_cast<float>(bits_() % (1u << 24)) / (1 << 24); }

  private:
    std::mt19937 bits_;
};

Table random_table(Random &random, int n, int most) {
    Table table;
    const float ratio = 0.2f + 3 * random.unit() * random.unit();
    const int resized = std::max(1, static_cast<int>(n / ratio));
    table.n_out = random.between(1, most);
    const int valid = std::min(resized, table.n_out);
    table.pad_before = (table.n_out - valid) / 2;
    for (int o = (resized - valid) / 2; valid > static_cast<int>(table.w.size()); ++o) {
        const int first = std::min(static_cast<int>(o * ratio), n - 1);
        table.i0.push_back(first);
        table.i1.push_back(std::min(first + 1, n - 1));
        table.w.push_back(random.unit());
    }
    table.i0.shrink_to_fit(), table.i1.shrink_to_fit(), table.w.shrink_to_fit();
    return table;
}

Case random_case(Random &random) {
    Case c;
    c.dtype = static_cast<Dtype>(random.below(9));
    c.swapped = random.below(4) == 0;
    const std::ptrdiff_t size = item_bytes(c.dtype);
    // Now and then one axis is long enough to be cut into tiles.
    const int long_axis = random.below(12);
    int n[3];
    for (int axis = 0; axis < 3; ++axis) {
        const int most = axis == long_axis ? 1200 : long_axis < 3 ? 20 : 70;
        n[axis] = random.between(1, most);
        c.tables[axis] = random_table(random, n[axis], most);
    }
    // Axes in any order of memory, either way round, sometimes with gaps that align to nothing.
    const int orders[6][3]{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {0, 2, 1}, {2, 0, 1}, {1, 2, 0}};
    const int (&order)[3] = orders[random.below(6)];
    std::ptrdiff_t stride = size + (random.below(4) == 0 ? random.between(1, 3) : 0), last = size;
    for (int axis : order) {
        const bool backwards = random.below(4) == 0;
        c.strides[axis] = backwards ? -stride : stride;
        if (backwards)
            c.origin += (n[axis] - 1) * stride;
        last += (n[axis] - 1) * stride;
        stride = stride * n[axis] + (random.below(4) == 0 ? random.between(1, 40) : 0);
    }
    c.voxels.resize(static_cast<std::size_t>(last));
    for (char &byte : c.voxels)
        byte = static_cast<char>(random.below(256));
    // Random bytes would be infinities and NaNs too, which no engine is ever given.
    if (c.dtype == Dtype::float16 || c.dtype == Dtype::float32 || c.dtype == Dtype::float64)
        for (std::ptrdiff_t x = 0; x < last; ++x)
            c.voxels[static_cast<std::size_t>(x)] = static_cast<char>(random.below(64));
    c.intensity = {0.5f + random.unit(), -100 * random.unit(), -900, 700, 1 / 800.0f, 0.125f,
                   random.below(2),      random.below(2)};
    if (random.below(4) == 0) {
        c.intensity.clip_lo = -std::numeric_limits<float>::infinity();
        c.intensity.clip_hi = std::numeric_limits<float>::infinity();
    }
    c.pad = -1;
    c.stored = static_cast<Stored>(random.below(6));
    if (c.stored == Stored::int16 || c.stored == Stored::uint8) {
        // Beyond both ends too.
        c.intensity.scale = c.stored == Stored::int16 ? 50.0f : 0.2f;
        c.pad = 3.5f;
    }
    c.dhw = random.below(2) != 0;
    return c;
}

template <class L>
void compare_labels(std::mt19937 &random, int number);

int compare_variants(int count, unsigned seed) {
    Random random(seed);
    for (int number = 0; number < count; ++number) {
        const Case c = random_case(random);
        const std::vector<unsigned char> wanted = c.run("scalar", 1);
        for (const Variant *variant : usable_variants())
            for (int threads : {1, 3})
                if (c.run(variant->name, threads) != wanted) {
                    std::printf("case %d of seed %u: %s with %d threads differs from scalar\n",
                                number, seed, variant->name, threads);
                    return 1;
                }
    }
    std::mt19937 labels(seed);
    for (int number = 0; number < count; ++number)
        number % 2 ? compare_labels<std::uint16_t>(labels, number)
                   : compare_labels<std::uint8_t>(labels, number);
    std::printf("%d cases:", count);
    for (const Variant *variant : usable_variants())
        std::printf(" %s", variant->name);
    std::printf(" agree\n");
    return 0;
}

// ---- labels by nearest neighbour ----------------------------------------------------------------

template <class L>
void compare_labels(std::mt19937 &random, int number) {
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    int sizes[3], order[3] = {0, 1, 2};
    for (int &n : sizes)
        n = 1 + below(below(3) ? 40 : 300);
    std::shuffle(order, order + 3, random);
    std::ptrdiff_t strides[3], origin = 0, step = 1;
    for (int k : order) {
        strides[k] = step;
        step *= sizes[k];
        if (below(2)) {
            origin += strides[k] * (sizes[k] - 1);
            strides[k] = -strides[k];
        }
    }
    std::vector<L> labels(static_cast<std::size_t>(step));
    for (L &label : labels)
        label = static_cast<L>(random());
    std::vector<std::ptrdiff_t> offsets[3];
    Nearest task{labels.data() + origin, sizeof(L), {}, order[0], nullptr};
    std::size_t n_all = 1;
    for (int k = 0; k < 3; ++k) {
        const double stride = 0.3 + below(40) / 10.0;
        for (double at = below(3); at < sizes[k]; at += stride)
            offsets[k].push_back(static_cast<std::ptrdiff_t>(at) * strides[k]);
        if (offsets[k].empty())
            offsets[k].push_back(0);
        const std::size_t n = offsets[k].size(), pad = static_cast<std::size_t>(below(3));
        task.axes[k] = {n + pad + static_cast<std::size_t>(below(3)), pad, n, offsets[k].data()};
        n_all *= task.axes[k].n_out;
    }
    std::vector<L> wanted(n_all, 0), out(n_all);
    const NearestAxis &a = task.axes[0], &b = task.axes[1], &c = task.axes[2];
    for (std::size_t x = 0; x < a.n_valid; ++x)
        for (std::size_t y = 0; y < b.n_valid; ++y)
            for (std::size_t z = 0; z < c.n_valid; ++z)
                wanted[((x + a.pad_before) * b.n_out + y + b.pad_before) * c.n_out + z +
                       c.pad_before] =
                    labels[static_cast<std::size_t>(origin + a.offsets[x] + b.offsets[y] +
                                                    c.offsets[z])];
    task.out = out.data();
    for (const Variant *variant : usable_variants()) {
        std::fill(out.begin(), out.end(), static_cast<L>(0xde));
        variant->gather(task);
        if (out != wanted)
            throw std::runtime_error("labels " + std::to_string(number) + ": " + variant->name +
                                     " differs");
    }
}

// ---- a case from a file -----------------------------------------------------------------------

class Reader {
  public:
    explicit Reader(const char *path) {
        std::ifstream file(path, std::ios::binary);
        if (!file)
            throw std::runtime_error(std::string("cannot read ") + path);
        bytes_.assign(std::istreambuf_iterator<char>(file), {});
    }
    template <class T>
    T one() {
        return many<T>(1)[0];
    }
    template <class T>
    std::vector<T> many(std::size_t n) {
        std::vector<T> values(n);
        if (bytes_.size() - at_ < n * sizeof(T))
            throw std::runtime_error("the case is cut short");
        if (n > 0)
            std::memcpy(values.data(), bytes_.data() + at_, n * sizeof(T));
        at_ += n * sizeof(T);
        return values;
    }

  private:
    std::vector<char> bytes_;
    std::size_t at_ = 0;
};

Case read_case(const char *path) {
    Reader in(path);
    Case c;
    c.dtype = static_cast<Dtype>(in.one<std::int64_t>());
    c.swapped = in.one<std::int64_t>() != 0;
    c.dhw = in.one<std::int64_t>() != 0;
    c.stored = static_cast<Stored>(in.one<std::int64_t>());
    c.intensity.rescales = static_cast<int>(in.one<std::int64_t>());
    c.intensity.clips_before = static_cast<int>(in.one<std::int64_t>());
    for (std::ptrdiff_t &stride : c.strides)
        stride = in.one<std::int64_t>();
    c.origin = in.one<std::int64_t>();
    for (float *value : {&c.intensity.slope, &c.intensity.intercept, &c.intensity.clip_lo,
                         &c.intensity.clip_hi, &c.intensity.scale, &c.intensity.offset, &c.pad})
        *value = in.one<float>();
    for (Table &table : c.tables) {
        const auto valid = static_cast<std::size_t>(in.one<std::int32_t>());
        table.n_out = in.one<std::int32_t>();
        table.pad_before = in.one<std::int32_t>();
        table.i0 = in.many<std::int32_t>(valid);
        table.i1 = in.many<std::int32_t>(valid);
        table.w = in.many<float>(valid);
    }
    c.voxels = in.many<char>(static_cast<std::size_t>(in.one<std::int32_t>()));
    return c;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        if (argc == 4 && std::string(argv[1]) == "--random")
            return compare_variants(std::atoi(argv[2]), static_cast<unsigned>(std::atoi(argv[3])));
        if (argc == 4) {
            const std::vector<unsigned char> out = read_case(argv[1]).run(argv[3], 1);
            std::ofstream file(argv[2], std::ios::binary);
            file.write(reinterpret_cast<const char *>(out.data()),
                       static_cast<std::streamsize>(out.size()));
            return file.good() ? 0 : 1;
        }
        std::fprintf(stderr, "test_bits --random COUNT SEED | CASE RESULT VARIANT\n");
    } catch (const std::exception &error) {
        std::fprintf(stderr, "test_bits: %s\n", error.what());
    }
    return 2;
}
