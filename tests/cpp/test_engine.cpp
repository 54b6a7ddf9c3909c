// A small random policy through the whole engine: no allocation after the first call, the same
// bytes for every thread count, ISA and horizon, and typed refusals.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <string>
#include <thread>

#include "check.h"
#include "isas.h"
#include "tiny_model.h"

static std::atomic<long> allocations{0};

#if defined(__GNUC__) && !defined(__clang__)
// Inlined, the pairs below look to GCC like malloc'd memory given to the wrong deallocator.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif

void* operator new(size_t size) {
    ++allocations;
    if (void* p = std::malloc(size ? size : 1)) return p;
    throw std::bad_alloc();
}
void* operator new(size_t size, std::align_val_t align) {
    ++allocations;
    const size_t a = static_cast<size_t>(align);
    if (void* p = std::aligned_alloc(a, (size + a - 1) / a * a)) return p;
    throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

using namespace smolvla;

namespace {

struct Input {
    std::vector<uint8_t> pixels = std::vector<uint8_t>(48 * 80 * 3);
    std::vector<Frame> frames;
    std::vector<int> tokens = {3, 1, 4, 1, 5};
    std::vector<float> state = {0.1f, -0.2f, 0.3f, 0.4f, -0.5f, 0.6f};
    std::vector<float> noise = std::vector<float>(8 * 8),
                       previous = std::vector<float>(5 * 5, 0.3f);
    Input() {
        for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(i * 37 % 251);
        for (size_t i = 0; i < noise.size(); ++i) noise[i] = std::sin(float(i));
        frames = {{pixels.data(), true, 48, 80}, {pixels.data(), true, 30, 40}};
    }
};

std::vector<float> run(Engine& e, const Input& in, int horizon, bool guided = false,
                       int steps = 3) {
    std::vector<float> normalized(size_t(horizon) * 5), actions(size_t(horizon) * 5);
    FlowInput flow = flow_of(in.noise, horizon, steps);
    if (guided) {
        flow.guidance.previous = in.previous.data();
        flow.guidance.rows = flow.guidance.dims = 5;
        flow.guidance.inference_delay = 1;
        flow.guidance.execution_horizon = 4;
    }
    const long before = allocations;
    e.predict({in.frames, in.tokens.data(), 5, in.state.data(), false, kNoneKept}, flow,
              normalized.data(), actions.data());
    CHECK(allocations == before);  // the first call included
    return actions;
}

void test_policy(bool codes) {
    const ModelConfig c = tiny();
    const Weights weights(c, codes);
    Statistics state, action;
    state.mode = Statistics::Mode::mean_std;
    state.a.assign(6, 0.1f), state.b.assign(6, 2.0f);
    action.mode = Statistics::Mode::range;
    action.a.assign(5, -3.0f), action.b.assign(5, 4.0f);
    const Input in;

    const std::vector<std::string> isas = runnable_isas();
    // Of float32 last: the tests below compare with it.
    std::vector<float> reference, guided;
    for (Compute compute : {Compute::bfloat16, Compute::float32}) {
        const std::vector<float> other = reference;
        reference.clear(), guided.clear();
        for (const std::string& isa : isas)
            for (int threads : {1, 2, 3}) {
                Engine e(c, state, action, weights.entries, threads, isa, compute);
                const std::vector<float> actions = run(e, in, 8);
                if (reference.empty()) reference = actions;
                CHECK(actions == reference);
                CHECK(run(e, in, 8) == reference);  // nothing is left over from the call before
                if (guided.empty()) guided = run(e, in, 8, true);
                CHECK(run(e, in, 8, true) == guided);
                for (int h = 1; h < 8; ++h) {
                    const std::vector<float> shorter = run(e, in, h);
                    CHECK(std::equal(shorter.begin(), shorter.end(), reference.begin()));
                }
                Input nan;
                nan.state[2] = std::numeric_limits<float>::quiet_NaN();
                CHECK_THROWS(run(e, nan, 8), non_finite);
                CHECK(run(e, in, 8) == reference);  // and a refused call leaves nothing behind
            }
        CHECK(guided != reference);
        CHECK(reference != other);
    }

    {
        // Recording changes no byte and allocates nothing in a call (run() counts).
        Engine e(c, state, action, weights.entries, 2, "");
        size_t overwritten = 0;
        e.start_recording(1000);
        CHECK(run(e, in, 8) == reference);
        const std::vector<TimedRecord> records = e.take_records(&overwritten);
        CHECK(overwritten == 0 && records.size() > 100 && records.size() < 1000);
        std::string stages;
        for (const TimedRecord& r : records)
            if (r.stage) stages += std::string(r.kind) + std::to_string(r.index) + " ";
        CHECK(stages == "preprocess0 vision0 preprocess1 vision1 prefix0 flow0 ");
        CHECK(run(e, in, 8) == reference);
        CHECK(e.take_records(&overwritten).empty());  // the recording had ended
        e.start_recording(10);
        CHECK(run(e, in, 8) == reference);
        CHECK(e.take_records(&overwritten).size() == 10);
        CHECK(overwritten == records.size() - 10);
    }
    {
        // Every count of steps in turn: the table of time vectors neither grows nor allocates.
        Engine e(c, state, action, weights.entries, 1, "");
        for (int steps : {1, 7, 4, 400, ModelConfig::kMaxSteps, 2}) run(e, in, 1, false, steps);
        CHECK(run(e, in, 8) == reference);
    }

    Engine e(c, state, action, weights.entries, 2, "");
    float out[64], normalized[64];
    FlowInput flow = flow_of(in.noise, 8, 3);
    const auto predict = [&](const std::vector<Frame>& frames, std::vector<int> tokens) {
        return e.predict(
            {frames, tokens.data(), int(tokens.size()), in.state.data(), false, kNoneKept}, flow,
            normalized, out);
    };
    CHECK_THROWS(predict(std::vector<Frame>(3, in.frames[0]), {1}),
                 input);                                               // built for two cameras
    CHECK_THROWS(predict(in.frames, {64}), input);                     // outside the vocabulary
    CHECK_THROWS(predict(in.frames, std::vector<int>(40, 1)), input);  // no room
    flow.plan.rows = 9;
    CHECK_THROWS(predict(in.frames, {1}), input);
    flow.plan.rows = 8, flow.plan.steps = 0;
    CHECK_THROWS(predict(in.frames, {1}), input);
    flow.plan.steps = 3;
    CHECK_THROWS(e.image_tokens(48, 64), input);  // 12 patches are no square
    CHECK(e.image_tokens(64, 64) == 4);

    ModelConfig broken = c;
    broken.kv_heads = 4;
    CHECK_THROWS(Engine(broken, state, action, weights.entries, 1, ""), checkpoint);
    broken = c;
    broken.add_image_special_tokens = true, broken.fake_token_id = c.vocab;  // would read past it
    CHECK_THROWS(Engine(broken, state, action, weights.entries, 1, ""), checkpoint);
    broken = c;
    broken.resize_height = 0;
    CHECK_THROWS(Engine(broken, state, action, weights.entries, 1, ""), checkpoint);
    broken = c;
    broken.patch_size = 128;
    CHECK_THROWS(Engine(broken, state, action, weights.entries, 1, ""), checkpoint);
    broken = c;
    broken.image_size = 4096, broken.patch_size = 4;  // 2^20 patches
    CHECK_THROWS(broken.check(), checkpoint);
    broken = c;
    broken.max_cameras = 64, broken.image_size = 4096, broken.patch_size = 32;  // 2^18 tokens
    CHECK_THROWS(broken.check(), checkpoint);
    broken = c;
    broken.min_period = 0;
    CHECK_THROWS(Engine(broken, state, action, weights.entries, 1, ""), checkpoint);
    Statistics too_short = state;
    too_short.b.pop_back();
    CHECK_THROWS(Engine(c, too_short, action, weights.entries, 1, ""), checkpoint);
    broken = c;
    broken.text_mlp = 121;  // does not fit the tensors
    CHECK_THROWS(Engine(broken, state, action, weights.entries, 1, ""), checkpoint);

    auto parked = std::make_unique<Engine>(c, state, action, weights.entries, 3, "");
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // until the workers wait
    const pid_t child = fork();  // the pool's threads do not live in a child
    if (child == 0) {
        alarm(10);
        parked.reset();  // must not wait for them either
        try {
            e.predict({in.frames, in.tokens.data(), 5, in.state.data(), false, kNoneKept}, flow,
                      normalized, out);
        } catch (const Error& error) {
            _exit(error.kind == ErrorKind::backend ? 0 : 1);
        }
        _exit(1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace

int main() {
    test_policy(true);
    test_policy(false);
    return report("engine");
}
