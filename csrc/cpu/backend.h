// A CPU backend over given kernels; make_cpu_backend (ops/ops.h) takes them from the dispatch
// table.
#pragma once

#include <memory>

#include "cpu/kernels.h"
#include "ops/ops.h"

namespace smolvla::cpu {

std::unique_ptr<Backend> make_backend(size_t weight_bytes, size_t buffer_bytes, int threads,
                                      const Kernels& kernels, Compute compute,
                                      std::shared_ptr<const PackedImage> image = nullptr);

}  // namespace smolvla::cpu
