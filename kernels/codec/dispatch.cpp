// Which variants of the codec were compiled in, and which of them this CPU can run.

#include "codec/codec.h"
#include "cpu_features.h"
#include "variants.h"

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
#elif defined(__aarch64__)
CTGPU_DECLARE_VARIANT(neon)
#endif

namespace {

#if defined(__x86_64__)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("bmi2");
}
#endif

#if defined(__x86_64__)
const Variant avx512_variant{"avx512", avx512::decode_tile, avx512::encode_tile,
                             avx512::measure_tile, avx512::turn};
const Variant avx2_variant{"avx2", avx2::decode_tile, avx2::encode_tile, avx2::measure_tile,
                           avx2::turn};
#elif defined(__aarch64__)
const Variant neon_variant{"neon", neon::decode_tile, scalar::encode_tile, scalar::measure_tile,
                           scalar::turn};
#endif
#if defined(CTGPU_AVX512FP16)
const Variant avx512fp16_variant{"avx512fp16", avx512fp16::decode_tile, avx512::encode_tile,
                                 avx512::measure_tile, avx512::turn};
#endif
const Variant scalar_variant{"scalar", scalar::decode_tile, scalar::encode_tile,
                             scalar::measure_tile, scalar::turn};

const Candidate<Variant> candidates[] = {
#if defined(CTGPU_AVX512FP16)
    {&avx512fp16_variant, [] { return has_avx512() && has_avx512fp16(); }},
#endif
#if defined(__x86_64__)
    {&avx512_variant, has_avx512},
    {&avx2_variant,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && has_f16c(); }},
#elif defined(__aarch64__)
    {&neon_variant, [] { return true; }},
#endif
    {&scalar_variant, [] { return true; }},
};

}  // namespace

std::vector<const Variant *> usable_variants() { return usable_of(candidates); }

const Variant &find_variant(const std::string &name) {
    return variant_named(name, usable_variants(),
                         {"scalar", "avx2", "avx512", "avx512fp16", "neon"}, " of the codec");
}

}  // namespace ctgpu::codec
