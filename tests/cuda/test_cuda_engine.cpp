// The whole policy on the CUDA backend, beside the CPU's: what graphs replay, what is left over
// from the call before, guidance, horizons, and what happens when memory runs out.
#include "control.h"
#include "engine_calls.h"

using namespace smolvla;

namespace {

std::vector<float> run(Engine& e, const Input& in, int horizon, bool guided = false) {
    return ask(e, in, exact_plan(horizon), guided).actions;
}

// The bounds of bfloat16 and of codes are those of the CPU's own bfloat16 against its float32 here,
// doubled: two roundings of the same size that do not know of each other.
void test_beside_cpu(const ModelConfig& c, bool codes) {
    const Weights weights(c, codes);
    const Policy policy;
    const Input in, second(0.5f);
    const auto exact = policy.on_cpu(c, weights);
    const auto rounded = policy.on_cpu(c, weights, Compute::bfloat16);
    const std::vector<float> want = run(*exact, in, 8);
    const double cpu_error = distance(run(*rounded, in, 8), want);
    for (Compute compute : {Compute::float32, Compute::bfloat16}) {
        const auto e = policy.on_gpu(c, weights, compute);
        const double bound = compute == Compute::float32 && !codes ? 2e-5 : 2 * cpu_error + 1e-2;
        const std::vector<float> got = run(*e, in, 8);
        std::printf("  codes %d %s: %.2g of the largest action (CPU's bfloat16 %.2g)\n", codes,
                    compute_name(compute), distance(got, want), cpu_error);
        CHECK(distance(got, want) < bound);
        CHECK(distance(run(*e, in, 8, true), run(*exact, in, 8, true)) < bound);
        CHECK(run(*e, in, 8) == got);  // nothing is left over from the call before
        run(*e, second, 8);
        Input longer = in;  // another prompt, in another bucket of rows
        longer.tokens = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
        CHECK(distance(run(*e, longer, 8), run(*exact, longer, 8)) < bound);
        Input masked = in;
        masked.frames[1] = {};
        CHECK(distance(run(*e, masked, 8), run(*exact, masked, 8)) < bound);
        CHECK(run(*e, in, 8) == got);
        for (int h : {1, 3, 7}) {
            const std::vector<float> shorter = run(*e, in, h);
            CHECK(std::equal(shorter.begin(), shorter.end(), got.begin()));
        }
        Input nan = in;
        nan.state[2] = std::nanf("");
        CHECK_THROWS(run(*e, nan, 8), non_finite);
        CHECK(run(*e, in, 8) == got);  // and a refused call leaves nothing behind
    }
}

void test_seams() {
    const ModelConfig c = awkward();
    const Weights weights(c);
    const Policy policy;
    const Input in;
    const auto cpu = policy.on_cpu(c, weights);
    const auto gpu = policy.on_gpu(c, weights, Compute::float32);
    const int tokens = cpu->image_tokens(64, 64), width = c.text_width;
    std::vector<float> pixels(3 * 64 * 64), a(size_t(tokens) * width), b(a.size());
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = std::sin(0.1f * float(i));
    cpu->encode_images(pixels.data(), 1, 64, 64, 0, a.data());
    gpu->encode_images(pixels.data(), 1, 64, 64, 0, b.data());
    CHECK(distance(b, a) < 2e-5);
    const Plan plan = exact_plan(8, 5);
    const uint8_t mask[1] = {1};
    const std::vector<float> state(size_t(c.max_state_dim), 0.2f);
    const std::vector<int> ids = {1, 2, 3};
    CHECK(gpu->prefill(a.data(), 1, tokens, mask, ids.data(), 3, state.data(), plan) ==
          cpu->prefill(a.data(), 1, tokens, mask, ids.data(), 3, state.data(), plan));
    std::vector<float> x(size_t(8) * c.max_action_dim), y(x.size());
    const FlowInput flow{in.noise.data(), plan};
    cpu->denoise(flow, x.data());
    gpu->denoise(flow, y.data());
    CHECK(distance(y, x) < 2e-5);

    // A trace runs without graphs and names the same tensors.
    Trace one, two;
    const ModelInput model{pixels.data(), 1, 64, 64, mask, ids.data(), 3, state.data()};
    cpu->sample_actions(model, flow, x.data(), &one);
    gpu->sample_actions(model, flow, y.data(), &two);
    CHECK(distance(y, x) < 2e-5);
    CHECK(one.entries.size() == two.entries.size());
    for (size_t i = 0; i < one.entries.size(); ++i) {
        CHECK(one.entries[i].first == two.entries[i].first);
        CHECK(one.entries[i].second.shape == two.entries[i].second.shape);
        CHECK(distance(two.entries[i].second.values, one.entries[i].second.values) < 2e-5);
    }
}

// The time half of time_in, [expert_width, expert_width], is read by the host alone.
void test_what_stays_on_the_host() {
    const ModelConfig c = awkward();
    const Weights weights(c);
    const auto e = Policy().on_gpu(c, weights, Compute::float32);
    size_t matrices = 0;
    for (const LinearInfo& l : e->linears()) matrices += l.bytes;
    const size_t constants = e->info().weight_bytes - matrices;
    std::printf("  %zu bytes of matrices, %zu of constants\n", matrices, constants);
    CHECK(constants > 0 && constants < size_t(c.expert_width) * c.expert_width * sizeof(float));
}

// Work that runs as late as CUDA permits, blocks and warps in another order, a GPU that shares the
// host's memory, device memory that the host must not touch: the same bytes each time.
void test_as_devices_are() {
    const ModelConfig c = tiny();
    const Weights weights(c, true);
    const Policy policy;
    const auto calls = [&](Compute compute) {
        const auto e = policy.on_gpu(c, weights, compute);
        std::vector<float> all;
        for (const float shift : {0.0f, 0.5f, 0.0f}) {
            const std::vector<float> more = run(*e, Input(shift), 8, shift > 0);
            all.insert(all.end(), more.begin(), more.end());
        }
        return all;
    };
    for (const bool integrated : {false, true}) {
        emulator::use_device(integrated ? 87 : 89);
        const Compute compute = integrated ? Compute::float32 : Compute::bfloat16;
        const std::vector<float> want = calls(compute);
        emulator::options().deferred = true;
        emulator::options().seed = 7;
        emulator::options().protect_device_memory = integrated;  // seconds of the system's time
        CHECK(calls(compute) == want);
        emulator::options() = {};
    }
    emulator::use_device(89);
}

void test_refusals() {
    const ModelConfig c = tiny();
    const Weights weights(c);
    const Policy policy;
    const size_t before = emulator::device_bytes_in_use();
    // Whichever allocation fails, the error is typed and everything is given back.
    int failed = 0;
    for (int n = 1; n < 400; n += 7) {
        emulator::fail_allocation(n);
        try {
            policy.on_gpu(c, weights, Compute::bfloat16);
        } catch (const Error& error) {
            CHECK(error.kind == ErrorKind::backend);
            CHECK(std::string(error.what()).find("memory") != std::string::npos);
            ++failed;
        }
        emulator::fail_allocation(0);
        CHECK(emulator::device_bytes_in_use() == before);
    }
    CHECK(failed > 5);
    emulator::remove_device(true);
    CHECK_THROWS(policy.on_gpu(c, weights, Compute::float32), backend);
    emulator::remove_device(false);

    const auto first = policy.on_gpu(c, weights, Compute::float32);
    const auto second = policy.on_gpu(c, weights, Compute::float32);
    const Input in;
    CHECK(run(*first, in, 8) == run(*second, in, 8));
}

}  // namespace

int main() {
    for (const ModelConfig& c : {tiny(), awkward()})
        for (bool codes : {false, true}) test_beside_cpu(c, codes);
    test_seams();
    test_what_stays_on_the_host();
    test_as_devices_are();
    test_refusals();
    return failures != 0;
}
