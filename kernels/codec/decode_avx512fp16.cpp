// Compiled with the flags of its instructions, see CMakeLists.txt.
#define CTGPU_VARIANT avx512fp16
#include "codec/decode_avx512.h"
