// The recording backend: it forwards every operation unchanged, counts what the formulas say, and
// keeps the last records of a full ring in order.
#include "ops/timed.h"

#include <unistd.h>

#include <cstring>
#include <fstream>

#include "check.h"
#include "runtime/error.h"

using namespace smolvla;

namespace {

constexpr int kIn = 48, kOut = 40, kRows = 7;

// A float32 matrix "a" [40, 48] and two bfloat16 ones, "b" and "c", in one file.
struct File {
    std::string path = "/tmp/smolvla_timed_" + std::to_string(getpid());
    std::vector<TensorEntry> entries;
    File() {
        std::ofstream file(path, std::ios::binary);
        for (const char* name : {"a", "b", "c"}) {
            const bool bf16 = *name != 'a';
            const uint64_t at = static_cast<uint64_t>(file.tellp());
            for (int i = 0; i < kIn * kOut; ++i) {
                const float x = 0.01f * float(i % 13 - 6);
                file.write(reinterpret_cast<const char*>(&x) + (bf16 ? 2 : 0), bf16 ? 2 : 4);
            }
            entries.push_back({name,
                               bf16 ? DType::bf16 : DType::f32,
                               {kOut, kIn},
                               path,
                               at,
                               static_cast<uint64_t>(file.tellp()) - at});
        }
    }
    ~File() { unlink(path.c_str()); }
};

Mat filled(Backend& ops, int rows, int cols) {
    const Mat m = ops.make_mat(rows, cols);
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c) m.row(r)[c] = 0.1f * float((r * 31 + c * 7) % 11 - 5);
    return m;
}

std::vector<float> values(Mat m) {
    std::vector<float> all;
    for (int r = 0; r < m.rows; ++r)
        for (int c = 0; c < m.cols; ++c) all.push_back(m.value(r, c));
    return all;
}

// Every operation once, in the order of the interface; what they wrote.
std::vector<float> run_all(Backend& ops, const TensorSource& source) {
    const Linear* plain = ops.load_linear(source, {"a"}, {}, kIn, {kOut}, false);
    const Linear* gated = ops.load_linear(source, {"b", "c"}, {}, kIn, {kOut, kOut}, true);
    const std::vector<float> ones(size_t(kIn) * kOut, 1.0f);
    const Linear* computed = ops.make_linear("computed", ones.data(), kOut, kIn);
    KvStore* kv = ops.make_kv(2, 16, 32);
    const Mat x = filled(ops, kRows, kIn), y = ops.make_mat(kRows, kOut);
    const Mat z = ops.make_mat(kRows, kOut), q = filled(ops, kRows, 64);
    const Mat k = filled(ops, 5, 32), out = ops.make_mat(kRows, 64);
    const Mat angles = filled(ops, 16, 8);
    const Mat patches = ops.make_mat(4, 3 * 256), shuffled = ops.make_mat(1, 4 * 3 * 256);
    const Mat gathered = ops.make_mat(2, kIn), copied = ops.make_mat(kRows, kIn);
    const Mat schedule = filled(ops, 1, 5), change = ops.make_mat(1, 1);
    const Mat sums = ops.make_mat(2, 5);

    LinearOptions add;
    add.residual = y;
    ops.linear(x, plain, y, {});
    ops.linear(x, gated, y, add);
    ops.linear(x, computed, z, {});
    ops.layer_norm(x, ones.data(), ones.data(), 1e-6f, copied);
    ops.rms_norm(x, ones.data(), 1e-6f, copied);
    const int one = 1, none = 0;
    ops.rope(q, 4, angles, angles, &one);
    ops.store_kv(k, k, kv, nullptr);
    const int lengths[kRows] = {1, 2, 3, 4, 5, 5, 5};
    ops.attention(q, kv, {4, 2, 16, lengths}, out);
    const Mat mass = ops.make_mat(4, 5);
    ops.attention_mass(q, kv, {4, 2, 16, lengths}, false, mass);
    ops.attention_mass(q, kv, {4, 2, 16, lengths}, true, mass);
    const std::vector<uint8_t> frame(20 * 30 * 3, 100);
    float* image = ops.make_buffer(3 * 32 * 32);
    ops.letterbox({frame.data(), true, 20, 30}, image, 32, 32);
    ops.patchify(image, 32, 32, 16, nullptr, patches);
    ops.pixel_shuffle(patches, 2, 2, shuffled);
    const int ids[2] = {1, 3};
    ops.gather_rows({ones.data(), DType::f32}, ids, 2, 2.0f, gathered);
    ops.copy(x, 0.5f, copied);
    const int at[2] = {4, 7}, block[1] = {0};
    ops.scatter_kv(k.top(2), k.top(2), kv, at);
    float* reference = ops.make_buffer(3 * 32 * 32);
    ops.block_change(image, reference, 32, 32, 16, 2, change);
    ops.copy_blocks(image, 32, 32, 32, block, 1, reference);
    ops.pick_rows(x, ids, gathered);
    ops.put_rows(gathered, ids, x);
    ops.add(x, copied, 0.5f, copied);
    ops.compare(gathered, x.top(2), kIn, sums);
    ops.flow_update(x, copied, schedule, &none, {}, {});

    std::vector<float> all;
    for (const Mat& m : {x, y, z, q, out, mass, patches, shuffled, gathered, copied, change, sums})
        for (float v : values(m)) all.push_back(v);
    return all;
}

