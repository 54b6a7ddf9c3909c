#include "model/schedule.h"

#include <algorithm>

namespace smolvla {
namespace {

// `count` equal steps from time `from` to 0.
void equal_steps(std::vector<FlowStep>& steps, double from, int count) {
    for (int k = 0; k < count; ++k)
        steps.push_back(
            {static_cast<float>(from * (-1.0 / count)), from * (1.0 + k * (-1.0 / count))});
}

}  // namespace

void make_schedule(const Plan& plan, double start, Schedule& schedule) {
    std::vector<FlowStep>& steps = schedule.steps;
    steps.clear();
    if (plan.adaptive) {
        const double half = start / 2;
        const int counts[3] = {1, 3, std::max(1, (plan.steps + 1) / 2)};
        steps.push_back({static_cast<float>(-half), start});
        for (int i = 0; i < 3; ++i) {
            schedule.branch[i] = static_cast<int>(steps.size());
            schedule.branch_steps[i] = counts[i];
            equal_steps(steps, half, counts[i]);
        }
        return;
    }
    if (plan.times.empty()) {
        equal_steps(steps, start, plan.steps);
    } else {
        for (int k = 0; k < plan.steps; ++k) {
            const double t = start * plan.times[size_t(k)];
            steps.push_back({static_cast<float>(start * plan.times[size_t(k) + 1] - t), t});
        }
    }
    if (!plan.ab2) return;
    const auto length = [&](int k) {
        return plan.times.empty() ? 1.0 : plan.times[size_t(k) + 1] - plan.times[size_t(k)];
    };
    for (int k = 1; k < plan.steps; ++k) {
        const double ratio = length(k) / length(k - 1);
        steps[size_t(k)].now = static_cast<float>(1 + ratio / 2);
        steps[size_t(k)].before = static_cast<float>(-ratio / 2);
    }
}

}  // namespace smolvla
