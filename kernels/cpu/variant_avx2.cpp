// Compiled with the flags of its instructions, see CMakeLists.txt.
#define CTGPU_VARIANT avx2
#include "cpu/vec_avx2.h"

#include "cpu/kernel.h"
#include "cpu/nearest.h"

namespace ctgpu {
extern const Variant avx2_variant;
const Variant avx2_variant{"avx2", avx2::run, avx2::round_all, avx2::write_once, avx2::gather};
}  // namespace ctgpu
