// Attention: blocks of query rows of one head, one after the other on the thread pool.
#pragma once

#include "cpu/linear.h"

namespace smolvla::cpu {

// Words of scratch that attention to a store needs, in every thread.
size_t attention_words(const GemmKernels& gemm, const PackedKv& kv);

// See Backend::store_kv; rows go to positions first...
void run_store_kv(Workers& workers, Mat keys, Mat values, PackedKv& kv, int first);
// See Backend::attention. `gemm` takes operands as `kv` is stored.
void run_attention(const Workplace& place, const GemmKernels& gemm, Mat q, const PackedKv& kv,
                   const AttentionShape& shape, Mat out);
// See Backend::attention_mass.
void run_attention_mass(const Workplace& place, const GemmKernels& gemm, Mat q, const PackedKv& kv,
                        const AttentionShape& shape, bool add, Mat mass);

}  // namespace smolvla::cpu
