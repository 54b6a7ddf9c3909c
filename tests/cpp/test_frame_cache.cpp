// Tokens kept from frame to frame: with a threshold of 0 the bytes of no cache at all, with another
// one the same decisions and bytes for every thread count, and after the first calls no allocation.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "cpu/pack.h"
#include "loose.h"
#include "tiny_model.h"

using namespace smolvla;

namespace {

constexpr int kHeight = 64, kWidth = 64, kBlocks = 4;  // of the tiny policy: 2 x 2

std::vector<uint8_t> picture(int seed) {
    std::vector<uint8_t> pixels(size_t(kHeight) * kWidth * 3);
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t((i * 37 + seed * 11) % 251);
    return pixels;
}

// Adds to the pixels of one block.
std::vector<uint8_t> changed(std::vector<uint8_t> pixels, int block, int by, int count = 1 << 20) {
    for (int y = block / 2 * 32; y < block / 2 * 32 + 32; ++y)
        for (int x = block % 2 * 32; x < block % 2 * 32 + 32; ++x)
            for (int c = 0; c < 3; ++c) {
                uint8_t& at = pixels[(size_t(y) * kWidth + x) * 3 + c];
                if (count-- > 0) at = uint8_t(at + (at < 128 ? by : -by));
            }
    return pixels;
}

struct Robot {
    Robot() : weights(c) {
        state.mode = action.mode = Statistics::Mode::identity;
        for (size_t i = 0; i < noise.size(); ++i) noise[i] = std::sin(float(i));
    }
    std::unique_ptr<Engine> engine(int threads = 1) const {
        return std::make_unique<Engine>(c, state, action, weights.entries, threads, "");
    }
    // Actions of one camera's frame, and what the cache did; `rule` null: without it.
    std::vector<float> see(Engine& e, const std::vector<uint8_t>& pixels, const CacheRule* rule,
                           CacheReport* report = nullptr, LayerSet skip = 0, int word = 3,
                           int height = kHeight) const {
        const std::vector<Frame> frames = {{pixels.data(), true, height, kWidth}};
        const std::vector<int> tokens = {word, 1, 4}, cached = {1};
        FlowInput flow = flow_of(noise, 8, 3);
        flow.plan.skip_vision = skip;
        flow.plan.caching = rule != nullptr;
        if (rule) flow.plan.cache = *rule;
        std::vector<float> normalized(8 * 5), actions(8 * 5);
        const Prediction made = e.predict({frames, tokens.data(), 3, raw.data(), false, cached},
                                          flow, normalized.data(), actions.data());
        if (report) *report = made.cache[0];
        return actions;
    }

