// What lies behind cudaStream_t and its like.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "contexts.h"

namespace emulator {

using Work = std::function<void()>;

struct Graph {
    std::vector<Work> nodes;
};
struct GraphExec {
    std::vector<Work> nodes;
};

struct Capture {
    Graph* graph;
    Stream* origin;
    cudaStreamCaptureMode mode;
    bool invalid = false;
    std::vector<Stream*> joined;  // streams pulled in by an event, not yet waited for
};

struct Stream {
    std::deque<Work> queue;  // of deferred work
    uint64_t queued = 0, done = 0;
    int device = 0;        // that was current when it was made
    bool blocking = true;  // waits for the legacy default stream, which waits for it
    std::shared_ptr<Capture> capture;
};

struct Event {
    Stream* stream = nullptr;
    uint64_t after = 0;  // done when so much of the stream's work is
    bool recorded = false;
    std::shared_ptr<Capture> capture;
    std::chrono::steady_clock::time_point time;
};

cudaError_t keep(cudaError_t error);  // as the last error; returns it
Stream* stream_or_default(Stream* stream);
// Runs, defers or records.
cudaError_t enqueue(Stream* stream, Work work);
void drain(Stream& stream, uint64_t up_to);
void drain_all();
void drain_default();  // as what waits for the legacy default stream waits: for blocking ones too
int current_device();
// What every call does that needs a context: takes the thread's, or opens that of its device.
void open_current();
size_t retained_contexts();
bool no_device();
// An error when a capture forbids what is being called (allocation, waiting); the capture is lost.
cudaError_t not_while_capturing();

enum class Place { pageable, pinned, device };
// Where [pointer, pointer + bytes) lies; false: it begins in an allocation and leaves it.
// `device`: of an allocation the device that was current then; of other memory as it was.
bool locate(const void* pointer, size_t bytes, Place* place, int* device = nullptr);
// Device memory is readable between the two (protect_device_memory).
void open_device_memory();
void close_device_memory();

}  // namespace emulator