std::unique_ptr<Backend> make_backend(Compute compute) {
    return make_cpu_backend(size_t{1} << 24, size_t{1} << 24, 2, "", compute);
}

const TimedRecord& find(const std::vector<TimedRecord>& records, const char* kind, int nth = 0) {
    for (const TimedRecord& r : records)
        if (std::strcmp(r.kind, kind) == 0 && nth-- == 0) return r;
    CHECK(!"no such record");
    return records.front();
}

}  // namespace

int main() {
    const File file;
    const TensorSource source(file.entries);
    for (Compute compute : {Compute::float32, Compute::bfloat16}) {
        const auto direct = make_backend(compute);
        const std::vector<float> expected = run_all(*direct, source);
        TimedBackend ops(make_backend(compute));
        CHECK(run_all(ops, source) == expected);  // not recording
        size_t overwritten = 9;
        CHECK(ops.take(&overwritten).empty() && overwritten == 0);

        ops.start(100);
        CHECK(run_all(ops, source) == expected);
        const std::vector<TimedRecord> records = ops.take(&overwritten);
        CHECK(records.size() == 23 && overwritten == 0);
        std::string kinds;
        int64_t before = 0;
        for (const TimedRecord& r : records) {
            kinds += std::string(r.kind) + " ";
            CHECK(!r.stage && before <= r.start_ns && r.start_ns <= r.end_ns && r.bytes > 0);
            before = r.end_ns;
        }
        CHECK(kinds ==
              "linear linear linear layer_norm rms_norm rope store_kv attention attention_mass "
              "attention_mass letterbox patchify pixel_shuffle gather_rows copy scatter_kv "
              "block_change copy_blocks pick_rows put_rows add compare flow_update ");

        const TimedRecord &plain = find(records, "linear"), &gated = find(records, "linear", 1);
        CHECK(std::string(plain.weight) == "a" && std::string(gated.weight) == "b+c");
        CHECK(std::string(find(records, "linear", 2).weight) == "computed");
        CHECK(plain.rows == kRows && plain.in == kIn && plain.out == kOut);
        CHECK(plain.flops == 2 * kRows * kIn * kOut && gated.flops == 2 * plain.flops);
        // x, y and a float32 weight; x, y, y again as the residual, and two bfloat16 weights.
        CHECK(plain.bytes == 4 * (kRows * kIn + kRows * kOut + kIn * kOut));
        CHECK(gated.bytes == 4 * (kRows * kIn + 2 * kRows * kOut) + 2 * 2 * kIn * kOut);
        const std::string name = compute_name(compute);
        CHECK(std::string(plain.compute) == "float32" && gated.compute == name);

        const TimedRecord& attention = find(records, "attention");
        // 25 pairs of query and key, 4 heads of 16: a product for the score, one for the value.
        CHECK(attention.flops == 2 * 2 * 25 * 4 * 16 && attention.heads == 4);
        CHECK(attention.in == 5 && attention.out == 64 && attention.compute == name);
        const TimedRecord& mass = find(records, "attention_mass");
        CHECK(mass.flops == 2 * 25 * 4 * 16 && mass.in == 5 && mass.bytes < attention.bytes);
        CHECK(find(records, "copy").flops == 0);
        CHECK(find(records, "letterbox").bytes == 20 * 30 * 3 + 4 * 3 * 32 * 32);
    }

    // A ring that is too small keeps the last ones, in order.
    TimedBackend ops(make_backend(Compute::float32));
    size_t overwritten = 0;
    for (size_t capacity : {1, 4, 22, 23}) {
        ops.start(capacity);
        run_all(ops, source);
        const std::vector<TimedRecord> records = ops.take(&overwritten);
        CHECK(records.size() == capacity && overwritten == 23 - capacity);
        CHECK(std::string(records.back().kind) == "flow_update");
        for (size_t i = 1; i < records.size(); ++i)
            CHECK(records[i - 1].end_ns <= records[i].start_ns);
    }
    ops.start(5);
    {
        const TimedBackend::Stage outer(ops, "vision", 3);
        ops.copy(filled(ops, 2, 2), 1.0f, ops.make_mat(2, 2));
    }
    const std::vector<TimedRecord> staged = ops.take(&overwritten);
    CHECK(staged.size() == 2 && staged[1].stage && staged[1].index == 3);
    CHECK(staged[1].start_ns <= staged[0].start_ns && staged[0].end_ns <= staged[1].end_ns);
    ops.start(5);
    {
        const TimedBackend::Stage outer(ops, "flow");
        CHECK(ops.take(&overwritten).empty());
    }
    CHECK(ops.take(&overwritten).empty() && overwritten == 0);  // its end wrote nowhere
    CHECK_THROWS(ops.start(0), input);
    CHECK_THROWS(ops.start(size_t{1} << 40), input);
    return report("timed");
}
