// A small random policy through the whole engine: no allocation after the first call, the same
// bytes for every thread count, ISA and horizon, and typed refusals.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <new>
#include <random>

#include "check.h"
#include "model/engine.h"

static std::atomic<long> allocations{0};

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

ModelConfig tiny() {
    ModelConfig c{};
    c.vision_width = 64, c.vision_mlp = 100, c.vision_heads = 4, c.vision_layers = 2;
    c.patch_size = 16, c.image_size = 64, c.vision_eps = 1e-6f, c.scale_factor = 2;
    c.text_width = 96, c.text_mlp = 120, c.heads = 6, c.kv_heads = 2, c.head_dim = 16;
    c.text_layers = 4, c.vocab = 64, c.rms_eps = 1e-5f;
    c.expert_width = 72, c.expert_mlp = 88, c.expert_layers = 4;
    c.cross_attention = true, c.self_attn_every_n = 2, c.rope_theta = 10000.0f;
    c.resize_width = c.resize_height = 64, c.max_cameras = 2, c.tokenizer_max_length = 12;
    c.chunk_size = 8, c.num_steps = 3, c.min_period = 0.004, c.max_period = 4.0;
    c.max_state_dim = 10, c.max_action_dim = 8, c.state_dim = 6, c.action_dim = 5;
    return c;
}

// Random weights in one file, every second matrix in bfloat16.
class Weights {
public:
    explicit Weights(const ModelConfig& c)
        : path_("/tmp/smolvla_engine_" + std::to_string(getpid())), file_(path_, std::ios::binary) {
        const int64_t vw = c.vision_width, tw = c.text_width, ew = c.expert_width;
        const int64_t q = c.q_width(), kv = c.kv_width();
        add("vision.patch", {vw, 3, c.patch_size, c.patch_size}, true);
        const int side = c.image_size / c.patch_size;
        add("vision.position", {side * side, vw}, false);
        for (int i = 0; i < c.vision_layers; ++i) {
            const std::string at = "vision.layers." + std::to_string(i) + ".";
            for (const char* name : {"norm1", "norm2"}) add(at + name, {vw}, true);
            for (const char* name : {"q", "k", "v", "o"}) add(at + "attn." + name, {vw, vw}, true);
            add(at + "mlp.up", {c.vision_mlp, vw}, true);
            add(at + "mlp.down", {vw, c.vision_mlp}, true);
        }
        add("vision.norm", {vw}, true);
        add("connector", {tw, vw * c.scale_factor * c.scale_factor}, false);
        add("text.embed", {c.vocab, tw}, false);
        for (int i = 0; i < c.text_layers; ++i) block("text", i, tw, c.text_mlp, q, kv, tw);
        for (int i = 0; i < c.expert_layers; ++i)
            block("expert", i, ew, c.expert_mlp, q, kv, c.is_self_layer(i) ? ew : kv);
        add("expert.norm", {ew}, false);
        add("state_in", {tw, c.max_state_dim}, true);
        add("action_in", {ew, c.max_action_dim}, true);
        add("time_in", {ew, 2 * ew}, true);
        add("time_out", {ew, ew}, true);
        add("action_out", {c.max_action_dim, ew}, true);
        file_.close();
    }
    ~Weights() { unlink(path_.c_str()); }

    std::vector<TensorEntry> entries;

private:
    void block(const std::string& part, int i, int64_t width, int64_t mlp, int64_t q, int64_t kv,
               int64_t kv_in) {
        const std::string at = part + ".layers." + std::to_string(i) + ".";
        for (const char* name : {"norm1", "norm2"}) add(at + name, {width}, false);
        add(at + "attn.q", {q, width}, false);
        for (const char* name : {"k", "v"}) add(at + "attn." + name, {kv, kv_in}, false);
        add(at + "attn.o", {width, q}, false);
        for (const char* name : {"gate", "up"}) add(at + "mlp." + name, {mlp, width}, false);
        add(at + "mlp.down", {width, mlp}, false);
    }
    void add(const std::string& name, std::vector<int64_t> shape, bool with_bias) {
        put(name + ".weight", shape);
        if (with_bias) put(name + ".bias", {shape[0]});
    }
    void put(const std::string& name, const std::vector<int64_t>& shape) {
        int64_t count = 1;
        for (int64_t d : shape) count *= d;
        const bool bf16 = entries.size() % 2 == 1;
        std::normal_distribution<float> normal(shape.size() == 1 ? 0.5f : 0.0f,
                                               1.0f / std::sqrt(float(count / shape[0] + 1)));
        const uint64_t at = static_cast<uint64_t>(file_.tellp());
        for (int64_t i = 0; i < count; ++i) {
            const float x = normal(generator_);
            // The upper half of a float32 is its bfloat16 (little endian).
            file_.write(reinterpret_cast<const char*>(&x) + (bf16 ? 2 : 0), bf16 ? 2 : 4);
        }
        entries.push_back({name, bf16 ? DType::bf16 : DType::f32, shape, path_, at,
                           static_cast<uint64_t>(file_.tellp()) - at});
    }

