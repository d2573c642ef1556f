// Compressed volumes: docs/ctz.md.

#ifndef CTGPU_CODEC_H
#define CTGPU_CODEC_H

#include <nanobind/nanobind.h>

// Binds `ctz_encode`, `ctz_decode`, `ctz_variants` and `CtzFault`.
void bind_codec(nanobind::module_ &module);

#endif
