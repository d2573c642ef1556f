// Which variants were compiled in, and which of them this CPU can run.

#include "cpu/preprocess.h"
#include "cpu_features.h"
#include "variants.h"

namespace ctgpu {

extern const Variant scalar_variant;
#if defined(__x86_64__)
extern const Variant avx2_variant, avx512_variant;
#elif defined(__aarch64__)
extern const Variant neon_variant;
#endif

namespace {

const Candidate<Variant> candidates[] = {
#if defined(__x86_64__)
    {&avx512_variant,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {&avx2_variant,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }},
#elif defined(__aarch64__)
    {&neon_variant, [] { return true; }},
#endif
    {&scalar_variant, [] { return true; }},
};

}  // namespace

std::vector<const Variant *> usable_variants() { return usable_of(candidates); }

const Variant &find_variant(const std::string &name) {
    return variant_named(name, usable_variants(), {"scalar", "avx2", "avx512", "neon"}, "");
}

}  // namespace ctgpu
