// Which variants were compiled in, and which of them this CPU can run.

#include "cpu/preprocess.h"

#include <stdexcept>

namespace ctgpu {

extern const Variant scalar_variant;
#if defined(__x86_64__)
extern const Variant avx2_variant, avx512_variant;
#elif defined(__aarch64__)
extern const Variant neon_variant;
#endif

namespace {

struct Candidate {
    const Variant *variant;
    bool (*usable)();
};

const Candidate candidates[] = {
#if defined(__x86_64__)
    {&avx512_variant,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {&avx2_variant,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c");
     }},
#elif defined(__aarch64__)
    {&neon_variant, [] { return true; }},
#endif
    {&scalar_variant, [] { return true; }},
};

}  // namespace

std::vector<const Variant *> usable_variants() {
    std::vector<const Variant *> usable;
    for (const Candidate &candidate : candidates)
        if (candidate.usable())
            usable.push_back(candidate.variant);
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
    for (const char *known : {"scalar", "avx2", "avx512", "neon"})
        if (name == known)
            throw std::runtime_error("this CPU cannot run the variant " + name + "; it can run " +
                                     names);
    throw std::invalid_argument("there is no variant '" + name + "'; this CPU can run " + names);
}

}  // namespace ctgpu
