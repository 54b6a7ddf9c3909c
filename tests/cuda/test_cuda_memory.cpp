// The backend's memory and its order: nothing waits that need not (emulator::options().deferred),
// so what relies on luck reads poison. Constants, staging, growth, recorded stages, several GPUs,
// and memory that runs out anywhere.
#include <algorithm>
#include <functional>
#include <thread>

#include "cpu/image.h"
#include "cuda/backend.h"
#include "guarded_mat.h"
#include "tensors_on_disk.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

std::unique_ptr<Backend> gpu(Compute compute = Compute::float32) {
    return make_cuda_backend(compute, size_t{1} << 20);
}
std::vector<float> read(Backend& b, Mat x) {
    std::vector<float> values(size_t(x.rows) * x.cols);
    b.read(x, values.data());
    return values;
}
Mat written(Backend& b, int rows, int cols, const std::vector<float>& values) {
    const Mat x = b.make_mat(rows, cols);
    b.write(values.data(), x);
    return x;
}

// Work runs when somebody waits for it, as late as CUDA permits.
struct Deferred {
    Deferred() { emulator::options().deferred = true; }
    ~Deferred() { emulator::options().deferred = false; }
};

void test_new_memory_is_zero_and_then_what_was_written() {
    const Deferred deferred;
    const auto b = gpu();
    const std::vector<float> values = random_values(33 * 7, 1);
    const Mat empty = b->make_mat(5, 7), full = written(*b, 33, 7, values);
    const int number = 41;
    int* ints = b->make_ints(1);
    b->write(&number, 1, ints);
    b->advance(ints);
    CHECK(read(*b, full) == values);
    CHECK(read(*b, empty) == std::vector<float>(35, 0.0f));
    CHECK(read(*b, full.below(4, 3).columns(2, 5))[5] == values[5 * 7 + 2]);
    int now = 0;
    CHECK(!cudaDeviceSynchronize() && !cudaMemcpy(&now, ints, 4, cudaMemcpyDeviceToHost));
    CHECK(now == 42);
}

// Constants are the host's until finish_weights, and then the device has them too.
void test_constants() {
    for (bool late : {false, true}) {
        emulator::options().deferred = late;
        const auto b = gpu();
        const int sizes[] = {33, 1, 200, 64};
        std::vector<float*> constants;
        for (int size : sizes) {
            constants.push_back(b->make_weights("c" + std::to_string(size), size_t(size)));
            const std::vector<float> values = random_values(size_t(size), unsigned(size));
            std::copy(values.begin(), values.end(), constants.back());
        }
        b->finish_weights();
        const std::vector<float> x_values = random_values(3 * 33, 2);
        const Mat x = written(*b, 3, 33, x_values), y = b->make_mat(3, 33);
        b->layer_norm(x, constants[0], constants[2] + 5, 1e-5f, y);
        const std::vector<float> got = read(*b, y);
        emulator::options().deferred = false;
        DeviceArray<float> weight(random_values(33, 33)), bias(random_values(200, 200));
        DeviceMat plain_x(3, 33, Storage::f32, x_values), plain_y(3, 33, Storage::f32);
        CHECK(!norm(plain_x.mat(), weight.data(), bias.data() + 5, true, 1e-5f, plain_y.mat(),
                    nullptr));
        CHECK(same_bits(got, plain_y.values()));
        // What is no constant of this backend is taken for the device's own.
        b->layer_norm(x, weight.data(), bias.data() + 5, 1e-5f, y);
        CHECK(same_bits(read(*b, y), got));
    }
}

// What the host alone reads takes no memory of the device: 2 MB of SmolVLA's.
void test_constants_of_the_host() {
    const auto bytes = [](size_t host) {
        const size_t before = emulator::device_bytes_in_use();
        const auto b = gpu();
        std::fill_n(b->make_weights("c", 33), 33, 1.0f);
        if (host) {
            float* values = b->make_host_weights("h", host);
            CHECK(std::count(values, values + host, 0.0f) == int64_t(host));
            std::fill_n(values, host, 2.0f);
            CHECK(b->make_host_weights("more", 5) && values[host - 1] == 2.0f);
        }
        b->finish_weights();
        CHECK(b->info().weight_bytes == emulator::device_bytes_in_use() - before);
        return b->info().weight_bytes;
    };
    CHECK(bytes(720 * 721) == bytes(0));
}

