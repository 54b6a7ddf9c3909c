// What Python passes to _core.Engine, checked and taken apart. Errors are typed: a checkpoint error
// for what comes from a model's files, an input error for what comes with a call.
#pragma once

#include <vector>

#include "bindings/arrays.h"
#include "model/engine.h"

namespace smolvla::bindings {

ModelConfig config_of(const py::dict& config);

// The statistics of one feature; identity where there are none.
Statistics statistics_of(const py::dict& stats, const char* feature, int dims);

// Valid token ids as int32.
std::vector<int> token_ids(const ModelConfig& c, const py::object& tokens, const py::object& mask);

// A plan as smolvla_edge/backends/native.py writes it; of a model of this configuration.
Plan plan_of(const ModelConfig& config, const py::dict& plan);

struct FlowArguments {
    FlowInput flow;
    py::object previous, rest;  // arrays, alive while the caller's dicts are out of our hands

    // rest: what is left of the previous chunk, for a plan with warm_start, or None.
    FlowArguments(const Engine& engine, const py::object& noise, const py::dict& plan,
                  const py::object& rtc, const py::object& rest);
};

struct SampleArguments {
    std::vector<int> ids;
    ModelInput model;

    SampleArguments(const Engine& engine, const py::object& pixels, const py::object& camera_mask,
                    const py::object& tokens, const py::object& token_mask,
                    const py::object& state);
};

}  // namespace smolvla::bindings
