// Which variants of the codec were compiled in, and which of them this CPU can run.

#include "codec/codec.h"

#include <stdexcept>

namespace ctgpu::codec {

#define CTGPU_DECLARE_VARIANT(variant)                                                             \
    namespace variant {                                                                            \
    Fault decode_tile(const Stream &, const TileShape &, const Parts &, const std::uint8_t *,      \
                      const Target &);                                                             \
    Parts encode_tile(const Stream &, const TileShape &, const Source &, Workspace &,              \
                      std::uint8_t *);                                                             \
    void measure_tile(const Stream &, const TileShape &, const Source &, Workspace &, Moments &);  \
    void turn(int, const Turn &);                                                                  \
    }

CTGPU_DECLARE_VARIANT(scalar)
#if defined(__x86_64__)
CTGPU_DECLARE_VARIANT(avx2)
CTGPU_DECLARE_VARIANT(avx512)
CTGPU_DECLARE_VARIANT(avx512fp16)
#endif

namespace {

struct Candidate {
    Variant variant;
    bool (*usable)();
};

#if defined(__x86_64__)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("bmi2");
}
#endif

const Candidate candidates[] = {
#if defined(CTGPU_AVX512FP16)
    {{"avx512fp16", avx512fp16::decode_tile, avx512::encode_tile, avx512::measure_tile,
      avx512::turn},
     [] { return has_avx512() && __builtin_cpu_supports("avx512fp16"); }},
#endif
#if defined(__x86_64__)
    {{"avx512", avx512::decode_tile, avx512::encode_tile, avx512::measure_tile, avx512::turn},
     has_avx512},
    {{"avx2", scalar::decode_tile, avx2::encode_tile, avx2::measure_tile, avx2::turn},
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
                __builtin_cpu_supports("f16c");
     }},
#elif defined(__aarch64__)
    {{"neon", scalar::decode_tile, scalar::encode_tile, scalar::measure_tile, scalar::turn},
     [] { return true; }},
#endif
    {{"scalar", scalar::decode_tile, scalar::encode_tile, scalar::measure_tile, scalar::turn},
     [] { return true; }},
};

}  // namespace

std::vector<const Variant *> usable_variants() {
    std::vector<const Variant *> usable;
    for (const Candidate &candidate : candidates)
        if (candidate.usable())
            usable.push_back(&candidate.variant);
    return usable;
}

const Variant &find_variant(const std::string &name) {
    const std::vector<const Variant *> usable = usable_variants();
    if (name.empty())
        return *usable.front();
    std::string names;
    for (const Variant *variant : usable) {
        if (name == variant->name)
            return *variant;
        names += names.empty() ? variant->name : std::string(", ") + variant->name;
    }
    for (const char *known : {"scalar", "avx2", "avx512", "avx512fp16", "neon"})
        if (name == known)
            throw std::runtime_error("this CPU cannot run the codec's variant " + name +
                                     "; it can run " + names);
    throw std::invalid_argument("the codec has no variant '" + name + "'; this CPU can run " +
                                names);
}

}  // namespace ctgpu::codec