// More than the staging memory holds, with nobody waiting in between; the host's values change as
// soon as `write` has returned.
void test_staging() {
    const Deferred deferred;
    const auto b = gpu();
    constexpr int kRows = 11, kCols = 100003;  // 4.4 MB
    std::vector<Mat> mats;
    std::vector<float> values(size_t(kRows) * kCols);
    for (int i = 0; i < 9; ++i) {
        std::fill(values.begin(), values.end(), float(i + 1));
        values[size_t(i) * 7] = -1;
        mats.push_back(written(*b, kRows, kCols, values));
    }
    std::fill(values.begin(), values.end(), NAN);
    for (int i = 0; i < 9; ++i) {
        const std::vector<float> got = read(*b, mats[size_t(i)]);
        CHECK(got[size_t(i) * 7] == -1 && got[1] == float(i + 1) && got.back() == float(i + 1));
        CHECK(std::count(got.begin(), got.end(), float(i + 1)) == int64_t(got.size()) - 1);
    }
}

std::vector<float> letterboxed(const Frame& frame, int height, int width) {
    std::vector<float> pixels(size_t(3) * height * width);
    const cpu::Letterbox box(frame, height, width);
    for (int y = 0; y < height; ++y) box.row(y, pixels.data());
    return pixels;
}

// Frames that grow, the last one larger than the first staging memory; a camera's buffer is free
// again when letterbox returns, and so is the device's copy of the frame before.
void test_frames() {
    for (int architecture : {89, 87}) {  // with memory of its own; sharing the host's
        emulator::use_device(architecture);
        const Deferred deferred;
        const auto b = gpu();
        const int sizes[][2] = {{48, 64}, {40, 30}, {480, 640}, {2400, 2500}, {48, 64}};
        std::vector<Mat> results;
        std::vector<std::vector<float>> want;
        for (const auto& [height, width] : sizes) {
            std::vector<uint8_t> frame(size_t(3) * height * width);
            for (size_t i = 0; i < frame.size(); ++i)
                frame[i] = uint8_t((i + results.size()) * 37 % 251);
            const Frame camera{frame.data(), true, height, width};
            want.push_back(letterboxed(camera, 32, 48));
            results.push_back({b->make_buffer(3 * 32 * 48), 1, 3 * 32 * 48, 3 * 32 * 48});
            b->letterbox(camera, results.back().data, 32, 48);
            std::fill(frame.begin(), frame.end(), uint8_t(255));
        }
        for (size_t i = 0; i < results.size(); ++i) CHECK(same_bits(read(*b, results[i]), want[i]));
    }
    emulator::use_device(89);
}

// A stage runs what was recorded, on what is in memory then.
void test_stages() {
    for (bool late : {false, true}) {
        emulator::options().deferred = late;
        const auto first = gpu(), second = gpu();
        int asked = 0;
        const auto run = [&](Backend& b, Mat x, Mat y, float scale, int key) {
            b.stage({"double", key}, [&] {
                ++asked;
                b.copy(x, scale, y);
                b.copy(y, scale, y);
            });
        };
        const std::vector<float> values = random_values(5 * 9, 3), others = random_values(5 * 9, 4);
        const auto times_four = [](std::vector<float> v) {
            for (float& x : v) x *= 4;
            return v;
        };
        const Mat x1 = written(*first, 5, 9, values), y1 = first->make_mat(5, 9);
        const Mat x2 = written(*second, 5, 9, others), y2 = second->make_mat(5, 9);
        for (int call = 0; call < 4; ++call) {
            run(*first, x1, y1, 2, 0);
            run(*second, x2, y2, 2, 0);  // the same key in another backend
            CHECK(read(*first, y1) == times_four(call % 2 ? others : values));
            CHECK(read(*second, y2) == times_four(others));
            first->write((call % 2 ? values : others).data(), x1);
        }
        CHECK(asked <= 4);  // once to run and once to record, for each
        const int before = asked;
        run(*first, x1, y1, 3, 1);  // another key is another recording
        CHECK(asked > before);
        CHECK(read(*first, y1)[7] == values[7] * 3 * 3);
        run(*first, x1, y1, 3, 0);  // of the old key what was recorded counts
        CHECK(read(*first, y1)[7] == values[7] * 4);
    }
    emulator::options().deferred = false;
}

