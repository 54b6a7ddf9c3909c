#include "cuda/graphs.h"

#include "cuda/status.h"

namespace smolvla::cuda {
namespace {

// A kernel that never ran may be loaded only while it is recorded, which allocates: relaxed permits
// that. The emulator loads nothing late, and refuses allocations.
#if defined(SMOLVLA_CUDA_EMULATED)
constexpr cudaStreamCaptureMode kMode = cudaStreamCaptureModeThreadLocal;
#else
constexpr cudaStreamCaptureMode kMode = cudaStreamCaptureModeRelaxed;
#endif

}  // namespace

StageGraphs::~StageGraphs() {
    for (auto& [name, graph] : graphs_) cudaGraphExecDestroy(graph);
}

bool StageGraphs::replay(const StageKey& key) {
    const auto graph = graphs_.find(name_of(key));
    if (graph == graphs_.end()) return false;
    check(cudaGraphLaunch(graph->second, stream_), key.name);
    return true;
}

void StageGraphs::record(const StageKey& key, Body body) {
    check(cudaStreamBeginCapture(stream_, kMode), "recording");
    cudaGraph_t graph = nullptr;
    try {
        body();
    } catch (...) {
        if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) cudaGraphDestroy(graph);
        cudaGetLastError();
        throw;
    }
    check(cudaStreamEndCapture(stream_, &graph), "recording");
    cudaGraphExec_t made = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&made, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "preparing a recorded stage");
    graphs_.emplace(name_of(key), made);
    count_ = static_cast<int>(graphs_.size());
    check(cudaGraphUpload(made, stream_), "preparing a recorded stage");  // not at its first launch
}

}  // namespace smolvla::cuda
