// The encoder for AVX2, and the turning of blocks.

#define CTGPU_VARIANT avx2

#include "codec/row_avx2.h"

#include "codec/encode_tile.h"
#include "codec/turn_avx.h"
