// Streams, events, capture and graphs.
#include "streams.h"

#include <algorithm>
#include <map>
#include <set>

#include "counters.h"

namespace emulator {

namespace {

std::set<Stream*>& streams() {
    static std::set<Stream*> all;
    return all;
}
Stream default_stream;
std::vector<std::shared_ptr<Capture>> captures;
using KernelOnDevice = std::pair<const void*, int>;
std::map<KernelOnDevice, int>& shared_opt_in() {
    static std::map<KernelOnDevice, int> bytes;
    return bytes;
}
size_t graphs = 0;

void run_now(const Work& work) {
    open_device_memory();
    try {
        work();
    } catch (...) {
        close_device_memory();
        throw;
    }
    close_device_memory();
}

bool known(Stream* stream) { return !stream || streams().count(stream); }

}  // namespace

Stream* stream_or_default(Stream* stream) { return stream ? stream : &default_stream; }

void drain(Stream& stream, uint64_t up_to) {
    while (stream.done < up_to && !stream.queue.empty()) {
        const Work work = std::move(stream.queue.front());
        stream.queue.pop_front();
        ++stream.done;
        run_now(work);
    }
}

void drain_all() {
    drain(default_stream, default_stream.queued);
    for (Stream* stream : streams()) drain(*stream, stream->queued);
}

void drain_default() {
    drain(default_stream, default_stream.queued);
    for (Stream* stream : streams())
        if (stream->blocking) drain(*stream, stream->queued);
}

size_t handles_in_use() { return streams().size() + graphs + retained_contexts(); }

cudaError_t not_while_capturing() {
    open_current();
    bool any = false;
    for (const auto& capture : captures) {
        if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
        capture->invalid = true;
        any = true;
    }
    return any ? keep(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t enqueue(Stream* stream, Work work) {
    open_current();
    if (!known(stream)) return keep(cudaErrorInvalidResourceHandle);
    // The legacy default stream waits for all others, which a capture forbids.
    if (!stream && !captures.empty()) return not_while_capturing();
    Stream& s = *stream_or_default(stream);
    if (s.capture) {
        if (s.capture->invalid) return keep(cudaErrorStreamCaptureInvalidated);
        s.capture->graph->nodes.push_back(std::move(work));
        return cudaSuccess;
    }
    ++s.queued;
    if (options().deferred) {
        // The default stream's work comes after what the blocking streams had before it, and theirs
        // after its own. Nothing else waits for anything.
        std::vector<std::pair<Stream*, uint64_t>> before;
        if (!stream)
            for (Stream* other : streams())
                if (other->blocking) before.push_back({other, other->queued});
        if (stream && s.blocking) before.push_back({&default_stream, default_stream.queued});
        s.queue.push_back([before = std::move(before), work = std::move(work)] {
            for (const auto& [other, queued] : before)
                if (known(other) || other == &default_stream) drain(*other, queued);
            work();
        });
        return cudaSuccess;
    }
    drain(s, s.queued - 1);
    ++s.done;
    run_now(work);
    return cudaSuccess;
}

cudaError_t submit(KernelCall call, cudaStream_t stream) {
    open_current();
    const uint64_t threads = uint64_t(call.block.x) * call.block.y * call.block.z;
    const uint64_t blocks = uint64_t(call.grid.x) * call.grid.y * call.grid.z;
    if (threads == 0 || threads > 1024 || call.block.z > 64 || blocks == 0 || call.grid.y > 65535 ||
        call.grid.z > 65535)
        return keep(cudaErrorInvalidConfiguration);
    // A stream takes kernels while its own device is the current one.
    if (stream && known(stream) && stream->device != current_device())
        return keep(cudaErrorInvalidResourceHandle);
    const auto opted = shared_opt_in().find({call.function, current_device()});
    const size_t limit = opted == shared_opt_in().end() ? 48 * 1024 : size_t(opted->second);
    if (call.shared_bytes > limit) return keep(cudaErrorInvalidValue);
    return enqueue(stream, [call = std::move(call)] { run_grid(call); });
}

}  // namespace emulator

using namespace emulator;

cudaError_t emulator_set_attribute(const void* function, cudaFuncAttribute attribute, int value) {
    open_current();
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > device_model().shared_per_block) return keep(cudaErrorInvalidValue);
    shared_opt_in()[{function, current_device()}] = value;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    open_current();
    *stream = new Stream;
    (*stream)->device = current_device();
    (*stream)->blocking = !(flags & cudaStreamNonBlocking);
    streams().insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    open_current();
    if (!stream || !known(stream)) return keep(cudaErrorInvalidResourceHandle);
    drain(*stream, stream->queued);
    streams().erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    open_current();
    if (!known(stream)) return keep(cudaErrorInvalidResourceHandle);
    Stream& s = *stream_or_default(stream);
    if (s.capture) {
        s.capture->invalid = true;
        return keep(cudaErrorStreamCaptureUnsupported);
    }
    if (!stream) drain_default();
    drain(s, s.queued);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    open_current();
    Stream& s = *stream_or_default(stream);
    return s.done == s.queued ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaDeviceSynchronize() {
    if (cudaError_t error = not_while_capturing()) return error;
    drain_all();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    open_current();
    *event = new Event;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    open_current();
    if (!event) return keep(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    open_current();
    if (!event || !known(stream)) return keep(cudaErrorInvalidResourceHandle);
    Stream& s = *stream_or_default(stream);
    event->stream = &s;
    event->recorded = true;
    event->capture = s.capture;
    if (s.capture) {  // recorded again, it is no longer something to wait for
        auto& joined = s.capture->joined;
        joined.erase(std::remove(joined.begin(), joined.end(), &s), joined.end());
        return cudaSuccess;
    }
    const cudaError_t error =
        enqueue(stream, [event] { event->time = std::chrono::steady_clock::now(); });
    event->after = s.queued;
    return error;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    open_current();
    if (!event) return keep(cudaErrorInvalidResourceHandle);
    if (event->capture) {
        event->capture->invalid = true;
        return keep(cudaErrorStreamCaptureUnsupported);
    }
    if (event->recorded) drain(*event->stream, event->after);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    open_current();
    if (!event) return keep(cudaErrorInvalidResourceHandle);
    if (!event->recorded || event->stream->done >= event->after) return cudaSuccess;
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t stop) {
    if (!start || !stop || !start->recorded || !stop->recorded)
        return keep(cudaErrorInvalidResourceHandle);
    if (cudaEventQuery(start) || cudaEventQuery(stop)) return cudaErrorNotReady;
    *ms = std::chrono::duration<float, std::milli>(stop->time - start->time).count();
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    open_current();
    if (!event || !known(stream)) return keep(cudaErrorInvalidResourceHandle);
    Stream& s = *stream_or_default(stream);
    if (event->capture) {  // nodes are recorded in an order that respects every wait
        if (s.capture && s.capture != event->capture) return keep(cudaErrorStreamCaptureUnmatched);
        if (!s.capture) {
            s.capture = event->capture;
            s.capture->joined.push_back(&s);
        }
        return cudaSuccess;
    }
    if (s.capture) return keep(cudaErrorStreamCaptureUnsupported);
    if (!event->recorded) return cudaSuccess;
    return enqueue(stream, [from = event->stream, after = event->after] { drain(*from, after); });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    open_current();
    if (!stream) return keep(cudaErrorStreamCaptureUnsupported);  // the legacy default stream
    if (!known(stream)) return keep(cudaErrorInvalidResourceHandle);
    if (stream->capture) return keep(cudaErrorStreamCaptureUnmatched);
    stream->capture = std::make_shared<Capture>();
    stream->capture->graph = new Graph;
    ++graphs;
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    captures.push_back(stream->capture);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    open_current();
    *graph = nullptr;
    if (!stream || !stream->capture || stream->capture->origin != stream)
        return keep(cudaErrorStreamCaptureUnmatched);
    const std::shared_ptr<Capture> capture = stream->capture;
    captures.erase(std::find(captures.begin(), captures.end(), capture));
    const bool unjoined = !capture->joined.empty();
    for (Stream* s : streams())
        if (s->capture == capture) s->capture = nullptr;
    if (capture->invalid || unjoined) {
        delete capture->graph;
        --graphs;
        return keep(capture->invalid ? cudaErrorStreamCaptureInvalidated
                                     : cudaErrorStreamCaptureUnjoined);
    }
    *graph = capture->graph;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    const Stream& s = *stream_or_default(stream);
    *status = !s.capture           ? cudaStreamCaptureStatusNone
              : s.capture->invalid ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    open_current();
    if (!graph) return keep(cudaErrorInvalidValue);
    *exec = new GraphExec{graph->nodes};
    ++graphs;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    if (!graph || nodes) return keep(cudaErrorInvalidValue);  // the number alone is kept here
    *count = graph->nodes.size();
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
    open_current();
    return exec ? cudaSuccess : keep(cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    open_current();
    if (!exec) return keep(cudaErrorInvalidValue);
    if (stream_or_default(stream)->capture) return keep(cudaErrorNotSupported);
    ++counted.graph_launches;
    return enqueue(stream, [nodes = exec->nodes] {
        for (const Work& node : nodes) node();
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    open_current();
    if (!exec) return keep(cudaErrorInvalidValue);
    delete exec;
    --graphs;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    if (!graph) return keep(cudaErrorInvalidValue);
    delete graph;
    --graphs;
    return cudaSuccess;
}
