// Every AArch64 CPU has these instructions.
#define CTGPU_VARIANT neon
#include "cpu/vec_neon.h"

#include "cpu/kernel.h"
#include "cpu/nearest.h"

namespace ctgpu {
extern const Variant neon_variant;
const Variant neon_variant{"neon", neon::run, neon::round_all, neon::write_once, neon::gather};
}  // namespace ctgpu
