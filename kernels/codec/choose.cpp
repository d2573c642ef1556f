// Which parameters a volume is encoded with: tried on a few tiles of it.

#include "codec/tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace ctgpu::codec {
namespace {

constexpr int MOST_SAMPLES = 16, SAMPLE_ROWS = 64;

// Rows of some tiles, spread through the volume, as a stream encodes them.  Copied once, for they
// are tried many times, and where lanes do not adjoin each reading turns them.
class Samples {
  public:
    Samples(const Variant &variant, const Volume &volume)
        : variant_(variant),
          rows_(static_cast<int>(std::min<std::ptrdiff_t>(SAMPLE_ROWS, volume.shape[1]))),
          row_bytes_(LANES * volume.voxel_bytes), space_(rows_),
          out_(static_cast<std::size_t>(PLANES) * rows_ * row_bytes_) {
        const std::ptrdiff_t across = tiles_along(volume.shape[2], LANES);
        const std::ptrdiff_t tiles = tiles_along(volume.shape[0], PLANES) * across;
        const std::ptrdiff_t count = std::min<std::ptrdiff_t>(tiles, MOST_SAMPLES);
        const std::ptrdiff_t rows_left = volume.shape[1] - rows_;
        voxels_.resize(static_cast<std::size_t>(count) * out_.size());
        TileReader reader(variant, volume, rows_);
        for (std::ptrdiff_t n = 0; n < count; ++n) {
            const std::ptrdiff_t tile = (2 * n + 1) * tiles / (2 * count);
            // Steps of three eighths, that come past every height.
            const std::ptrdiff_t row = (3 * n + 4) % 8 * rows_left / 7;
            reader.read({tile / across * PLANES, row, tile % across * LANES}, rows_, 1);
            shapes_.push_back(reader.shape(0));
            const Source from = reader.source(0);
            for (int p = 0; p < shapes_.back().planes; ++p)
                for (int r = 0; r < rows_; ++r)
                    std::memcpy(voxels_.data() + n * out_.size() + (p * rows_ + r) * row_bytes_,
                                static_cast<const char *>(from.voxels) + p * from.plane_stride +
                                    r * from.row_stride,
                                static_cast<std::size_t>(row_bytes_));
        }
    }

    // Calls work(shape, source) for each.
    template <class Work>
    void each(const Work &work) {
        const std::uint8_t *voxels = voxels_.data();
        for (const TileShape &shape : shapes_) {
            work(shape, Source{voxels, rows_ * row_bytes_, row_bytes_});
            voxels += out_.size();
        }
    }

    std::size_t encoded_bytes(const Stream &stream) {
        std::size_t bytes = 0;
        each([&](const TileShape &shape, const Source &source) {
            bytes += variant_.encode_tile(stream, shape, source, space_, out_.data()).size;
        });
        return bytes;
    }

    Moments moments(const Stream &stream) {
        Moments sums{};
        each([&](const TileShape &shape, const Source &source) {
            variant_.measure_tile(stream, shape, source, space_, sums);
        });
        return sums;
    }

    // The bits of the largest finite float without its sign; bits are in the order of sizes.
    unsigned largest(Kind kind) {
        const unsigned infinite = 0x7FFFu >> mantissa_bits(kind) << mantissa_bits(kind);
        unsigned most = 0;
        each([&](const TileShape &shape, const Source &source) {
            for (int p = 0; p < shape.planes; ++p)
                for (int r = 0; r < shape.rows; ++r) {
                    std::uint16_t row[LANES];
                    std::memcpy(row,
                                static_cast<const char *>(source.voxels) + p * source.plane_stride +
                                    r * source.row_stride,
                                static_cast<std::size_t>(shape.lanes) * sizeof *row);
                    for (int n = 0; n < shape.lanes; ++n)
                        if (const unsigned plain = row[n] & 0x7FFFu; plain < infinite)
                            most = std::max(most, plain);
                }
        });
        return most;
    }

