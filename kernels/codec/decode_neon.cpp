// The decoder for NEON.

#define CTGPU_VARIANT neon

#include "codec/unpack_neon.h"

#include "codec/decode_rows.h"
