// Plans that leave work out, on the CUDA backend beside the CPU's: solvers and schedules, steps
// that are decided while they are made, layers left out or reused.
#include <set>

#include "control.h"
#include "engine_calls.h"

using namespace smolvla;

namespace {

// --- one call ------------------------------------------------------------------------------------

struct Named {
    const char* name;
    Plan plan;
    bool guided = false;
};

// Every third of them, from the one of this number on: each is for one of three policies.
std::vector<Named> plans(size_t share) {
    std::vector<Named> all;
    const auto add = [&](const char* name, int rows, int steps, auto change) -> Named& {
        all.push_back({name, exact_plan(rows, steps)});
        change(all.back().plan);
        return all.back();
    };
    add("exact", 8, 5, [](Plan&) {});
    add("ab2", 8, 5, [](Plan& p) { p.ab2 = true; });
    add("ab2, guided", 8, 5, [](Plan& p) { p.ab2 = true; }).guided = true;
    add("schedule", 8, 4, [](Plan& p) { p.times = {1, 0.7, 0.3, 0.25, 0}; });
    add("schedule, ab2", 3, 4, [](Plan& p) { p.ab2 = true, p.times = {1, 0.7, 0.3, 0.25, 0}; });
    add("warm start", 8, 4, [](Plan& p) { p.warm_start = 0.6f; });
    add("warm start, ab2", 2, 4, [](Plan& p) { p.ab2 = true, p.warm_start = 0.6f; });
    add("no vision layer", 8, 3, [](Plan& p) { p.skip_vision = 3; });
    add("fewer vision layers", 8, 3, [](Plan& p) { p.skip_vision = 1; });
    add("fewer text layers", 8, 3, [](Plan& p) { p.skip_vlm = 0b0110; });
    add("fewer expert layers", 8, 3, [](Plan& p) { p.skip_expert = 0b1001; });
    add("reuse", 8, 4, [](Plan& p) { p.reuse = {0, 0b0110, 0b0010, 0b1111}; });
    add("reuse, guided", 5, 4, [](Plan& p) { p.reuse = {0, 0, 0b0110, 0b0110}; }).guided = true;
    add("adaptive, one step", 8, 5, [](Plan& p) { p.adaptive = true, p.high = p.low = -1; });
    add("adaptive, three steps", 8, 5, [](Plan& p) { p.adaptive = true, p.high = 1, p.low = -1; });
    add("adaptive, half", 8, 5, [](Plan& p) { p.adaptive = true, p.high = p.low = 1; });
    add("adaptive, guided", 4, 9, [](Plan& p) { p.adaptive = true, p.high = p.low = 1; }).guided =
        true;
    add("stop at once", 8, 5, [](Plan& p) { p.stop = 1e9f; });
    add("never stop", 8, 5, [](Plan& p) { p.stop = 0; });
    add("all of it", 6, 5, [](Plan& p) {
        p.ab2 = true, p.warm_start = 0.5f, p.stop = 0;
        p.skip_vision = 2, p.skip_vlm = 1, p.skip_expert = 4, p.reuse = {0, 1, 8, 9, 0};
    });
    add("exit", 8, 3, [](Plan& p) { p.exit = 2; });
    add("exit at once", 8, 3, [](Plan& p) { p.exit = 1; });
    add("exit, reuse", 8, 3, [](Plan& p) { p.exit = 3, p.reuse = {0, 0b0001, 0b0101}; });
    std::vector<Named> some;
    for (size_t i = share; i < all.size(); i += 3) some.push_back(all[i]);
    return some;
}

// Each plan after the others, on one engine: a stage is replayed where it belongs and nowhere else.
void test_plans(const ModelConfig& c, bool codes, size_t share) {
    const Weights weights(c, codes);
    const Policy policy;
    const Input in;
    const auto exact = policy.on_cpu(c, weights);
    const auto rounded = policy.on_cpu(c, weights, Compute::bfloat16);
    for (Compute compute : {Compute::float32, Compute::bfloat16}) {
        const auto e = policy.on_gpu(c, weights, compute);
        std::vector<std::vector<float>> first;
        std::set<std::vector<float>> different;
        for (const Named& n : plans(share)) {
            const Answer want = ask(*exact, in, n.plan, n.guided);
            const double cpu_error =
                distance(ask(*rounded, in, n.plan, n.guided).actions, want.actions);
            const double bound =
                compute == Compute::float32 && !codes ? 2e-5 : 2 * cpu_error + 1e-2;
            const Answer got = ask(*e, in, n.plan, n.guided);
            const double off = distance(got.actions, want.actions);
            if (off >= bound || got.evaluations != want.evaluations)
                std::printf("%s, %s: %.2g of the largest action, %d evaluations, expected %d\n",
                            n.name, compute_name(compute), off, got.evaluations, want.evaluations);
            CHECK(off < bound);
            CHECK(got.evaluations == want.evaluations);
            first.push_back(got.actions);
            different.insert(got.actions);
        }
        // "Never stop" takes the exact plan's steps, and so does nothing else.
        CHECK(different.size() == first.size() - (share == 0));
        size_t i = 0;
        for (const Named& n : plans(share))
            CHECK(ask(*e, in, n.plan, n.guided).actions == first[i++]);
    }
}

// The cosine at which an adaptive plan turns, as an engine has it: three steps at it and below.
float turning_point(Engine& e, const Input& in) {
    Plan plan = exact_plan();
    plan.adaptive = true;
    float low = -1, high = 1;
    for (int i = 0; i < 24; ++i) {
        plan.high = (low + high) / 2, plan.low = -1;
        (ask(e, in, plan).evaluations == 2 ? low : high) = plan.high;
    }
    return high;
}

// What is decided while the steps are made is decided as on the CPU, a little to both sides.
void test_decisions() {
    const ModelConfig c = tiny();
    const Weights weights(c);
    const Policy policy;
    const Input in;
    const auto cpu = policy.on_cpu(c, weights);
    const auto gpu = policy.on_gpu(c, weights, Compute::float32);
    const float cosine = turning_point(*cpu, in);
    CHECK(std::fabs(cosine) < 0.999f);  // the test can fail
    for (const float beside : {-1e-5f, 1e-5f}) {
        Plan plan = exact_plan();
        plan.adaptive = true, plan.high = cosine + beside, plan.low = -1;
        CHECK(ask(*gpu, in, plan).evaluations == (beside < 0 ? 2 : 4));
        plan.high = 1, plan.low = cosine + beside;
        CHECK(ask(*gpu, in, plan).evaluations == (beside < 0 ? 4 : 3));
    }
    std::set<int> stops;
    for (int k = 0; k < 40; ++k) {
        Plan plan = exact_plan(8, 6);
        plan.stop = 8 * std::pow(0.8f, float(k));
        const int want = ask(*cpu, in, plan).evaluations;
        bool clear = true;
        for (const float beside : {0.999f, 1.001f}) {
            Plan moved = plan;
            moved.stop *= beside;
            clear = clear && ask(*cpu, in, moved).evaluations == want;
        }
        if (!clear || !stops.insert(want).second) continue;
        const Answer got = ask(*gpu, in, plan);
        CHECK(got.evaluations == want);
        CHECK(distance(got.actions, ask(*cpu, in, plan).actions) < 2e-5);
    }
    CHECK(stops.size() > 2);
}

}  // namespace

int main() {
    test_plans(tiny(), false, 0);
    test_plans(tiny(), true, 1);
    test_plans(awkward(), false, 2);
    test_decisions();
    return report("cuda_plans");
}