// A body that raises, whichever time it is called, leaves a backend that works and no graph.
void test_a_body_that_raises() {
    for (int bad_call : {1, 2}) {
        const auto b = gpu();
        const size_t handles = emulator::handles_in_use();
        const std::vector<float> values = random_values(8, 5);
        const Mat x = written(*b, 2, 4, values), y = b->make_mat(2, 4);
        int calls = 0;
        const auto run = [&] {
            b->stage({"raises"}, [&] {
                b->copy(x, 1.0f, y);
                if (++calls == bad_call) fail(ErrorKind::input, "not this time");
            });
        };
        for (int i = 0; i < 2 && calls < bad_call; ++i) {
            try {
                run();
            } catch (const Error& error) {
                CHECK(error.kind == ErrorKind::input && calls == bad_call);
            }
        }
        CHECK(emulator::handles_in_use() == handles);
        run();
        CHECK(read(*b, y) == values);
        run();
        CHECK(read(*b, y) == values);
    }
}

// A backend stays on the GPU that was current when it was made, whatever is current in the thread
// that calls; what was current is so again afterwards.
void test_another_gpu() {
    emulator::use_devices(3);
    CHECK(!cudaSetDevice(2));
    const size_t before = emulator::device_bytes_on(2);
    auto b = gpu();
    const std::vector<float> values = random_values(6, 5);
    const Mat x = written(*b, 2, 3, values), y = b->make_mat(2, 3);
    const size_t used = emulator::device_bytes_on(2);
    CHECK(used > before);
    std::thread([&] {  // begins with the first one
        const auto in = [&](auto work) {
            b->enter();
            work();
            b->leave();
            int now = 7;
            CHECK(!cudaGetDevice(&now) && now == 0);
        };
        CHECK_THROWS(b->copy(x, 2.0f, y), backend);  // the test can fail
        for (int call = 0; call < 3; ++call)
            in([&] { b->stage({"copy"}, [&] { b->copy(x, 1.0f, y); }); });
        in([&] { CHECK(read(*b, y) == values); });
        const std::vector<uint8_t> frame(size_t(3) * 64 * 64, 7);
        in([&] { b->letterbox({frame.data(), true, 64, 64}, y.data, 1, 1); });
        CHECK(emulator::device_bytes_on(2) > used && emulator::device_bytes_on(0) == 0);
        b.reset();
    })
        .join();
    CHECK(emulator::device_bytes_on(2) == before);
    CHECK(!cudaSetDevice(0));
    emulator::use_devices(1);
}

// More keys than attention in float32 has shared memory for are an error where it would be used.
void test_too_many_keys() {
    constexpr int kKeys = 6400;  // of 16 bytes, and 99 KB
    gpu(Compute::bfloat16)->make_kv(1, 64, kKeys);
    gpu(Compute::bfloat16)->make_kv(1, 32, 6200);
    CHECK_THROWS(gpu(Compute::bfloat16)->make_kv(1, 32, kKeys), backend);
    CHECK_THROWS(gpu(Compute::float32)->make_kv(1, 64, kKeys), backend);
    CHECK(cudaGetLastError() == cudaSuccess);
}

// What a policy does with memory, in small: every kind of allocation and both kinds of growth.
void use_everything(Backend& b, TensorsOnDisk& file) {
    const TensorSource source(file.entries());
    const Linear* loaded = b.load_linear(source, {"w"}, {"b"}, 40, {24}, false);
    const std::vector<float> matrix = random_values(24 * 40, 6), values = random_values(60 * 40, 7);
    const Linear* made = b.make_linear("made", matrix.data(), 24, 40);
    float* constants = b.make_weights("constants", 40);
    std::fill_n(constants, 40, 1.0f);
    b.finish_weights();
    KvStore* kv = b.make_kv(1, 8, 60);
    const Mat x = written(b, 60, 40, values), y = b.make_mat(60, 24);
    const Mat rows = b.make_activation(60, 40), out = b.make_activation(60, 24, 8);
    int* lengths = b.make_ints(60);
    const std::vector<int> all(60, 60);
    b.write(all.data(), 60, lengths);
    b.stage({"all"}, [&] {
        b.rms_norm(x, constants, 1e-5f, rows);
        b.linear(rows, loaded, y, {});
        b.linear(x, made, y, {});
        b.store_kv(y.columns(0, 8), y.columns(8, 8), kv, nullptr);
        b.attention(y, kv, {3, 1, 8, lengths}, out);
    });
    const std::vector<uint8_t> frame(size_t(3) * 2400 * 2500, 7);
    float* pixels = b.make_buffer(3 * 16 * 16);
    for (int size : {20, 2400}) b.letterbox({frame.data(), true, size, size}, pixels, 16, 16);
    read(b, out);
}

