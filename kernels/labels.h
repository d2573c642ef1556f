// Label volumes: files merged into one, and one sampled by nearest neighbour.

#ifndef CTGPU_LABELS_H
#define CTGPU_LABELS_H

#include <nanobind/nanobind.h>

// Binds `add_label`, `take_labels` and `gather_labels`.
void bind_labels(nanobind::module_ &module);

#endif
