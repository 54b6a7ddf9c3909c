// RegisterCustomOps, the one symbol of this library: what ONNX Runtime calls when a session's
// options name it.
#include <mutex>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "ort/kernels.h"
#include "runtime/threads.h"

namespace smolvla::ort {

const cpu::Kernels& cpu_kernels() {
    static const cpu::Kernels chosen = cpu::choose_kernels("");
    return chosen;
}

int most_threads() {
    static const int cores = default_threads();
    return cores;
}

namespace {

// What an operator is called and takes, beside the class that computes it.
template <class Kernel>
struct Signature;
template <>
struct Signature<LinearW4> {
    static constexpr const char* name = "LinearW4";
    static constexpr ElementType inputs[] = {kFloat, kInt4, kFloat};
    static constexpr size_t outputs = 1;
};
template <>
struct Signature<LinearW8> {
    static constexpr const char* name = "LinearW8";
    static constexpr ElementType inputs[] = {kFloat, kInt8, kFloat};
    static constexpr size_t outputs = 1;
};
template <>
struct Signature<ExpertAttention> {
    static constexpr const char* name = "ExpertAttention";
    static constexpr ElementType inputs[] = {kFloat, kFloat, kFloat, kBool};
    static constexpr size_t outputs = 1;
};
template <>
struct Signature<DenoiseStep> {
    static constexpr const char* name = "DenoiseStep";
    static constexpr ElementType inputs[] = {kFloat, kFloat, kFloat, kFloat, kFloat, kFloat};
    static constexpr size_t outputs = 2;
};

template <class Kernel>
Status* create(const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(*api, [&] {
        // A kernel of its own keeps the API that made it: two runtimes may share this library.
        *kernel = new std::pair<const Api*, Kernel>(api, Kernel(*api, info));
    });
}

template <class Kernel>
Status* compute(void* kernel, KernelContext* context) {
    const auto& made = *static_cast<const std::pair<const Api*, Kernel>*>(kernel);
    return guarded(*made.first, [&] { made.second.compute(context); });
}

template <class Kernel>
const CustomOp* op() {
    static const CustomOp made = [] {
        using Of = Signature<Kernel>;
        CustomOp op{};
        op.version = kOpVersion;
        op.name = [](const CustomOp*) { return Of::name; };
        op.provider = [](const CustomOp*) -> const char* { return nullptr; };
        op.input_type = [](const CustomOp*, size_t i) { return Of::inputs[i]; };
        op.input_count = [](const CustomOp*) { return std::size(Of::inputs); };
        op.output_type = [](const CustomOp*, size_t) { return kFloat; };
        op.output_count = [](const CustomOp*) { return Of::outputs; };
        op.destroy_kernel = [](void* kernel) {
            delete static_cast<std::pair<const Api*, Kernel>*>(kernel);
        };
        op.input_characteristic =
            op.output_characteristic = [](const CustomOp*, size_t) { return 0; };
        op.input_memory = [](const CustomOp*, size_t) { return 0; };
        op.create_kernel_or_fail = create<Kernel>;
        op.compute_or_fail = compute<Kernel>;
        op.start_version = op.end_version = [](const CustomOp*) { return 1; };
        return op;
    }();
    return &made;
}

// Sessions use the domain until they end, and nobody says when the last has: one for each runtime
// in the process, never released.
OpDomain* domain_of(const Api& api) {
    static std::mutex mutex;
    static auto& made = *new std::vector<std::pair<const Api*, OpDomain*>>;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [of, domain] : made)
        if (of == &api) return domain;
    OpDomain* domain = nullptr;
    check(api, api.create_custom_op_domain("smolvla_edge", &domain));
    for (const CustomOp* op :
         {op<LinearW4>(), op<LinearW8>(), op<ExpertAttention>(), op<DenoiseStep>()})
        check(api, api.custom_op_domain_add(domain, op));
    made.emplace_back(&api, domain);
    return domain;
}

}  // namespace
}  // namespace smolvla::ort

extern "C" [[gnu::visibility("default")]] smolvla::ort::Status* RegisterCustomOps(
    smolvla::ort::SessionOptions* options, const smolvla::ort::ApiBase* base) {
    using namespace smolvla::ort;
    const Api* api = base->api(kApiVersion);
    if (!api)
        return base->api(1)->create_status(
            kFailed, "smolvla_edge: expected ONNX Runtime 1.20 or newer, got an older one");
    return guarded(*api, [&] {
        cpu_kernels();  // refuses an instruction set that is forced and not there
        check(*api, api->add_custom_op_domain(options, domain_of(*api)));
    });
}
