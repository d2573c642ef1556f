// The box of the voxels of a range.

#ifndef CTGPU_FOREGROUND_H
#define CTGPU_FOREGROUND_H

#include <nanobind/nanobind.h>

// Binds `foreground_box`.
void bind_foreground(nanobind::module_ &module);

#endif