  private:
    const Variant &variant_;
    const int rows_;
    const std::ptrdiff_t row_bytes_;
    Workspace space_;
    std::vector<std::uint8_t> out_, voxels_;
    std::vector<TileShape> shapes_;
};

// The weights of least squares, of Gauss's elimination; 0 where nothing tells them.
std::array<std::int16_t, 3> solve(const Moments &moments) {
    const auto &m = moments.products;
    double rows[3][4] = {
        {static_cast<double>(m[0]), static_cast<double>(m[1]), static_cast<double>(m[2]),
         static_cast<double>(moments.targets[0])},
        {static_cast<double>(m[1]), static_cast<double>(m[3]), static_cast<double>(m[4]),
         static_cast<double>(moments.targets[1])},
        {static_cast<double>(m[2]), static_cast<double>(m[4]), static_cast<double>(m[5]),
         static_cast<double>(moments.targets[2])},
    };
    std::array<std::int16_t, 3> weights{};
    for (int i = 0; i < 3; ++i) {
        if (rows[i][i] <= 1e-9 * static_cast<double>(m[i == 0 ? 0 : i == 1 ? 3 : 5]))
            return weights;
        for (int j = i + 1; j < 3; ++j) {
            const double factor = rows[j][i] / rows[i][i];
            for (int n = i; n < 4; ++n)
                rows[j][n] = rows[j][n] - factor * rows[i][n];
        }
    }
    double exact[3];
    for (int i = 2; i >= 0; --i) {
        double right = rows[i][3];
        for (int j = i + 1; j < 3; ++j)
            right = right - rows[i][j] * exact[j];
        exact[i] = right / rows[i][i];
        weights[i] = static_cast<std::int16_t>(
            std::clamp(std::nearbyint(exact[i] * 32768.0), -32767.0, 32767.0));
    }
    return weights;
}

// k of one voxel, 0 for one that its kind cannot hold.
std::int16_t number_of(const Stream &stream, unsigned voxel) {
    if (stream.kind == Kind::uint8 || stream.kind == Kind::int16)
        return static_cast<std::int16_t>(voxel);
    const int mantissa = mantissa_bits(stream.kind), top = unit_exponent(stream.kind) - stream.grid;
    const unsigned one = 1u << mantissa, plain = voxel & 0x7FFF, whole = (plain & (one - 1)) | one;
    const int shift = static_cast<int>(plain >> mantissa) - top;
    if (shift > 14 - mantissa || voxel == 0)
        return 0;
    const unsigned m = shift < -mantissa ? 0 : shift < 0 ? whole >> -shift : whole << shift;
    const auto size = static_cast<int>(m + (stream.kind == Kind::grid ? 0 : 1));
    return static_cast<std::int16_t>(voxel >> 15 ? -size : size);
}

// A stream, and the bytes that it makes of the samples.
struct Trial {
    Stream stream;
    std::size_t bytes;
};

class Choice {
  public:
    Choice(const Variant &variant, const Volume &volume, Kind kind, Coding coding)
        : samples_(variant, volume), kind_(kind), coding_(coding) {
        std::memcpy(&corner_, volume.voxels, static_cast<std::size_t>(volume.voxel_bytes));
    }

    // The best units of floats: from those of which the largest number takes all but three bits of
    // a k, downhill.
    Trial best_grid() {
        const int exponent = static_cast<int>(samples_.largest(kind_) >> mantissa_bits(kind_));
        const int finest = unit_exponent(kind_) + 14 - mantissa_bits(kind_) - exponent;
        const auto within = [&](int grid) {
            return std::clamp(grid, least_grid(kind_), most_grid(kind_));
        };
        Trial best = fitted(within(finest - 3));
        for (const int step : {-1, 1}) {
            const int from = best.stream.grid;
            for (int grid = from + step; grid == within(grid) && grid < finest; grid += step) {
                const Trial trial = fitted(grid);
                if (trial.bytes >= best.bytes)
                    break;
                best = trial;
            }
            if (best.stream.grid != from)
                break;
        }
        return best;
    }

    // With the weights of least squares.
    Trial fitted(int grid) {
        Stream stream{kind_, coding_, grid, {}, 0};
        stream.first = number_of(stream, corner_);
        std::ranges::copy(solve(samples_.moments(stream)), stream.weights);
        return {stream, samples_.encoded_bytes(stream)};
    }

    // Or one neighbour alone, or the plane through three: masks are made of such.
    Stream with_best_weights(Trial best) {
        for (const auto &[u, v] : {std::pair{0, -32767}, {-32767, 0}, {0, 0}}) {
            Stream stream = best.stream;
            stream.weights[0] = static_cast<std::int16_t>(u);
            stream.weights[1] = static_cast<std::int16_t>(v);
            stream.weights[2] = 0;
            if (const std::size_t bytes = samples_.encoded_bytes(stream); bytes < best.bytes)
                best = {stream, bytes};
        }
        return best.stream;
    }

  private:
    Samples samples_;
    Kind kind_;
    Coding coding_;
    std::uint16_t corner_ = 0;
};

}  // namespace

Stream choose_stream(const Variant &variant, const Volume &volume, Kind kind, Coding coding,
                     std::optional<int> grid) {
    Choice choice(variant, volume, kind, coding);
    return choice.with_best_weights(grid ? choice.fitted(*grid) : choice.best_grid());
}

}  // namespace ctgpu::codec