    std::string path_;
    std::ofstream file_;
    std::mt19937 generator_{3};
};

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

std::vector<float> run(Engine& e, const Input& in, int horizon, bool guided = false) {
    std::vector<float> normalized(size_t(horizon) * 5), actions(size_t(horizon) * 5);
    FlowInput flow{in.noise.data(), horizon, 3, {}};
    if (guided) {
        flow.guidance.previous = in.previous.data();
        flow.guidance.rows = flow.guidance.dims = 5;
        flow.guidance.inference_delay = 1;
        flow.guidance.execution_horizon = 4;
    }
    const long before = allocations;
    e.predict(in.frames, in.tokens.data(), 5, in.state.data(), false, flow, normalized.data(),
              actions.data());
    CHECK(allocations == before);  // the first call included
    return actions;
}

}  // namespace

int main() {
    const ModelConfig c = tiny();
    const Weights weights(c);
    Statistics state, action;
    state.mode = Statistics::Mode::mean_std;
    state.a.assign(6, 0.1f), state.b.assign(6, 2.0f);
    action.mode = Statistics::Mode::range;
    action.a.assign(5, -3.0f), action.b.assign(5, 4.0f);
    const Input in;

    std::vector<float> reference, guided;
    for (const std::string& isa : runnable_isas())
        for (int threads : {1, 2, 3}) {
            Engine e(c, state, action, weights.entries, threads, isa);
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
        }
    CHECK(guided != reference);

    Engine e(c, state, action, weights.entries, 2, "");
    float out[64], normalized[64];
    FlowInput flow{in.noise.data(), 8, 3, {}};
    const auto predict = [&](const std::vector<Frame>& frames, std::vector<int> tokens) {
        return e.predict(frames, tokens.data(), int(tokens.size()), in.state.data(), false, flow,
                         normalized, out);
    };
    CHECK_THROWS(predict(std::vector<Frame>(3, in.frames[0]), {1}),
                 input);                                               // built for two cameras
    CHECK_THROWS(predict(in.frames, {64}), input);                     // outside the vocabulary
    CHECK_THROWS(predict(in.frames, std::vector<int>(40, 1)), input);  // no room
    flow.rows = 9;
    CHECK_THROWS(predict(in.frames, {1}), input);
    flow.rows = 8, flow.steps = 0;
    CHECK_THROWS(predict(in.frames, {1}), input);
    flow.steps = 3;
    CHECK_THROWS(e.image_tokens(48, 64), input);  // 12 patches are no square
    CHECK(e.image_tokens(64, 64) == 4);
    Input nan;
    nan.state[2] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS(run(e, nan, 8), non_finite);
    CHECK(run(e, in, 8) == reference);  // and a refused call leaves nothing behind

    ModelConfig broken = c;
    broken.kv_heads = 4;
    CHECK_THROWS(Engine(broken, state, action, weights.entries, 1, ""), checkpoint);
    broken = c;
    broken.text_mlp = 121;  // does not fit the tensors
    CHECK_THROWS(Engine(broken, state, action, weights.entries, 1, ""), checkpoint);

    const pid_t child = fork();  // the pool's threads do not live in a child
    if (child == 0) {
        try {
            e.predict(in.frames, in.tokens.data(), 5, in.state.data(), false, flow, normalized,
                      out);
        } catch (const Error& error) {
            _exit(error.kind == ErrorKind::backend ? 0 : 1);
        }
        _exit(1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return report("engine");
}
