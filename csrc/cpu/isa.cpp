#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#include "runtime/error.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace smolvla::cpu {
namespace {

const CpuFeatures& features() {
    static const CpuFeatures found = detect_features();
    return found;
}

// The dispatch table, best first. A new ISA is one line here and one translation unit.
struct IsaRow {
    const char* name;
    const char* needs;
    bool (*supported)(const CpuFeatures&);
    const Kernels* kernels;
};

const IsaRow kRows[] = {
#if defined(__x86_64__)
    {"avx512_bf16", "avx512f+bw+vl+dq, fma, avx512_bf16",
     [](const CpuFeatures& f) { return f.avx512 && f.fma && f.avx512_bf16; },
     &avx512_bf16::kernels},
    {"avx512_vnni", "avx512f+bw+vl+dq, fma, avx512_vnni",
     [](const CpuFeatures& f) { return f.avx512 && f.fma && f.avx512_vnni; },
     &avx512_vnni::kernels},
    {"avx512", "avx512f+bw+vl+dq, fma", [](const CpuFeatures& f) { return f.avx512 && f.fma; },
     &avx512::kernels},
    {"avx_vnni", "avx2, fma, avx_vnni",
     [](const CpuFeatures& f) { return f.avx2 && f.fma && f.avx_vnni; }, &avx_vnni::kernels},
    {"avx2", "avx2, fma", [](const CpuFeatures& f) { return f.avx2 && f.fma; }, &avx2::kernels},
    {"scalar", "fma", [](const CpuFeatures& f) { return f.fma; }, &scalar_fma::kernels},
#elif defined(__aarch64__)
    {"neon_bf16", "asimd, bf16", [](const CpuFeatures& f) { return f.asimd && f.bf16; },
     &neon_bf16::kernels},
    {"neon_i8mm", "asimd, i8mm", [](const CpuFeatures& f) { return f.asimd && f.i8mm; },
     &neon_i8mm::kernels},
    {"neon_dotprod", "asimd, dotprod", [](const CpuFeatures& f) { return f.asimd && f.dotprod; },
     &neon_dotprod::kernels},
    {"neon", "asimd", [](const CpuFeatures& f) { return f.asimd; }, &neon::kernels},
#endif
    {"scalar", "nothing", [](const CpuFeatures&) { return true; }, &scalar::kernels},
};

// One operation of the table: its name and how to take it over from another ISA's kernels.
struct OpRow {
    const char* name;
    bool (*has)(const Kernels& kernels);
    void (*take)(Kernels& to, const Kernels& from);
    bool (*same)(const Kernels& a, const Kernels& b);
};

#define SMOLVLA_OP(field)                                             \
    {#field, [](const Kernels& k) { return k.field != nullptr; },     \
     [](Kernels& to, const Kernels& from) { to.field = from.field; }, \
     [](const Kernels& a, const Kernels& b) { return a.field == b.field; }}
const OpRow kOps[] = {SMOLVLA_OP(gemm_f32), SMOLVLA_OP(gemm_bf16),    SMOLVLA_OP(gemm_words),
                      SMOLVLA_OP(dot8),     SMOLVLA_OP(dot4),         SMOLVLA_OP(quantize_rows),
                      SMOLVLA_OP(epilogue), SMOLVLA_OP(layer_norm),   SMOLVLA_OP(rms_norm),
                      SMOLVLA_OP(softmax),  SMOLVLA_OP(softmax_bf16), SMOLVLA_OP(scale_rows),
                      SMOLVLA_OP(rope),     SMOLVLA_OP(fma_chain),    SMOLVLA_OP(words_chain)};
#undef SMOLVLA_OP

// The kernels of `isa` (of the best one when empty); what it lacks comes from the rows below it.
Kernels kernels_of(const std::string& isa) {
    std::string known;
    bool exists = false;
    Kernels found;
    for (const IsaRow& row : kRows) {
        if (known.find(row.name) == std::string::npos)
            known += (known.empty() ? "" : ", ") + std::string(row.name);
        if (!found.isa && !isa.empty() && isa != row.name) continue;
        exists = true;
        if (!row.supported(features())) continue;
        if (!found.isa) found.isa = row.name;
        for (const OpRow& op : kOps)
            if (!op.has(found)) op.take(found, *row.kernels);
    }
    if (found.isa) return found;
    if (exists)
        fail(ErrorKind::backend, "ISA %s was forced, but this CPU does not support it",
             isa.c_str());
    fail(ErrorKind::backend, "ISA %s is unknown; this build has %s", isa.c_str(), known.c_str());
}

void force_one(Kernels& kernels, const std::string& choice) {
    const size_t equals = choice.find('=');
    const std::string op = choice.substr(0, equals);
    if (equals != std::string::npos)
        for (const OpRow& row : kOps)
            if (op == row.name) return row.take(kernels, kernels_of(choice.substr(equals + 1)));
    std::string known;
    for (const OpRow& row : kOps) known += (known.empty() ? "" : ", ") + std::string(row.name);
    fail(ErrorKind::backend, "SMOLVLA_FORCE_KERNEL: expected op=isa with op one of %s; got %s",
         known.c_str(), choice.c_str());
}

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

}  // namespace

CpuFeatures detect_features() {
    CpuFeatures f;
#if defined(__x86_64__)
    __builtin_cpu_init();
    f.fma = __builtin_cpu_supports("fma");
    f.avx2 = __builtin_cpu_supports("avx2");
    f.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    f.avx512_bf16 = __builtin_cpu_supports("avx512bf16");
    f.avx512_vnni = __builtin_cpu_supports("avx512vnni");
    unsigned a, b, c, d;  // clang 14's __builtin_cpu_supports does not know this one
    f.avx_vnni = f.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#elif defined(__aarch64__)
    // Bits of the kernel's ABI (asm/hwcap.h), which older headers do not all name.
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    f.asimd = first >> 1 & 1;
    f.fp16 = (first >> 9 & 1) && (first >> 10 & 1);  // scalar and vector half precision
    f.dotprod = first >> 20 & 1;
    f.sve = first >> 22 & 1;
    f.i8mm = second >> 13 & 1;
    f.bf16 = second >> 14 & 1;
#endif
    return f;
}

Kernels choose_kernels(const std::string& isa) {
    Kernels chosen = kernels_of(isa.empty() ? environment("SMOLVLA_FORCE_ISA") : isa);
    std::string list = environment("SMOLVLA_FORCE_KERNEL");
    while (!list.empty()) {
        const size_t comma = list.find(',');
        force_one(chosen, list.substr(0, comma));
        list = comma == std::string::npos ? "" : list.substr(comma + 1);
    }
    return chosen;
}

std::vector<KernelRow> kernel_table(const Kernels& chosen) {
    std::vector<KernelRow> table;
    for (const OpRow& op : kOps)
        for (const IsaRow& row : kRows)
            if (op.has(*row.kernels))
                table.push_back({op.name, std::string(op.name) + "_" + row.name, row.name,
                                 row.needs, row.supported(features()),
                                 op.same(chosen, *row.kernels)});
    return table;
}

}  // namespace smolvla::cpu
