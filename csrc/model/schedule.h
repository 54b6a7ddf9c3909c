// The steps of a flow: when the velocity is evaluated and how far each step goes.
#pragma once

#include "model/plan.h"

namespace smolvla {

// One row of Backend::flow_update's schedule: x += dt * (now * v + before * last v), at time t.
struct FlowStep {
    float dt;
    double t;
    float now = 1, before = 0;
};

// All that a plan may take, beginning at time `start`, in the order in which they follow. Of an
// adaptive plan: the first step, then the three ways in which it may go on, whose first steps share
// the velocity half way.
struct Schedule {
    std::vector<FlowStep> steps;
    int branch[3] = {0, 0, 0}, branch_steps[3] = {0, 0, 0};
};
// `schedule` keeps its memory from call to call.
void make_schedule(const Plan& plan, double start, Schedule& schedule);

// Most steps that a plan of so many may take, all branches together.
constexpr int most_steps(int steps) { return steps + 5; }

}  // namespace smolvla
