// Counting how often each word occurs in memory.

#ifndef CTGPU_HISTOGRAM_H
#define CTGPU_HISTOGRAM_H

#include <nanobind/nanobind.h>

// Binds `count_words`.
void bind_histogram(nanobind::module_ &module);

#endif
