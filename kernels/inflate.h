// Inflating into memory that is already there, by libdeflate where CMake found it.

#ifndef CTGPU_INFLATE_H
#define CTGPU_INFLATE_H

#include <nanobind/nanobind.h>

// Binds `gzip_into` and `deflate_into`; binds nothing in a build without libdeflate.
void bind_inflate(nanobind::module_ &module);

#endif