    const ModelConfig c = tiny();
    const Weights weights;
    Statistics state, action;
    std::vector<float> noise = std::vector<float>(8 * 8);
    const std::vector<float> raw = {0.1f, -0.2f, 0.3f, 0.4f, -0.5f, 0.6f};
};

std::string why(const CacheReport& report) { return report.why ? report.why : ""; }

// Whatever comes, the bytes are those of a policy that keeps nothing.
void test_threshold_zero(const Robot& robot) {
    const CacheRule rule{0, 3, 2, 1, 1};
    const auto plain = robot.engine(), kept = robot.engine();
    const std::vector<uint8_t> a = picture(1), b = changed(a, 2, 1, 1), c = picture(2);
    const struct {
        const std::vector<uint8_t>& frame;
        float dirty;
        const char* why;
    } steps[] = {{a, 1, "first"},   {a, 0, ""}, {a, 0, ""},        {a, 0, ""},       {a, 0, ""},
                 {b, 1, "changed"}, {b, 0, ""}, {c, 1, "changed"}, {a, 1, "changed"}};
    for (const auto& step : steps) {
        CacheReport report;
        CHECK(robot.see(*kept, step.frame, &rule, &report) ==
              robot.see(*plain, step.frame, nullptr));
        CHECK(report.used && report.dirty == step.dirty && why(report) == step.why);
    }
    // What invalidates, each by its name.
    CacheReport report;
    CHECK(robot.see(*kept, a, &rule, &report, 0, 5) ==
          robot.see(*plain, a, nullptr, nullptr, 0, 5));
    CHECK(why(report) == "prompt");
    CHECK(robot.see(*kept, a, &rule, &report, 1, 5) ==
          robot.see(*plain, a, nullptr, nullptr, 1, 5));
    CHECK(why(report) == "plan");
    kept->reset();
    CHECK(robot.see(*kept, a, &rule, &report, 1, 5) ==
          robot.see(*plain, a, nullptr, nullptr, 1, 5));
    CHECK(why(report) == "first");
    // A call without the cache in between changes nothing of it.
    robot.see(*kept, c, nullptr);
    robot.see(*kept, a, &rule, &report, 1, 5);
    CHECK(report.dirty == 0 && !report.keyframe);
}

void test_some_blocks(const Robot& robot) {
    const CacheRule rule{0.01f, 100, 100, 0, 0};
    const auto one = robot.engine(1), two = robot.engine(2), plain = robot.engine();
    const std::vector<uint8_t> a = picture(1), b = changed(a, 3, 40), noisy = changed(a, 1, 1);
    CacheReport report, other;
    const auto both = [&](const std::vector<uint8_t>& frame, const CacheRule& r) {
        const std::vector<float> got = robot.see(*one, frame, &r, &report);
        CHECK(robot.see(*two, frame, &r, &other) == got);
        CHECK(report.dirty == other.dirty && report.drift == other.drift);
        return got;
    };
    const std::vector<float> first = both(a, rule);
    CHECK(both(noisy, rule) == first);  // below the threshold: as if it were the first frame
    CHECK(report.dirty == 0 && !report.keyframe && report.oldest == 1);
    const std::vector<float> partly = both(b, rule);
    CHECK(report.dirty == 0.25f && report.drift < 0 && partly != first);
    CHECK(partly != robot.see(*plain, b, nullptr));  // the others did not see the change
    // All blocks at once are a keyframe, and exact again.
    CHECK(both(picture(9), rule) == robot.see(*plain, picture(9), nullptr));
    CHECK(why(report) == "scene" && report.dirty == 1);
    // Neighbours of a changed block, and what was left of the bucket.
    CacheRule wide = rule;
    wide.dilate = 1;
    both(a, wide);
    CHECK(why(report) == "plan");
    both(b, wide);
    CHECK(why(report) == "scene");  // in 2 x 2 blocks all are neighbours
    // A block that looks unchanged is computed to see how far it is off.
    CacheRule checked = rule;
    checked.check = 1;
    both(a, checked);
    both(a, checked);
    CHECK(report.dirty == 0 && report.drift < 0);  // exactly the frame: nothing to find
    both(changed(a, 0, 1), checked);
    CHECK(report.dirty == 0.25f && report.drift >= 0);
    // Light that drifts slowly is below the threshold from frame to frame, not in sum.
    both(a, rule);
    bool noticed = false;
    for (int i = 1; i <= 8; ++i) {
        both(changed(a, 0, i), rule);
        noticed = noticed || report.dirty > 0;
    }
    CHECK(noticed);
}

void test_ages(const Robot& robot) {
    const auto e = robot.engine();
    const std::vector<uint8_t> a = picture(1), noisy = changed(a, 1, 1);
    CacheReport report;
    CacheRule rule{0.01f, 5, 100, 0, 0};
    robot.see(*e, a, &rule);
    for (int call = 1; call <= 5; ++call) {
        robot.see(*e, noisy, &rule, &report);
        CHECK(report.keyframe == (call == 5));
    }
    CHECK(why(report) == "every n");
    rule.keyframe_every = 100;
    rule.max_age = 3;
    robot.see(*e, a, &rule);
    for (int call = 1; call < 12; ++call) {
        robot.see(*e, call % 2 ? noisy : a, &rule, &report);
        CHECK(report.oldest < 3);
    }
}

// Frames half as high as wide: two of four blocks are padding.
void test_padding(const Robot& robot) {
    const auto one = robot.engine(1), two = robot.engine(2), plain = robot.engine();
    const std::vector<uint8_t> a = picture(1), b = picture(2);
    CacheReport report, other;
    const auto both = [&](const std::vector<uint8_t>& frame, const CacheRule& r, int height) {
        const std::vector<float> got = robot.see(*one, frame, &r, &report, 0, 3, height);
        CHECK(robot.see(*two, frame, &r, &other, 0, 3, height) == got);
        CHECK(report.dirty == other.dirty && report.oldest == other.oldest);
        return got;
    };
    const auto exact = [&](const std::vector<uint8_t>& frame, int height) {
        return robot.see(*plain, frame, nullptr, nullptr, 0, 3, height);
    };
    CacheRule rule{0, 100, 100, 1, 1};
    rule.keep_padding = true;
    CHECK(both(a, rule, 32) == exact(a, 32));
    CHECK(both(a, rule, 32) == exact(a, 32));
    CHECK(report.dirty == 0);
    const std::vector<float> moved = both(b, rule, 32);
    CHECK(why(report) == "changed" && report.keyframe && report.dirty == 0.5f);
    CHECK(moved != exact(b, 32));  // against padding of the first frame
    CHECK(both(b, rule, 32) == moved && report.dirty == 0);
    // Another shape in the same box, and back: nothing kept fits.
    for (const int height : {64, 32}) {
        CHECK(both(b, rule, height) == exact(b, height));
        CHECK(why(report) == "frame size" && report.dirty == 1);
    }
    both(a, rule, 32);
    CHECK(report.dirty == 0.5f);
    one->reset(), two->reset();
    CHECK(both(b, rule, 32) == exact(b, 32) && why(report) == "first");
    // Every other keyframe leaves it alone, and no age makes it new.
    for (CacheRule r : {CacheRule{0.01f, 1, 100, 0, 0}, CacheRule{0.01f, 100, 1, 0, 0},
                        CacheRule{0.01f, 100, 100, 0, 0}}) {
        r.keep_padding = true;
        both(a, r, 32);
        CHECK(why(report) == "plan" && report.dirty == 1);
        for (const std::vector<uint8_t>& frame : {b, a, b}) {
            both(frame, r, 32);
            CHECK(report.keyframe && report.dirty == 0.5f && report.oldest == 0);
        }
    }
    // Where no block is all padding, keeping it is no different from not keeping it.
    CacheRule kept{0.01f, 3, 2, 0, 1}, not_kept = kept;
    kept.keep_padding = true;
    const auto keeps = robot.engine(), makes = robot.engine();
    for (int call = 0; call < 8; ++call) {
        const std::vector<uint8_t> frame = changed(a, call % 4, 40);
        CHECK(robot.see(*keeps, frame, &kept, &report, 0, 3, 33 + call) ==
              robot.see(*makes, frame, &not_kept, &other, 0, 3, 33 + call));
        CHECK(report.dirty == other.dirty && why(report) == why(other));
    }
}

// What the expert looked at in a call is computed in the next; the first two of four blocks here,
// whichever they are.
void test_attended(const Robot& robot) {
    const auto one = robot.engine(1), two = robot.engine(2), plain = robot.engine();
    const std::vector<uint8_t> a = picture(1), noisy = changed(a, 1, 1);
    CacheReport report, other;
    const auto both = [&](const std::vector<uint8_t>& frame, const CacheRule& r) {
        const std::vector<float> got = robot.see(*one, frame, &r, &report);
        CHECK(robot.see(*two, frame, &r, &other) == got);
        CHECK(report.dirty == other.dirty && report.oldest == other.oldest);
        return got;
    };
    CacheRule rule{0.01f, 100, 100, 0, 0};
    const std::vector<float> unseen = both(a, rule);
    rule.attended = 2;
    const std::vector<float> exact = both(a, rule);
    CHECK(exact == unseen && why(report) == "plan");
    both(a, rule);
    CHECK(report.dirty == 0);  // the very frame: nothing is newer
    both(noisy, rule);
    CHECK(report.dirty == 0.5f && report.drift >= 0 && report.oldest == 1);
    both(noisy, rule);
    CHECK(report.dirty == 0.5f);
    one->reset(), two->reset();
    both(noisy, rule);
    both(a, rule);
    CHECK(report.dirty == 0.5f);  // of the first call after the reset
    // More than three quarters are all; of two that can change, so is any.
    rule.attended = 4;
    both(a, rule);
    CHECK(both(noisy, rule) == robot.see(*plain, noisy, nullptr) && why(report) == "scene");
    rule.attended = 1;
    rule.keep_padding = true;
    std::vector<float> thin[2];
    for (std::vector<float>& got : thin) {
        one->reset();
        robot.see(*one, a, &rule, &report, 0, 3, 32);
        got = robot.see(*one, noisy, &rule, &report, 0, 3, 32);
        CHECK(report.dirty == 0.25f);
    }
    CHECK(thin[0] == thin[1]);
    rule.attended = -1;
    CHECK_THROWS(both(a, rule), input);
}

// A frame of NaN gives no action, and no trace of it is kept.
void test_failure(const Robot& robot) {
    const auto e = robot.engine(), plain = robot.engine();
    const CacheRule rule{0.01f, 100, 100, 1, 1};
    const std::vector<uint8_t> a = picture(1);
    robot.see(*e, a, &rule);
    std::vector<float> bad(size_t(kHeight) * kWidth * 3, std::numeric_limits<float>::quiet_NaN());
    const std::vector<Frame> frames = {{bad.data(), false, kHeight, kWidth}};
    const std::vector<int> tokens = {3, 1, 4}, cached = {1};
    FlowInput flow = flow_of(robot.noise, 8, 3);
    flow.plan.caching = true;
    flow.plan.cache = rule;
    std::vector<float> normalized(8 * 5), actions(8 * 5);
    const auto predict = [&](const std::vector<int>& kept) {
        return e->predict({frames, tokens.data(), 3, robot.raw.data(), false, kept}, flow,
                          normalized.data(), actions.data());
    };
    CHECK_THROWS(predict(cached), non_finite);
    CHECK(robot.see(*e, a, &rule) == robot.see(*plain, a, nullptr));
    CHECK_THROWS(predict({2}), input);
    CHECK_THROWS(predict({-2}), input);
    CHECK_THROWS(predict({0, 1}), input);
    flow.plan.cache.threshold = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS(predict(cached), input);
}

// The store of CPUs with bfloat16 products holds two positions in a word: what is written to one of
// them leaves the other alone. Here on every CPU, from floats and from rows of pairs.
void test_pairs() {
    constexpr int kPositions = 40, kDim = 6;
    struct Store : PackedKv {
        explicit Store(float filling) {
            kv_heads = 1, head_dim = kDim, capacity = 64, storage = Storage::bf16;
            memory.assign(key_words() + value_words(), filling);
            keys = memory.data(), values = memory.data() + key_words();
        }
        std::vector<float> memory;
    };
    for (const Storage storage : {Storage::f32, Storage::bf16}) {
        const LooseMat right(kPositions, kDim, 1u, storage), wrong(kPositions, kDim, 2u, storage);
        Store expected(0), got(0);
        for (int first : {0, 32}) {
            const int count = std::min(32, kPositions - first);
            cpu::pack_keys(expected, 0, right.mat.below(first, count), first);
            cpu::pack_values(expected, 0, right.mat.below(first, count), first);
            cpu::pack_keys(got, 0, right.mat.below(first, count), first);
            cpu::pack_values(got, 0, right.mat.below(first, count), first);
        }
        const std::vector<int> some = {1, 2, 3, 6, 9, 10, 30, 31, 32, 33, 34, 39};
        const int n = static_cast<int>(some.size());
        for (const Mat& from : {wrong.mat, right.mat})
            for (int i = 0, run; i < n; i += run) {
                run = cpu::run_in_panel(&some[size_t(i)], n - i);
                const Mat rows = from.below(some[size_t(i)], run);
                cpu::pack_keys(got, 0, rows, some[size_t(i)]);
                cpu::pack_values(got, 0, rows, some[size_t(i)], cpu::Neighbour::kept);
            }
        CHECK(!std::memcmp(got.memory.data(), expected.memory.data(),
                           sizeof(float) * got.memory.size()));
    }
}

}  // namespace

int main() {
    test_pairs();
    const Robot robot;
    test_threshold_zero(robot);
    test_some_blocks(robot);
    test_ages(robot);
    test_padding(robot);
    test_attended(robot);
    test_failure(robot);
    return report("frame_cache");
}
