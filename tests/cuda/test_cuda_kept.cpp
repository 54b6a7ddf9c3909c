// Tokens kept from frame to frame, on the CUDA backend beside the CPU's; what warm_up makes for
// them, and what happens when memory runs out.
#include <set>

#include "control.h"
#include "engine_calls.h"

using namespace smolvla;

namespace {

constexpr int kSide = 128, kBlock = 32, kAcross = kSide / kBlock;  // 16 blocks of 2 x 2 patches

ModelConfig with_blocks(ModelConfig c) {
    c.image_size = c.resize_width = c.resize_height = kSide;
    return c;
}

// Two cameras of which the first is looked at here.
struct Film : Input {
    std::vector<uint8_t> other;
    Film() {
        pixels.resize(size_t(3) * kSide * kSide);
        for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(40 + i * 37 % 101);
        other = pixels;
        frames = {{pixels.data(), true, kSide, kSide}, {other.data(), true, kSide, kSide}};
        cached = {0, -1};
    }
    Film(const Film&) = delete;
    void brighten(int block, int by) {
        for (int y = 0; y < kBlock; ++y)
            for (int x = 0; x < 3 * kBlock; ++x) {
                const size_t row = size_t(block / kAcross * kBlock + y);
                uint8_t& at = pixels[(row * kSide + block % kAcross * kBlock) * 3 + size_t(x)];
                at = static_cast<uint8_t>(at + by);
            }
    }
    void brighten_first(int blocks, int by) {
        for (int b = 0; b < blocks; ++b) brighten(b, by);
    }
};

Plan caching(float threshold, int keyframe_every = 6, int max_age = 5, int dilate = 1) {
    Plan plan = exact_plan(8, 2);
    plan.caching = true;
    plan.cache = {threshold, keyframe_every, max_age, dilate, 1};
    return plan;
}

// Frame after frame as a robot sees them, and what was answered to each.
std::vector<Answer> watch(Engine& e) {
    Film film;
    Plan plan = caching(0.05f);
    std::vector<Answer> all;
    const auto look = [&] { all.push_back(ask(e, film, plan)); };
    look();  // first
    look();  // the same
    film.brighten(5, 40);
    look();  // a block and those around it
    film.brighten(0, 3);
    look();                              // nothing that counts
    for (int i = 0; i < 6; ++i) look();  // ages grow, until every block is old, and to "every n"
    film.brighten_first(16, 50);
    look();  // a scene
    film.brighten(15, -50);
    film.cached = {-1, -1};
    look();  // not kept, and what is kept stays
    film.cached = {0, 1};
    look();  // a camera more
    film.frames[0] = {};
    look();  // masked
    film.frames[0] = {film.pixels.data(), true, kSide, kSide};
    look();
    film.tokens.push_back(7);
    look();  // prompt
    plan.skip_vision = 1;
    look();  // plan
    e.reset();
    look();  // first
    plan = caching(0);
    look();  // plan
    look();  // the same
    film.brighten(3, 1);
    look();  // changed
    film.brighten(3, -1);
    look();
    look();
    plan = caching(0.05f);
    plan.cache.keep_padding = true;
    film.frames[0].height = 3 * kSide / 4;
    look();                               // plan
    film.brighten_first(12, 50), look();  // a scene, but not its padding
    film.brighten(7, 60), look();
    film.frames[0].height = kSide / 2, look();  // frame size
    film.brighten_first(8, 50), look();
    plan.cache.attended = 3;
    look();                                                   // plan
    for (int i = 1; i < 4; ++i) film.brighten(3, 1), look();  // what was looked at
    plan.reuse = {0, 0b1111};
    for (int i = 1; i < 4; ++i) film.brighten(3, 1), look();  // which the last step does not say
    return all;
}

bool same_reports(const Answer& a, const Answer& b) {
    bool same = a.cache.size() == b.cache.size();
    for (size_t i = 0; same && i < a.cache.size(); ++i) {
        const CacheReport &x = a.cache[i], &y = b.cache[i];
        same = x.used == y.used && x.keyframe == y.keyframe && x.dirty == y.dirty &&
               x.oldest == y.oldest && (x.drift < 0) == (y.drift < 0) &&
               std::string(x.why ? x.why : "") == (y.why ? y.why : "");
    }
    return same;
}

void test_watching(const ModelConfig& c, bool codes) {
    const Weights weights(c, codes);
    const Policy policy;
    const std::vector<Answer> want = watch(*policy.on_cpu(c, weights));
    const std::vector<Answer> rounded = watch(*policy.on_cpu(c, weights, Compute::bfloat16));
    std::set<std::string> whys;
    std::set<float> dirty;
    for (const Answer& a : want) {
        whys.insert(a.cache[0].why ? a.cache[0].why : "");
        if (a.cache[0].used) dirty.insert(a.cache[0].dirty);
    }
    CHECK(whys.size() == 8 && dirty.size() > 5);  // what the frames are made for
    for (Compute compute : {Compute::float32, Compute::bfloat16}) {
        const auto e = policy.on_gpu(c, weights, compute);
        const std::vector<Answer> got = watch(*e);
        CHECK(got.size() == want.size());
        for (size_t i = 0; i < got.size(); ++i) {
            const double cpu_error = distance(rounded[i].actions, want[i].actions);
            const bool exact = compute == Compute::float32 && !codes;
            const double bound = exact ? 2e-5 : 2 * cpu_error + 1e-2;
            const double off = distance(got[i].actions, want[i].actions);
            const float drift = got[i].cache[0].drift, cpu_drift = want[i].cache[0].drift;
            if (off >= bound || !same_reports(got[i], want[i]))
                std::printf("call %zu, codes %d, %s: %.2g of the largest action, dirty %g (%g)\n",
                            i, codes, compute_name(compute), off, double(got[i].cache[0].dirty),
                            double(want[i].cache[0].dirty));
            CHECK(off < bound);
            CHECK(same_reports(got[i], want[i]));
            // A token that is the same but for roundings drifts by those, which are each device's.
            const double rounding = exact ? 1e-5 : 3e-2;
            CHECK(std::fabs(drift - cpu_drift) <= rounding + 1e-3 * std::fabs(double(cpu_drift)));
        }
        // A frame that comes again is answered with the same bits, and a keyframe with those that
        // no cache would have changed.
        CHECK(got[1].actions == got[0].actions);
        const Film film;
        Plan plain = exact_plan(8, 2);
        CHECK(ask(*e, film, plain).actions == got[0].actions);
    }
}

// Frames that the policy does not resize: of another size, and of one that no blocks divide.
void test_frame_sizes() {
    ModelConfig c = with_blocks(tiny());
    c.resize_width = c.resize_height = 0;
    const Weights weights(c);
    const Policy policy;
    const auto cpu = policy.on_cpu(c, weights);
    const auto gpu = policy.on_gpu(c, weights, Compute::float32);
    Film film;
    film.frames.resize(1), film.cached = {0};
    int kept = 0;
    const int sizes[][2] = {{128, 128}, {96, 96}, {96, 96}, {64, 16}, {100, 103}, {128, 128}};
    for (const auto& [height, width] : sizes) {
        film.frames[0].height = height, film.frames[0].width = width;
        const Answer want = ask(*cpu, film, caching(0.05f)), got = ask(*gpu, film, caching(0.05f));
        CHECK(distance(got.actions, want.actions) < 2e-5);
        CHECK(same_reports(got, want));
        kept += got.cache[0].used;
    }
    CHECK(kept == 5);  // 4 x 1 patches are no square
}

// Work that runs as late as CUDA permits, blocks and warps in another order, device memory that the
// host must not touch: the same bytes each time.
void test_watching_as_devices_are() {
    const ModelConfig c = with_blocks(tiny());
    const Weights weights(c, true);
    const Policy policy;
    for (Compute compute : {Compute::float32, Compute::bfloat16}) {
        const std::vector<Answer> want = watch(*policy.on_gpu(c, weights, compute));
        emulator::options().deferred = true;
        emulator::options().seed = 5;
        emulator::options().protect_device_memory = compute == Compute::float32;
        const std::vector<Answer> got = watch(*policy.on_gpu(c, weights, compute));
        emulator::options() = {};
        for (size_t i = 0; i < want.size(); ++i) {
            CHECK(got[i].actions == want[i].actions);
            CHECK(same_reports(got[i], want[i]));
            CHECK(got[i].cache[0].drift == want[i].cache[0].drift);
        }
    }
}

// --- what there is after warm_up -----------------------------------------------------------------

struct Held {
    int graphs;
    size_t buffers, bytes, blocks, handles;
    bool operator==(const Held& o) const {
        return graphs == o.graphs && buffers == o.buffers && bytes == o.bytes &&
               blocks == o.blocks && handles == o.handles;
    }
};
Held held(const Engine& e) {
    const BackendInfo info = e.info();
    return {info.gpu.graphs, info.buffer_bytes, emulator::device_bytes_in_use(),
            emulator::allocations_in_use(), emulator::handles_in_use()};
}

// A partial pass of every size, of every camera, under plans whose steps are stages of their own:
// nothing is recorded or allocated.
void test_nothing_is_made_after_warm_up() {
    const ModelConfig c = with_blocks(tiny());
    const Weights weights(c);
    const Policy policy;
    Plan adaptive = exact_plan(8, 3), mixed = exact_plan(8, 2);
    adaptive.cache.attended = 2;
    adaptive.adaptive = true, adaptive.high = 1, adaptive.low = -1;
    mixed.ab2 = true, mixed.warm_start = 0.5f, mixed.stop = 0, mixed.reuse = {0, 0b0110};
    for (const Plan& bare : {adaptive, mixed}) {
        Plan plan = bare;
        plan.caching = true;
        plan.cache = {0.05f, 100, 100, 0, 0, false, bare.cache.attended};
        const auto e = policy.on_gpu(c, weights, Compute::bfloat16);
        int calls = 0, last = -1, all = 0;
        e->warm_up({kSide, kSide, plan, {0, 1}}, [&](int done, int of) {
            CHECK(done == last + 1);
            last = done, all = of, ++calls;
        });
        CHECK(calls == all + 1 && e->ready());
        const Held before = held(*e);
        Film film;
        film.cached = {0, 1};
        std::set<float> dirty;
        for (int blocks : {0, 2, 4, 6, 8, 10, 12, 16, 3}) {
            film.brighten_first(blocks, blocks % 4 ? 60 : -30);
            film.other = film.pixels;
            film.frames[1].data = film.other.data();
            if (blocks == 3) film.tokens.resize(11, 2);
            const Answer got = ask(*e, film, plan, blocks % 4 == 2);
            for (const CacheReport& report : got.cache) dirty.insert(report.dirty);
            CHECK(held(*e) == before);
        }
        // 2, 4, ... 12 of 16 blocks, and all; two that were looked at may come on top.
        CHECK(dirty.size() >= (bare.cache.attended ? 6u : 7u));
        if (bare.cache.attended) continue;  // its evaluations are other stages without the cache
        plan.caching = false;
        ask(*e, film, plan);
        CHECK(held(*e) == before);
        e->warm_up({kSide, kSide, bare, {}}, [](int, int) {});  // what that needs is there
        CHECK(held(*e) == before);
    }
}

// The same for frames of any shape whose padding is kept.
void test_nothing_is_made_for_padding_after_warm_up() {
    const ModelConfig c = with_blocks(tiny());
    const Weights weights(c);
    const Policy policy;
    Plan plan = caching(0.05f, 100, 100, 0);
    plan.cache.check = 0, plan.cache.keep_padding = true;
    const auto e = policy.on_gpu(c, weights, Compute::bfloat16);
    e->warm_up({kSide, kSide, plan, {0, 1}}, [](int, int) {});
    Film film;
    film.frames.resize(1), film.cached = {0};
    const Held before = held(*e);
    std::set<float> dirty;
    const int half = kSide / 2, most = 3 * kSide / 4;
    const int sizes[][2] = {{most, kSide}, {half, kSide}, {kSide / 4, kSide}, {kSide, half}};
    for (const auto& [height, width] : sizes) {
        film.frames[0].height = height, film.frames[0].width = width;
        for (int blocks : {0, 12, 2}) {
            film.brighten_first(blocks, 60);
            dirty.insert(ask(*e, film, plan).cache[0].dirty);
            CHECK(held(*e) == before);
        }
    }
    CHECK(dirty.count(0.75f) && dirty.count(0.5f) && dirty.count(0.25f) && dirty.count(1));
}

// What a camera keeps is made when it is first used, and counted.
void test_memory_of_a_camera() {
    const ModelConfig c = with_blocks(tiny());
    const Weights weights(c);
    const Policy policy;
    const auto e = policy.on_gpu(c, weights, Compute::float32);
    const Film film;
    ask(*e, film, exact_plan(8, 2));
    const Held before = held(*e);
    ask(*e, film, caching(0.05f));
    const Held after = held(*e);
    const size_t least = size_t(c.vision_layers) * 2 * 64 * size_t(c.vision_width) * 4 +
                         size_t(3) * kSide * kSide * 4 + size_t(16) * size_t(c.text_width) * 4;
    CHECK(after.buffers - before.buffers >= least);
    CHECK(after.bytes - before.bytes == after.buffers - before.buffers);
}

// Whichever allocation of a first call fails, it says so; the next call works, and has taken no
// more memory than one that never failed.
void test_memory_that_runs_out() {
    const ModelConfig c = with_blocks(tiny());
    const Weights weights(c);
    const Policy policy;
    const Film film;
    const Plan plan = caching(0.05f);
    const auto undisturbed = policy.on_gpu(c, weights, Compute::float32);
    const size_t built = undisturbed->info().buffer_bytes;
    const std::vector<float> want = ask(*undisturbed, film, plan).actions;
    const size_t taken = undisturbed->info().buffer_bytes - built;
    int failed = 0;
    for (bool all = false; !all;) {
        const auto e = policy.on_gpu(c, weights, Compute::float32);
        const Held before = held(*e);
        emulator::fail_allocation(failed + 1);
        try {
            ask(*e, film, plan);
            all = true;
        } catch (const Error& error) {
            ++failed;
            CHECK(error.kind == ErrorKind::backend);
            CHECK(std::string(error.what()).find("memory") != std::string::npos);
        }
        emulator::fail_allocation(0);
        const Answer got = ask(*e, film, plan);
        CHECK(got.actions == want);
        CHECK(got.cache[0].keyframe != all);  // of a call that failed nothing is kept
        CHECK(e->info().buffer_bytes - before.buffers == taken);
        CHECK(held(*e).bytes - before.bytes == taken);
    }
    CHECK(failed > c.vision_layers + 2);
}

// A call that fails after it has seen its frame: the same frame again is no frame that is known.
void test_a_frame_that_found_no_room() {
    const ModelConfig c = with_blocks(tiny());
    const Weights weights(c);
    const Policy policy;
    const auto e = policy.on_gpu(c, weights, Compute::float32);
    Film film;
    film.frames.resize(1), film.cached = {0};
    const Plan plan = caching(0.05f);
    ask(*e, film, plan), ask(*e, film, plan);
    std::vector<uint8_t> large(size_t(3) * 4 * kSide * kSide);
    for (size_t i = 0; i < large.size(); ++i) large[i] = uint8_t(i * 31 % 253);
    film.frames[0] = {large.data(), true, 2 * kSide, 2 * kSide};
    emulator::fail_allocation(1);
    CHECK_THROWS(ask(*e, film, plan), backend);
    emulator::fail_allocation(0);
    const Answer got = ask(*e, film, plan);
    CHECK(got.cache[0].keyframe);
    CHECK(distance(got.actions, ask(*policy.on_cpu(c, weights), film, plan).actions) < 2e-5);
}

}  // namespace

int main() {
    test_watching(with_blocks(awkward()), false);
    test_frame_sizes();
    test_watching_as_devices_are();
    test_nothing_is_made_after_warm_up();
    test_nothing_is_made_for_padding_after_warm_up();
    test_memory_of_a_camera();
    test_memory_that_runs_out();
    test_a_frame_that_found_no_room();
    return report("cuda_kept");
}
