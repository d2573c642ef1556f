// The decoder for AVX2.

#define CTGPU_VARIANT avx2

#include "codec/unpack_avx2.h"

#include "codec/decode_rows.h"
