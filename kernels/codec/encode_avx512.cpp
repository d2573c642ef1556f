// The encoder for AVX-512, and the turning of blocks.

#define CTGPU_VARIANT avx512

#include "codec/row_avx512.h"

#include "codec/encode_tile.h"
#include "codec/turn_avx.h"
