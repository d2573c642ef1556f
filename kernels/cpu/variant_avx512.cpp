// Compiled with the flags of its instructions, see CMakeLists.txt.
#define CTGPU_VARIANT avx512
#include "cpu/vec_avx512.h"

#include "cpu/kernel.h"
#include "cpu/nearest.h"

namespace ctgpu {
extern const Variant avx512_variant;
const Variant avx512_variant{"avx512", avx512::run, avx512::round_all, avx512::write_once,
                             avx512::gather};
}  // namespace ctgpu
