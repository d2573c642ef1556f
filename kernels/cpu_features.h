// What compilers have no common way to ask a CPU for.

#ifndef CTGPU_CPU_FEATURES_H
#define CTGPU_CPU_FEATURES_H

#if defined(__x86_64__)
#include <cpuid.h>

namespace ctgpu {

// Beside AVX2 and AVX-512, which say that the system keeps their registers.  Clang 14 knows neither
// name in __builtin_cpu_supports.
inline bool has_f16c() {
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
inline bool has_avx512fp16() {
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 23 & 1);
}

}  // namespace ctgpu
#endif

#endif
