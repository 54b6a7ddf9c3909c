// Which instruction sets exist, which of them this CPU has, and the kernels chosen for an engine.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace smolvla::cpu {

namespace scalar {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace scalar_fma {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx_vnni {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_vnni {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kernels;
}
namespace neon_dotprod {
extern const Kernels kernels;
}
namespace neon_i8mm {
extern const Kernels kernels;
}
namespace neon_bf16 {
extern const Kernels kernels;
}
#endif

struct CpuFeatures {
    bool fma = false, avx2 = false, avx512 = false, avx512_bf16 = false, avx512_vnni = false,
         avx_vnni = false;
    bool asimd = false, fp16 = false, dotprod = false, bf16 = false, i8mm = false, sve = false;
};
CpuFeatures detect_features();

// One row of the dispatch table.
struct KernelRow {
    std::string op, kernel, isa, needs;
    bool supported;  // by this CPU
    bool chosen;
};

// Picks the kernels for an engine: the first row of each operation that this CPU supports.
// `isa` (or, when empty, SMOLVLA_FORCE_ISA) forces one instruction set for all operations and
// SMOLVLA_FORCE_KERNEL="op=isa,op=isa" single ones; an unknown or unsupported choice is an error.
Kernels choose_kernels(const std::string& isa);
std::vector<KernelRow> kernel_table(const Kernels& chosen);

}  // namespace smolvla::cpu
