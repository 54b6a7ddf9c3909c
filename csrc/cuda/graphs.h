// The stages of a call, recorded as CUDA graphs.
#pragma once

#include <atomic>
#include <map>
#include <string>
#include <tuple>

#include "cuda/device.h"
#include "ops/ops.h"

namespace smolvla::cuda {

class StageGraphs {
public:
    // On a stream that outlives this.
    explicit StageGraphs(cudaStream_t stream) : stream_(stream) {}
    ~StageGraphs();
    StageGraphs(const StageGraphs&) = delete;
    StageGraphs& operator=(const StageGraphs&) = delete;

    // Launches what was recorded under the key; false when nothing was.
    bool replay(const StageKey& key);
    // What `body` asks of the stream, as a graph. Runs nothing. Raises a backend error.
    void record(const StageKey& key, Body body);
    bool has(const StageKey& key) const { return graphs_.count(name_of(key)) != 0; }
    int count() const { return count_; }

private:
    using Name = std::tuple<std::string, int, int, int, int, uint64_t, uint64_t, uint64_t>;
    static Name name_of(const StageKey& key) {
        const auto& layers = key.layers;
        return {key.name, key.a, key.b, key.c, key.d, layers[0], layers[1], layers[2]};
    }

    const cudaStream_t stream_;
    std::map<Name, cudaGraphExec_t> graphs_;
    std::atomic<int> count_{0};  // asked for while a call runs
};

}  // namespace smolvla::cuda
