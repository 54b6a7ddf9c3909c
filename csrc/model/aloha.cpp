// Constants from LeRobot's modeling_smolvla.py (in turn from the Interbotix and ALOHA code).
#include <algorithm>
#include <cmath>

#include "model/engine.h"

namespace smolvla {
namespace {

float to_unit(float x, float low, float high) { return (x - low) / (high - low); }
float from_unit(float x, float low, float high) { return x * (high - low) + low; }

float gripper_to_angular(float value) {
    const float position = from_unit(value, 0.01844f, 0.05800f);
    const float arm = 0.036f, horn = 0.022f;
    const float sine = (horn * horn + position * position - arm * arm) / (2.0f * horn * position);
    return to_unit(std::asin(std::clamp(sine, -1.0f, 1.0f)), 0.4f, 1.5f);
}

float gripper_from_angular(float value) {
    return to_unit(from_unit(value, 0.4f, 1.5f), -0.6213f, 1.4910f);
}

constexpr int kFlipped[] = {1, 2, 8, 9};
constexpr int kGrippers[] = {6, 13};

}  // namespace

void aloha_decode_state(float* state) {
    for (int joint : kFlipped) state[joint] = -state[joint];
    for (int joint : kGrippers) state[joint] = gripper_to_angular(state[joint]);
}

void aloha_encode_actions(float* actions) {
    for (int joint : kFlipped) actions[joint] = -actions[joint];
    for (int joint : kGrippers) actions[joint] = gripper_from_angular(actions[joint]);
}

}  // namespace smolvla
