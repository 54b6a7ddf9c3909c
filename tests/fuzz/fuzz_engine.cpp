// Coverage-guided fuzzing of the C++ core's own checks: a small good policy is changed as the input
// says (sizes, tensor entries, statistics, files), an engine is built from it and used once. It
// works or it throws smolvla::Error; anything else, a sanitizer's report included, is a finding.
//
// The input is a list of changes, each an operation byte and its operands; what is missing at the
// end reads as zero. With libFuzzer (clang) this file is all there is; without it replay.cpp runs
// kept inputs through the same function.
#include <sys/stat.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "runtime/error.h"
#include "tiny_model.h"

using namespace smolvla;

namespace {

class Bytes {
public:
    Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
    bool empty() const { return left_ == 0; }
    template <class T>
    T take() {
        T value{};
        const size_t n = left_ < sizeof value ? left_ : sizeof value;
        std::memcpy(&value, data_, n);
        data_ += n, left_ -= n;
        return value;
    }
    size_t below(size_t count) { return count ? take<uint16_t>() % count : 0; }
    // Half of the numbers are those that overflow, wrap, divide by zero or allocate too much.
    int64_t integer() {
        constexpr int64_t kHurtful[] = {0,
                                        1,
                                        -1,
                                        2,
                                        16,
                                        64,
                                        255,
                                        256,
                                        4096,
                                        4097,
                                        1 << 14,
                                        1 << 16,
                                        1 << 24,
                                        std::numeric_limits<int32_t>::max(),
                                        std::numeric_limits<int32_t>::min(),
                                        int64_t{1} << 32,
                                        int64_t{1} << 62,
                                        std::numeric_limits<int64_t>::max(),
                                        std::numeric_limits<int64_t>::min()};
        const uint8_t kind = take<uint8_t>();
        if (kind < 128) return kHurtful[kind % (sizeof kHurtful / sizeof *kHurtful)];
        return kind < 224 ? int64_t{take<int16_t>()} : take<int64_t>();
    }

private:
    const uint8_t* data_;
    size_t left_;
};

struct Policy {
    ModelConfig config;
    Statistics state, action;
    std::vector<TensorEntry> entries;
    Compute compute = Compute::float32;
};

void change_config(ModelConfig& c, Bytes& in) {
    int* const sizes[] = {&c.vision_width,
                          &c.vision_mlp,
                          &c.vision_heads,
                          &c.vision_layers,
                          &c.patch_size,
                          &c.image_size,
                          &c.scale_factor,
                          &c.text_width,
                          &c.text_mlp,
                          &c.heads,
                          &c.kv_heads,
                          &c.head_dim,
                          &c.text_layers,
                          &c.vocab,
                          &c.expert_width,
                          &c.expert_mlp,
                          &c.expert_layers,
                          &c.self_attn_every_n,
                          &c.resize_width,
                          &c.resize_height,
                          &c.max_cameras,
                          &c.chunk_size,
                          &c.num_steps,
                          &c.max_state_dim,
                          &c.tokenizer_max_length,
                          &c.fake_token_id,
                          &c.global_token_id,
                          &c.max_action_dim,
                          &c.state_dim,
                          &c.action_dim};
    bool* const flags[] = {&c.cross_attention, &c.add_image_special_tokens, &c.adapt_to_pi_aloha};
    float* const floats[] = {&c.vision_eps, &c.rms_eps, &c.rope_theta};
    double* const doubles[] = {&c.min_period, &c.max_period};
    const size_t which = in.below(38);
    if (which < 30)
        *sizes[which] = static_cast<int>(in.integer());
    else if (which < 33)
        *flags[which - 30] = (in.take<uint8_t>() & 1) != 0;
    else if (which < 36)
        *floats[which - 33] = in.take<float>();
    else
        *doubles[which - 36] = in.take<double>();
}

void change_entry(std::vector<TensorEntry>& entries, const std::string& folder, Bytes& in) {
    const uint8_t what = in.take<uint8_t>();
    if (entries.empty()) return;
    const size_t at = in.below(entries.size());
    TensorEntry& e = entries[at];
    switch (what % 10) {
        case 0: e.dtype = static_cast<DType>(in.take<uint8_t>() % 5); break;
        case 1: e.offset = static_cast<uint64_t>(in.integer()); break;
        case 2: e.bytes = static_cast<uint64_t>(in.integer()); break;
        case 3:
            if (!e.shape.empty()) e.shape[in.below(e.shape.size())] = in.integer();
            break;
        case 4: e.shape.push_back(in.integer()); break;
        case 5:
            if (!e.shape.empty()) e.shape.pop_back();
            break;
        case 6: {  // a shape that agrees with its bytes, and with nothing else
            const uint64_t count = static_cast<uint64_t>(in.integer()) % 5000;
            e.shape = {static_cast<int64_t>(count)};
            e.bytes = count * static_cast<uint64_t>(dtype_bytes(e.dtype));
            break;
        }
        case 7: e.name = entries[in.below(entries.size())].name; break;
        case 8: {
            const char* const files[] = {"/short", "/nothing", "/folder", "/pipe", ""};
            e.path = folder + files[in.below(5)];
            break;
        }
        default: entries.erase(entries.begin() + static_cast<std::ptrdiff_t>(at));
    }
}

void change_statistics(Statistics& s, Bytes& in) {
    s.mode = static_cast<Statistics::Mode>(in.take<uint8_t>() % 3);
    s.a.assign(in.below(12), in.take<float>());
    s.b.assign(in.below(12), in.take<float>());
    s.eps = in.take<float>();
    s.eps_in_range = (in.take<uint8_t>() & 1) != 0;
}

// What the changes start from, and the files that changed entries may point to.
struct Good {
    Good() : config(small()), weights(config, true) {
        char name[] = "/tmp/smolvla_fuzz_XXXXXX";
        folder = mkdtemp(name) ? name : "/tmp";
        std::ofstream(folder + "/short", std::ios::binary) << "too short";
        mkdir((folder + "/folder").c_str(), 0700);
        mkfifo((folder + "/pipe").c_str(), 0600);
    }
    ~Good() {
        unlink((folder + "/short").c_str());
        unlink((folder + "/pipe").c_str());
        rmdir((folder + "/folder").c_str());
        rmdir(folder.c_str());
    }
    static ModelConfig small() {
        ModelConfig c = tiny();
        c.vision_layers = 1, c.text_layers = c.expert_layers = 2, c.image_size = 32;
        c.resize_width = c.resize_height = 32;
        return c;
    }