// A thread that begins with the first GPU works on the backend's own, and opens no other: a context
// takes some hundred megabytes of a GPU that may be somebody else's.
void test_no_other_gpu_is_opened() {
    TensorsOnDisk file;
    file.add("w", DType::f32, {24, 40}, random_values(24 * 40, 8));
    file.add("b", DType::f32, {24}, random_values(24, 9));
    emulator::use_devices(2);
    CHECK(!cudaSetDevice(1));
    for (bool entered : {true, false}) {
        auto b = gpu();
        std::thread([&] {
            if (entered) {
                b->enter();
                use_everything(*b, file);
                b->leave();
            }
            b.reset();
            int now = 7;
            CHECK(!cudaGetDevice(&now) && now == 0);
        }).join();
        CHECK(emulator::opened(1) && !emulator::opened(0));
    }
    CHECK(!cudaSetDevice(0));
    CHECK(emulator::opened(0));
    emulator::use_devices(1);
}

// Whichever allocation fails, the error says what to do and everything is given back.
void test_memory_that_runs_out() {
    TensorsOnDisk file;
    file.add("w", DType::f32, {24, 40}, random_values(24 * 40, 8));
    file.add("b", DType::f32, {24}, random_values(24, 9));
    const size_t bytes = emulator::device_bytes_in_use(), blocks = emulator::allocations_in_use();
    const size_t handles = emulator::handles_in_use();
    for (Compute compute : {Compute::float32, Compute::bfloat16}) {
        int failed = 0;
        for (bool all = false; !all;) {
            emulator::fail_allocation(failed + 1);
            try {
                const auto b = gpu(compute);
                use_everything(*b, file);
                all = true;
            } catch (const Error& error) {
                ++failed;
                CHECK(error.kind == ErrorKind::backend);
                CHECK(contains(error.what(), "memory"));
            }
            emulator::fail_allocation(0);
            CHECK(emulator::device_bytes_in_use() == bytes);
            CHECK(emulator::allocations_in_use() == blocks);
            CHECK(emulator::handles_in_use() == handles);
        }
        CHECK(failed > 12);
    }
}

// A frame that finds no room is an error of that call; the next call works.
void test_room_that_is_found_later() {
    for (int nth : {1, 2}) {
        const auto b = gpu();
        const std::vector<uint8_t> large(size_t(3) * 2400 * 2500, 9), small(3 * 20 * 20, 9);
        const Mat pixels{b->make_buffer(3 * 16 * 16), 1, 3 * 16 * 16, 3 * 16 * 16};
        const auto box = [&](const std::vector<uint8_t>& frame, int height, int width) {
            b->letterbox({frame.data(), true, height, width}, pixels.data, 16, 16);
            return read(*b, pixels);
        };
        const std::vector<float> want = box(small, 20, 20);
        emulator::fail_allocation(nth);  // of the device's room, or of the host's
        CHECK_THROWS(box(large, 2400, 2500), backend);
        emulator::fail_allocation(0);
        CHECK(box(small, 20, 20) == want);
        CHECK(box(large, 2400, 2500) == letterboxed({large.data(), true, 2400, 2500}, 16, 16));
    }
}

}  // namespace

int main() {
    test_new_memory_is_zero_and_then_what_was_written();
    test_constants();
    test_constants_of_the_host();
    test_staging();
    test_frames();
    test_stages();
    test_a_body_that_raises();
    test_another_gpu();
    test_too_many_keys();
    test_no_other_gpu_is_opened();
    test_memory_that_runs_out();
    test_room_that_is_found_later();
    CHECK(emulator::allocations_in_use() == 0 && emulator::handles_in_use() == 0);
    return report("cuda_memory");
}
