// Runs on every CPU.
#define CTGPU_VARIANT scalar
#include "cpu/vec_scalar.h"

#include "cpu/kernel.h"
#include "cpu/nearest.h"

namespace ctgpu {
extern const Variant scalar_variant;
const Variant scalar_variant{"scalar", scalar::run, scalar::round_all, scalar::write_once,
                             scalar::gather};
}  // namespace ctgpu