    const ModelConfig config;
    const Weights weights;
    std::string folder;
};

void use(const Policy& p) {
    Engine engine(p.config, p.state, p.action, p.entries, 1, "scalar", p.compute);
    const ModelConfig& c = p.config;
    const std::vector<uint8_t> pixels(24 * 32 * 3, 100);
    const std::vector<Frame> frames = {{pixels.data(), true, 24, 32}, {}};
    const std::vector<float> state(static_cast<size_t>(c.state_dim), 0.5f);
    const std::vector<float> noise(static_cast<size_t>(c.max_action_dim), 1.0f);
    std::vector<float> normalized(static_cast<size_t>(c.action_dim)), actions = normalized;
    const int token = 1;
    FlowInput flow{noise.data(), {}, {}, {}};
    flow.plan.rows = flow.plan.steps = 1;
    engine.predict({frames, &token, 1, state.data(), false, {}}, flow, normalized.data(),
                   actions.data());
    for (float value : actions)
        if (!std::isfinite(value)) __builtin_trap();
}

}  // namespace

// What the core said of the input: "" when the policy worked. Also called by replay.cpp.
std::string refusal_of(const uint8_t* data, size_t size) {
    static const Good good;
    Policy p;
    p.config = good.config;
    p.entries = good.weights.entries;
    for (Bytes in(data, size); !in.empty();) {
        switch (in.take<uint8_t>() % 4) {
            case 0: change_config(p.config, in); break;
            case 1: change_entry(p.entries, good.folder, in); break;
            case 2: change_statistics((in.take<uint8_t>() & 1) ? p.state : p.action, in); break;
            default: p.compute = Compute::bfloat16;
        }
    }
    try {
        use(p);
    } catch (const Error& refused) {
        return refused.what();
    }
    return "";
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    refusal_of(data, size);
    return 0;
}
